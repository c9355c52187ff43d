"""What follows from a report of rank collapse, in one paragraph that claims no more than its numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rankfold.pipeline.collapse.study import CollapseReport, LayerCollapse

LOW = 0.05  # relative distance below which a layer counts as of that rank
STATIONARY = 0.5  # residual up to which a bound is taken to explain ranks


def conclusion(found: CollapseReport) -> str:
    """Which layers are low-rank, what of the data says nothing, and at which weight decay the others would be."""
    k = found.classes
    if not found.layers:
        return "The network has no layer that could be low-rank, so that there is nothing to explain."
    wide = [layer for layer in distinct(found.layers) if min(layer.site.shape) > k]
    if wide:
        told = [_ranks(found, wide), _features(found), _decay(found, wide), _cuts(found), _transitions(found)]
    else:
        told = [
            f"No layer is larger than {k} in both directions: every one has rank at most {k} as it stands.",
            _features(found),
        ]
    return " ".join(part for part in told if part)


def distinct(layers: Iterable[LayerCollapse]) -> list[LayerCollapse]:
    """The first layer of each weight: those that share one are one matrix."""
    seen: set[str] = set()
    first = []
    for layer in layers:
        if seen.isdisjoint(layer.site.tied_to):
            first.append(layer)
        seen.add(layer.site.parameter)
    return first


def shared(layers: Sequence[LayerCollapse]) -> list[str]:
    """For every weight that several layers share, which they are."""
    owners = {layer.site.parameter: layer.site.name for layer in layers}
    return [
        " and ".join(names)
        for layer in distinct(layers)
        if len(names := [layer.site.name, *(owners[other] for other in layer.site.tied_to if other in owners)]) > 1
    ]


def _ranks(found: CollapseReport, wide: Sequence[LayerCollapse]) -> str:
    k = found.classes
    low = [layer for layer in wide if layer.spectrum.relative_tail(k) < LOW]
    told = (
        f"{len(low)} of the {len(wide)} layers that could have a rank above the number of {found.kinds}, {k}, are "
        f"within {100 * LOW:g} % of rank {k}" + (f": {_names(low)}." if low else ".")
    )
    told += "".join(f" {names} share one weight, which counts once." for names in shared(found.layers))
    if len(low) < len(wide):
        far = max(wide, key=lambda layer: layer.spectrum.relative_tail(k))
        told += (
            f" The farthest is {far.site.name}: {100 * far.spectrum.relative_tail(k):.0f} % of its norm lies "
            f"beyond rank {k}."
        )
    return told


def _features(found: CollapseReport) -> str:
    """Where the data do not vary, so that what is measured of them says nothing."""
    told = []
    if found.lone:
        one = found.lone == 1
        told.append(
            f"{found.lone} of the {found.classes} {found.kinds} {'has' if one else 'have'} a single sample here: "
            f"{'its' if one else 'their'} variation is 0 whatever the network does."
        )
    whole = {
        layer.site.name: layer.clusters.classes["whole"].normalised
        for layer in found.layers
        if layer.clusters is not None and "whole" in layer.clusters.classes
    }
    constant = [name for name, value in whole.items() if math.isnan(value)]
    if constant:
        where = "every layer" if len(constant) == len(whole) else few(constant)
        told.append(f"The features that enter {where} are constant: their clusters say nothing.")
    return " ".join(told)


def _decay(found: CollapseReport, wide: Sequence[LayerCollapse]) -> str:
    if found.paths is None:
        return ""  # no bounds at all: a note says why
    if math.isnan(found.decay):
        ask = "give that of the training (--decay X, in Python decay=X), 0 where there was none"
        if math.isnan(found.residual):
            return f"No weight decay above 0 fits the gradients and weights, so that there is no bound; {ask}."
        return (
            "The weights do not tell their weight decay: the one that fits them and their gradients best leaves "
            f"a residual of {found.residual:.2f} of their norm, more than the 1 of no decay at all, so that "
            f"there is no bound; {ask}."
        )
    whose = "estimated from gradients and weights" if found.decay_estimated else "as given"
    start = f"With weight decay {found.decay:.3g} ({whose}) "
    if found.residual > STATIONARY:
        return (
            f"{start}the network is not at a stationary point (residual {found.residual:.2f} of the norm of the "
            "weights), as these bounds presuppose: they do not explain its ranks, nor tell from which weight "
            "decay on the ranks would fall."
        )
    useful = [layer for layer in wide if layer.bound is not None and not layer.bound.vacuous]
    told = f"{start}the bound of theorem 3.4 says something about {len(useful)} of them and is vacuous for the rest."
    return f"{told} {_thresholds(found, wide)}".strip()


def _thresholds(found: CollapseReport, wide: Sequence[LayerCollapse]) -> str:
    """From which decay on a stationary point would be low-rank; a layer that should be so already, is not at one."""
    k = found.classes
    high = [layer for layer in wide if layer.spectrum.relative_tail(k) >= LOW and layer.bound is not None]
    at = sorted((layer.bound.certain_from * found.decay, layer.site.name) for layer in high if layer.bound is not None)
    coming = [(decay, name) for decay, name in at if decay > found.decay]
    past = [name for decay, name in at if decay <= found.decay]
    told = []
    if coming:
        told.append(
            f"A stationary point with gradients and norms like today's would be within {100 * LOW:g} % of rank {k} "
            f"from weight decay {coming[0][0]:.2g} on in {coming[0][1]}"
            + (f", and in {_all(len(coming))} from {coming[-1][0]:.2g} on" if len(coming) > 1 else "")
            + "; another decay has other gradients, and low rank usually comes much earlier."
        )
    if past:
        are, they = ("is", "that layer is") if len(past) == 1 else ("are", "these layers are")
        told.append(
            f"{few(past)} would be that near to rank {k} at a stationary point of this decay, and {are} not: "
            f"{they} not at one, although the residual of the whole network is small."
        )
    return " ".join(told)


def _all(count: int) -> str:
    return "both" if count == 2 else f"{count} layers"


def _cuts(found: CollapseReport) -> str:
    """Where the chain has no cut, each reason once."""
    names: dict[str, list[str]] = {}
    for name, reason in found.skipped.items():
        names.setdefault(reason.removeprefix(f"{name}: ").removeprefix("no cut: "), []).append(name)
    return " ".join(f"The chain of bounds cannot be cut at {few(where)}: {reason}." for reason, where in names.items())


def _transitions(found: CollapseReport) -> str:
    if found.transitions is None or found.paths is None or not len(found.transitions.decays):
        return ""
    decays = found.transitions.decays
    if found.transitions.layers == 1:
        told = (
            f"One linear layer{longest(found)} on these data would have rank at most {len(decays)}, and keep it at any "
            "weight decay, which shrinks its directions and ends none."
        )
    else:
        told = (
            f"A linear chain of {found.transitions.layers} layers{longest(found)} on these data would have rank at "
            f"most {len(decays)} at any weight decay (torch's weight_decay), lose its weakest direction at "
            f"{float(decays[-1]):.2g} and all of its weights at {float(decays[0]):.2g} ({found.transitions.about})."
        )
    return told + (f" {rough[0].upper()}{rough[1:]}." if (rough := roughness(found)) else "")


def roughness(found: CollapseReport) -> str:
    """Why a chain is no more than a rough picture of this network; "" where it is one."""
    why = [] if found.paths is None or found.paths.chain else ["layers run side by side, or are bypassed"]
    why += ["layers share a weight"] if shared(found.layers) else []
    return f"for this network this is only a rough picture: {' and '.join(why)}" if why else ""


def longest(found: CollapseReport) -> str:
    """Which layers of a network that is no chain were counted, in brackets; "" of a chain."""
    if found.paths is None or found.paths.chain:
        return ""
    if found.paths.shortest == found.paths.longest:
        return f" (of {found.paths.calls}; the others run beside them)"
    return f" (the longest path through this network; the shortest has {found.paths.shortest})"


def _names(layers: Sequence[LayerCollapse]) -> str:
    return few([layer.site.name for layer in layers])


def few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:5])} and {len(names) - 5} more"
