"""Sentences of one compression: what is about to be done, and what a reader of its result should know besides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from rankfold.compress.layerwise.in_parts import memory_needed
from rankfold.compress.methods.method import Method
from rankfold.compress.planning.entries import ADDED
from rankfold.compress.planning.plan import Plan
from rankfold.costs import Example, evaluating
from rankfold.objectives import Evaluation, Objective, Teacher
from rankfold.objectives.infer import unseen_outputs
from rankfold.pipeline.compression.outcome.heldout import over_fitted
from rankfold.pipeline.quality.search import ROUNDING
from rankfold.pipeline.quality.value import Quality
from rankfold.report.quantities import count, percent
from rankfold.sites import SiteList
from rankfold.sites.wish import Where
from rankfold.train.breakdown import at_chance
from rankfold.train.feed import samples

_KNOWN = 0.05, 3.0  # points, and standard errors, by which samples are known too well to be new


def memory_sentence(model: nn.Module, memory: int | None, where: Where | None = None) -> str:
    """What second moments will take, said before they are taken."""
    together, passes, beyond = memory_needed(model, memory, where)
    said = f"second moments of all layers together take {count(together, 'B')}"
    if memory is not None:
        said += f"; within {count(memory, 'B')} they are taken in {passes} {'pass' if passes == 1 else 'passes'}"
    if beyond:
        said += f"; {', '.join(beyond[:3])}{', …' if len(beyond) > 3 else ''} need more than that even alone"
    return said


def summary(made: Plan) -> str:
    """One line: what is kept, and how many sites change."""
    parts = [
        f"{percent(getattr(made.after, kind) / getattr(made.before, kind))} of the {name}"
        for kind, name in (("flops", "FLOPs"), ("params", "parameters"))
        if getattr(made.before, kind)
    ]
    part = made.kept_of_factorable()
    share = "" if part is None else f" ({percent(part)} of the parameters that can be factored)"
    return f"{' and '.join(parts)} kept{share}; {len(made.changed)} of {len(made.entries)} sites change"


def of_layers(made: Plan) -> tuple[str, ...]:
    """What is to be known of layers that change, as that a search was cut short: a sentence for each reason."""
    found: dict[str, list[str]] = {}
    for entry in made.changed:
        note = "; ".join(part for part in entry.note.split("; ") if part != ADDED)  # which is nothing odd
        if note:
            found.setdefault(note, []).append(entry.site)
    return tuple(
        f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}: {why}"
        for why, names in found.items()
    )


def dearer(made: Plan, found: SiteList) -> tuple[str, ...]:
    """A sentence where the network takes more FLOPs than before, which a budget in something else allows."""
    if made.after.flops <= made.before.flops:
        return ()
    tables = [entry.site for entry in made.changed if found[entry.site].layer.lookup]
    why = f": a table costs none where it is looked up, and as factors ({tables[0]}) a product" if tables else ""
    more = (
        f", {percent(made.after.flops / made.before.flops - 1)} more than" if made.before.flops else ", where none were"
    )
    return (f"the network takes {count(made.after.flops)} FLOPs{more} before{why}",)


def learnt_nothing(start: Evaluation) -> tuple[str, ...]:
    """A sentence where the original has learnt nothing, as with weights that were never loaded."""
    if start.chance is None or not at_chance(start.judged, start):
        return ()
    guess = replace(start.judged, value=start.chance).text
    known = f"the most frequent class is {guess} of it" if start.judged.name == "accuracy" else f"guessing has {guess}"
    return (
        f"the original answers the validation split no better than chance ({start.judged}; {known}): were its trained "
        "weights loaded (--weights)?",
    )


@torch.no_grad()
def unjudged(model: nn.Module, example: Example, objective: Objective) -> tuple[str, ...]:
    """A sentence where ``model`` has outputs that the objective does not count, so that they may have become worse."""
    if isinstance(objective, Teacher) or getattr(objective, "answer", None) is not None:
        return ()
    with evaluating(model):
        return tuple(filter(None, (unseen_outputs(model(*example.args, **example.kwargs)),)))


def samples_known(validation: Evaluation, held_out: Evaluation, part: Any, name: str) -> tuple[str, ...]:
    """A sentence where the original knows its validation samples too well to have been trained without them.

    By at least five points, and by more than three standard errors of the difference of two shares.
    """
    known, new = validation.judged, held_out.judged
    if known.unit != "fraction" or name == "validation" or known.better(new) < _KNOWN[0]:
        return ()
    counts = [max(1, min(validation.count, samples(part) or validation.count)), max(1, held_out.count)]
    share = (known.value * counts[0] + new.value * counts[1]) / sum(counts)
    if known.better(new) < _KNOWN[1] * (share * (1 - share) * sum(1 / count for count in counts)) ** 0.5:
        return ()
    return (
        (
            f"the original reaches {known} on the validation split and {new.text} on the {name} split: it was "
            "probably trained on the validation split, which still serves to compare networks, but its figures are "
            "too good"
        ),
    )


def further(quality: Quality | None, before: Evaluation, after: Evaluation, name: str) -> tuple[str, ...]:
    """A sentence where the figure falls further on the split of this ``name`` than the drop that was allowed: which
    was judged on other samples."""
    if quality is None:
        return ()
    figures = {figure.name: figure for figure in after.figures}
    start = next((figure for figure in before.figures if figure.name == quality.figure.name), None)
    if start is None or start.name not in figures:
        return ()
    lost, most = start.better(figures[start.name]), start.amount(quality.asked, 6)
    if not quality.asked + ROUNDING < lost:
        return ()
    return (
        f"{start.name} is worse by {start.amount(lost)} on the {name} split, more than the {most} allowed: that was "
        f"judged on {quality.samples[1]:,} validation samples, where {quality.judgement}",
    )


def gaps(made: Plan, errors: dict[str, float], method: Method) -> tuple[str, ...]:
    far = over_fitted(made, errors, method=method)
    if not far:
        return ()
    return (
        (
            f"on held-out data the error is far above the predicted one in {len(far)} of {len(made.changed)} layers "
            f"({', '.join(far[:3])}{', …' if len(far) > 3 else ''}): more calibration samples would help"
        ),
    )
