"""Which objective data and model belong to, where they tell; and a sentence that says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rankfold.batches import labels_of
from rankfold.objectives.answer import counting_tensors, main_tensor
from rankfold.objectives.classification import IGNORE, Classification, TokenClassification
from rankfold.objectives.embedding import Embedding
from rankfold.objectives.language import CausalLanguageModel, MaskedLanguageModel
from rankfold.objectives.multilabel import MultiLabel
from rankfold.objectives.objective import Objective, ObjectiveError
from rankfold.objectives.regression import Regression
from rankfold.objectives.teacher import Teacher


@dataclass(frozen=True)
class Inferred:
    """An objective, and why it was taken."""

    objective: Objective
    why: str


def infer(output: Any, batch: Any) -> Inferred:
    """The objective that an output and the targets of its batch fit; ``ObjectiveError`` where two fit equally well.

    Without targets it is ``Teacher``; class axes follow from the shapes, as in torch's cross entropy.
    """
    target = labels_of(batch)
    if target is None:
        return Inferred(Teacher(), "the data have no targets: outputs are compared with the original's")
    values = main_tensor(output)
    if target.is_complex() or target.is_quantized:
        raise ObjectiveError(f"targets of type {target.dtype} mean nothing known: give objective=")
    if target.is_floating_point() or target.dtype == torch.bool:
        return _of_numbers(values, target)
    named = isinstance(batch, Mapping) and (isinstance(output, Mapping) or hasattr(output, "logits"))
    if named and values.dim() == 3 and target.shape == values.shape[:2]:
        return _of_tokens(values, target, batch)
    fits = [axis for axis in (1, -1) if _fits(values, target, axis)]
    if len(fits) == 2 and values.dim() > 2:
        raise ObjectiveError(
            f"labels {tuple(target.shape)} fit outputs {tuple(values.shape)} with the classes along the second axis "
            "and along the last: say which, objective=Classification(axis=1) or axis=-1 (--objective classification or "
            "token-classification)"
        )
    if fits and values.shape[fits[0]] > 1:
        areas = values.dim() >= 4
        if fits[0] == -1 and values.dim() > 2:
            return Inferred(TokenClassification(), "one class index for each position, classes along the last axis")
        what = "pixel" if areas else "sample" if values.dim() == 2 else "position"
        return Inferred(Classification(areas=areas), f"one class index for each {what}")
    if values.numel() == target.numel() and len(values) == len(target):
        if _binary(target) and target.numel():
            return Inferred(MultiLabel(), "targets 0 and 1, one for each output")
        return Inferred(Regression(), "one number for each output")
    raise ObjectiveError(
        f"targets of shape {tuple(target.shape)}, {target.dtype}, do not fit outputs {tuple(values.shape)}: class "
        "indices (N, …) for outputs (N, classes, …), or one number for each output, were expected; give objective="
    )


def _of_numbers(values: Tensor, target: Tensor) -> Inferred:
    if values.numel() != target.numel() or len(values) != len(target):
        raise ObjectiveError(
            f"targets of shape {tuple(target.shape)}, {target.dtype}, do not fit outputs {tuple(values.shape)}: "
            "one number for each output was expected; class labels are integers (.long())"
        )
    if target.dtype == torch.bool or _binary(target):
        return Inferred(MultiLabel(), "targets 0 and 1, one for each output")
    sums = target.double().sum(1) if target.dim() == 2 and target.shape[1] > 1 else None
    if sums is not None and bool((target >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
        return Inferred(Classification(), "probabilities of the classes for each sample")
    return Inferred(Regression(), "one number for each output")


def _binary(target: Tensor) -> bool:
    return bool(((target == 0) | (target == 1)).all())


def _of_tokens(values: Tensor, target: Tensor, batch: Mapping[str, Any]) -> Inferred:
    tokens = batch.get("input_ids")
    kept = target != IGNORE
    if isinstance(tokens, Tensor) and tokens.shape == target.shape and bool(kept.any()):
        if bool((tokens.to(target.device)[kept] == target[kept]).all()):
            return Inferred(CausalLanguageModel(), "the labels are the input tokens: each one predicts the next")
        if not bool(kept.all()) and int(kept.sum()) * 2 < kept.numel() and values.shape[-1] > int(tokens.max()):
            return Inferred(MaskedLanguageModel(), "labels at some of the tokens only: these were masked")
    return Inferred(TokenClassification(), "one class index for each token")


def _fits(values: Tensor, target: Tensor, axis: int) -> bool:
    return values.dim() >= 2 and values.movedim(axis, -1).shape[:-1] == target.shape


_BUILT_IN: tuple[Objective, ...] = (
    Classification(), TokenClassification(), MultiLabel(), Regression(), CausalLanguageModel(), MaskedLanguageModel(),
    Embedding(), Teacher(),
)  # fmt: skip
NAMED: dict[str, Objective] = {each.name: each for each in _BUILT_IN} | {"segmentation": Classification(areas=True)}


def register(objective: Objective) -> Objective:
    """Make an objective known by its name, to ``--objective`` and to files that name it; returns it."""
    NAMED[objective.name] = objective
    return objective


def objective_named(name: str | Objective) -> Objective:
    """The objective called ``name``; one that is an objective already is returned as it is."""
    if isinstance(name, Objective):
        return name
    if name in NAMED:
        return NAMED[name]
    raise ObjectiveError(f"no objective named {name!r}; there are {', '.join(NAMED)}")


def floating(output: Any) -> bool:
    """Whether anything in an output can be compared."""
    return bool(counting_tensors(output))
