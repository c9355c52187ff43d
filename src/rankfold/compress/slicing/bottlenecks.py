"""What passes the bottlenecks of a factored network: enough to make them narrower later, without data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import TypedDict

from rankfold.batches import batches_of, check_rereadable, forward, size_of
from rankfold.compress.absorbers import Absorbers
from rankfold.compress.methods.project import DAMPING, damped
from rankfold.compress.metric import output_metrics
from rankfold.compress.spread import Spread
from rankfold.costs import evaluating
from rankfold.layers import FactoredConv, LowRankLinear
from rankfold.linalg import Moments
from rankfold.linalg.brief import brief
from rankfold.linalg.on_data.bottleneck import root_of, triangle
from rankfold.objectives import Objective, ObjectiveError, Teacher
from rankfold.observe import Samples, after, before, first_of
from rankfold.observe.passes import laid_out, layout_for
from rankfold.run.disk.container import Kind
from rankfold.run.ordinary import ordinarily
from rankfold.run.processes.memory import give_back
from rankfold.run.progress import Progress, showing
from rankfold.sites import (
    Site,
    SiteList,
    bottleneck_rows,
    fingerprint,
    narrowable_sites,
    output_rows_alone,
    pair,
    unwrap,
    weights_of,
)


@dataclass(frozen=True)
class Bottleneck:
    """What the data says of the activations z (…, q) that enter the second factor V of one layer.

    ``root`` (…, q, q) lower, L Lᵀ = Cov z; ``mean`` (…, q). The metric D of the layer's outputs (see
    ``rankfold.compress.metric``) as ``weighting`` (…, q, q) lower, W Wᵀ = Vᵀ D V, or, where that is smaller, as
    ``outputs`` (m, m) lower or (m,), W Wᵀ = D; neither where no gradients came. ``norm``: the BatchNorm that takes the
    layer's output with nothing in between.
    """

    root: Tensor
    mean: Tensor
    weighting: Tensor | None = None
    outputs: Tensor | None = None
    norm: str | None = None

    __repr__ = brief

    @property
    def comparable(self) -> bool:
        """Whether errors are changes of the model's outputs, so that they compare between layers."""
        return self.weighting is not None or self.outputs is not None

    def weights(self, left: Tensor) -> Tensor:
        """R (…, p, q), Rᵀ R = Vᵀ D V for V = ``left`` (…, m, q); V itself where there is no metric."""
        if self.weighting is not None:
            return self.weighting.mT
        if self.outputs is None:
            return left.double()
        return self.outputs.unsqueeze(-1) * left if self.diagonal else self.outputs.mT @ left.double()

    @property
    def diagonal(self) -> bool:
        """Whether ``outputs`` is a diagonal."""
        return self.outputs is not None and self.outputs.ndim == self.root.ndim - 1


@dataclass(frozen=True)
class Bottlenecks:
    """What passes through the bottlenecks of a network: second moments by site, made by ``rankfold.bottlenecks``.

    Attributes:
        sites: the moments by site name.
        mark: a hash of the factors that they were measured on.
        samples: how many.
        energy: mean over the samples of the squared distance of the model's outputs from their mean, in which predicted
            changes of the outputs can be expressed; 0 if it is not known.
        unreached: factored layers that the data never reached.

    Example:
        >>> rf.Bottlenecks({}, "", 0).unreached
        ()
    """

    sites: Mapping[str, Bottleneck]
    mark: str
    samples: int
    energy: float = 0.0
    unreached: tuple[str, ...] = ()

    __repr__ = brief

    def to_bytes(self) -> bytes:
        """One safetensors file of float32: triangles row by row. ``from_bytes`` is the inverse."""
        tensors: dict[str, Tensor] = {}
        for name, known in self.sites.items():
            packed = {"root": _packed(known.root), "mean": known.mean}
            if known.weighting is not None:
                packed["weighting"] = _packed(known.weighting)
            if known.outputs is not None:
                packed |= {"diagonal": known.outputs} if known.diagonal else {"outputs": _packed(known.outputs)}
            tensors |= {f"{name}|{key}": value.float() for key, value in packed.items()}
        note = _Note(
            mark=self.mark,
            samples=self.samples,
            energy=self.energy,
            unreached=list(self.unreached),
            norms={name: known.norm for name, known in sorted(self.sites.items()) if known.norm is not None},
        )
        return _FILE.write(tensors, note)

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "") -> Bottlenecks:
        """``ValueError`` in one line, with ``name``, for anything that ``to_bytes`` did not write."""
        return _FILE.read(data, _built, name)


class _Note(TypedDict):
    mark: str
    samples: int
    energy: float
    unreached: list[str]
    norms: dict[str, str]


_FILE = Kind[_Note](
    "rankfold.bottlenecks",
    _Note,
    "bottlenecks of rankfold",
    "measure them again and save with them",
)


def _built(tensors: Mapping[str, Tensor], note: _Note) -> Bottlenecks:
    states: dict[str, dict[str, Tensor]] = {}
    for full, value in tensors.items():
        name, _, key = full.rpartition("|")
        states.setdefault(name, {})[key] = value.double()
    found = {name: _bottleneck(state, note["norms"].get(name)) for name, state in states.items()}
    return Bottlenecks(found, note["mark"], note["samples"], note["energy"], tuple(note["unreached"]))


def _packed(lower: Tensor) -> Tensor:
    rows, columns = torch.tril_indices(*lower.shape[-2:])
    return lower[..., rows, columns]


def _unpacked(flat: Tensor) -> Tensor:
    size = (isqrt(8 * flat.shape[-1] + 1) - 1) // 2
    if size * (size + 1) // 2 != flat.shape[-1]:
        raise ValueError(f"{flat.shape[-1]} numbers do not make a triangle")
    lower = flat.new_zeros(*flat.shape[:-1], size, size)
    rows, columns = torch.tril_indices(size, size)
    lower[..., rows, columns] = flat
    return lower


def _bottleneck(state: Mapping[str, Tensor], norm: str | None) -> Bottleneck:
    if not all(bool(value.isfinite().all()) for value in state.values()):
        raise ValueError("values that are not finite")
    root = _unpacked(state["root"])
    if state["mean"].shape != root.shape[:-1]:
        raise ValueError("shapes that do not belong together")
    weighting = _unpacked(state["weighting"]) if "weighting" in state else None
    outputs = _unpacked(state["outputs"]) if "outputs" in state else state.get("diagonal")
    return Bottleneck(root, state["mean"], weighting, outputs, norm)


def factor_mark(model: nn.Module, found: SiteList | None = None) -> str:
    """What bottlenecks belong to: a hash of the weights of every layer that can become narrower, and that of all values
    of the network (``fingerprint``), biases and statistics among them. Two passes over them.

    ``found``: those layers, where they are known."""
    root, digest = unwrap(model), hashlib.sha256()
    for site in narrowable_sites(root) if found is None else found:
        for weight in weights_of(root.get_submodule(site.name)):
            digest.update(f"{site.name}{tuple(weight.shape)}{weight.dtype};".encode())
            digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return f"{digest.hexdigest()[:16]}-{fingerprint(root).partition(':')[2]}"


def belongs(mark: str, model: nn.Module) -> bool:
    """Whether bottlenecks of this ``mark`` were measured on ``model``. Older marks tell only of the weights."""
    now = factor_mark(model)
    return mark == (now if "-" in mark else now.partition("-")[0])


@showing
@ordinarily
def bottlenecks(
    model: nn.Module,
    data: Any,
    *,
    samples: int = 2048,
    metric_samples: int = 1024,
    batch_size: int = 128,
    objective: Objective | None = None,
    progress: Progress | None = None,
) -> Bottlenecks:
    """Measure the bottlenecks of a network that a plan was applied to, on ``data`` without labels, in eval mode.

    Measure after fine-tuning: they belong to the weights as they are. A network without any has none, and is not run.
    Hooks, mode and gradients are left as found.

    Args:
        model: with factored layers.
        data: anything that ``rankfold.batches.batches_of`` understands.
        samples: at most so many.
        metric_samples: for the backward pass that weighs outputs; 0 for none.
        batch_size: of the passes.
        objective: what the outputs mean; told from the first samples by default.
        progress: called as ``progress(what, done, total)`` as the work goes on.

    Returns:
        ``Bottlenecks``, to be saved with the model.

    Raises:
        ValueError: empty data; activations that are not finite, naming the layer.

    Cost: the forward passes, one backward pass over ``metric_samples``, and q² for each row at each factored layer, q
    its rank (times the kernel's width for a spatial pair).

    Example:
        >>> net, x = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)), torch.randn(64, 16)
        >>> small = rf.apply_(net, rf.plan(net, rf.Ranks({"0": 5, "2": 2}), data=x))
        >>> list(rf.bottlenecks(small, x).sites)
        ['0', '2']
    """
    root = unwrap(model)
    if metric_samples:
        check_rereadable(data)
    found = narrowable_sites(root)
    if not found:
        return Bottlenecks({}, factor_mark(root, found), 0, 0.0, ())
    moments: dict[str, Moments] = {}
    asked = objective or Teacher()
    spread: Spread | None = Spread()
    absorbers = Absorbers()

    def watch(site: Site, module: nn.Module) -> Callable[..., None]:
        def inside(stage: nn.Module, args: tuple, kwargs: dict) -> None:
            take(bottleneck_rows(module, first_of(args, kwargs)))

        def behind(layer: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
            take(output_rows_alone(module, output))

        def take(rows: Tensor) -> None:
            if not bool(rows.isfinite().all()):
                raise ValueError(
                    f"{site.title}: on the calibration data its activations in {rows.dtype} are NaN or infinite: "
                    "look for bad samples, or for overflow (then convert the model to float32)"
                )
            if site.name not in moments:
                moments[site.name] = Moments(rows.shape[-1], groups=rows.shape[0] if rows.dim() == 3 else None)
            moments[site.name].update(rows)

        return inside if isinstance(module, LowRankLinear | FactoredConv) else behind

    def produced(name: str) -> Callable[..., None]:
        return lambda module, args, kwargs, output: absorbers.produced(name, output)

    seen = 0
    entering: dict[str, Callable[..., None]] = {}
    leaving: dict[str, list[Callable[..., None]]] = {}
    for site in found:
        module = root.get_submodule(site.name)
        leaving[site.name] = [produced(site.name)]
        if isinstance(module, LowRankLinear | FactoredConv):
            entering[f"{site.name}.up"] = watch(site, module)
        else:
            leaving[site.name].insert(0, watch(site, module))
    layout = layout_for(root, data)
    with evaluating(root), before(root, entering), after(root, leaving), absorbers.watching(root.named_modules()):
        for batch in batches_of(data, batch_size, samples):
            output = forward(root, laid_out(batch, layout))
            if metric_samples:
                spread = _spreading(spread, asked, output, batch)
            seen += size_of(batch)
            if progress is not None:
                progress("measuring bottlenecks, for slice", seen, samples)
    if not seen:
        raise ValueError("the calibration data is empty: give at least one batch")
    give_back()
    metrics = {}
    if spread is not None and metric_samples:
        few = Samples(data, min(samples, metric_samples), batch_size)
        metrics = output_metrics(root, few, found, asked, spread, progress, within=False)
    reached = {
        site.name: _measured(root, site, moments[site.name], metrics.get(site.name), absorbers.of(site.name))
        for site in found
        if site.name in moments
    }
    unreached = tuple(site.name for site in found if site.name not in moments)
    give_back()
    return Bottlenecks(reached, factor_mark(root, found), seen, 1.0 if metrics else 0.0, unreached)


def _measured(root: nn.Module, site: Site, moments: Moments, metric: Tensor | None, norm: str | None) -> Bottleneck:
    covariance = (moments.covariance_sum / moments.count).cpu()
    metric = damped(None if metric is None else metric.cpu(), DAMPING)
    known = Bottleneck(root_of(covariance), moments.mean.cpu(), norm=norm)
    if metric is None:
        return known
    left = pair(root.get_submodule(site.name))[1].double().cpu()
    q, m = left.shape[-1], left.shape[-2]
    if metric.ndim == left.ndim - 1:  # a diagonal
        return Bottleneck(known.root, known.mean, outputs=metric.sqrt(), norm=norm)
    half = root_of(metric)
    if m < q:
        return Bottleneck(known.root, known.mean, outputs=half, norm=norm)
    return Bottleneck(known.root, known.mean, weighting=triangle(left.mT @ half), norm=norm)


def _spreading(spread: Spread | None, objective: Objective, output: Any, batch: Any) -> Spread | None:
    """``spread`` with another batch; None for a model whose outputs cannot be compared."""
    if spread is None:
        return None
    try:
        spread.add(objective.answers(output, batch))
    except ObjectiveError:
        return None
    return spread
