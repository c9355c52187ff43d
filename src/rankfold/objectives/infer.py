"""Which objective data and model belong to, where they tell; and a sentence that says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rankfold.batches import Listed, labels_of
from rankfold.objectives.answer import counting_tensors, indices, main_tensor, named_input
from rankfold.objectives.base import Objective
from rankfold.objectives.evaluation import ObjectiveError
from rankfold.objectives.kinds.classification import IGNORE, Classification, TokenClassification
from rankfold.objectives.kinds.language import CausalLanguageModel, MaskedLanguageModel
from rankfold.objectives.kinds.multilabel import MultiLabel, is_binary
from rankfold.objectives.kinds.regression import Regression, alike
from rankfold.objectives.kinds.teacher import Teacher
from rankfold.objectives.names import objective_named

_OTHERWISE = (
    "give objective=, with a loss of your own (rankfold.objective; --objective package.module:NAME), or 'teacher' "
    "(--objective teacher), by which outputs are compared with those of the original"
)


@dataclass(frozen=True)
class Inferred:
    """An objective, and why it was taken."""

    objective: Objective
    why: str

    def __str__(self) -> str:
        return f"objective: {self.objective} ({self.why})"


def infer(output: Any, batch: Any, known: Sequence[Tensor] = ()) -> Inferred:
    """The objective that an output and the targets of its batch fit; ``ObjectiveError`` where two fit equally well.

    ``known``: all targets of the data, in parts, as far as they are in memory: numbers that are 0 and 1 in one batch
    alone, or sum to 1 there, are no labels. Where they come later, the objective itself refuses them.

    Without targets it is ``Teacher``, but for the language models of transformers, which say by the type of their
    output what they are; class axes follow from the shapes, as in torch's cross entropy.
    """
    target, kind = labels_of(batch), type(output).__name__  # which is MoeCausalLMOutputWithPast, and the like
    tokens = named_input(batch, "input_ids") if target is None else target
    if "CausalLMOutput" in kind and _one_for_each(output, tokens):  # so is what gives letters of a recording (CTC)
        return Inferred(CausalLanguageModel(), "the model gives next tokens")
    if target is None:
        return Inferred(Teacher(), "the data have no targets: outputs are compared with those of the original")
    if "MaskedLMOutput" in kind:
        return Inferred(MaskedLanguageModel(), "the model gives masked tokens")
    if "Seq2SeqLMOutput" in kind:
        return Inferred(CausalLanguageModel(shift=False), "the model gives tokens at the places of its labels")
    found, beside = _of_targets(main_tensor(output), target, batch, known), unseen_outputs(output)
    return replace(found, why=f"{found.why}; {beside}") if beside else found


def _one_for_each(output: Any, tokens: Any) -> bool:
    """Whether there are scores for each of the tokens, of which the output knows every one."""
    scores = main_tensor(output)
    if not isinstance(tokens, Tensor) or scores.dim() != 3 or tokens.shape != scores.shape[:2]:
        return False
    return not tokens.is_floating_point() and (not tokens.numel() or int(tokens.max()) < scores.shape[-1])


def unseen_outputs(output: Any) -> str:
    """Which of several outputs counts, and how all of them would; empty for a single one."""
    main, places = main_tensor(output), counting_tensors(output)
    others = [name for name, tensor in places if tensor is not main]
    if not others or len(others) == len(places):
        return ""
    counts = next(name for name, tensor in places if tensor is main)
    return (
        f"of the model's {len(places)} outputs {counts} counts, and {', '.join(others)} may change unseen: "
        "all count with --objective teacher"
    )


def _of_targets(values: Tensor, target: Any, batch: Any, known: Sequence[Tensor]) -> Inferred:
    if not isinstance(target, Tensor) or target.is_complex() or target.is_quantized:
        given = target.dtype if isinstance(target, Tensor) else type(target).__name__
        tensors = "make each target one tensor (torch.tensor(labels)), " if isinstance(target, list | tuple) else ""
        if isinstance(target, Listed):
            given, tensors = f"{type(target[0]).__name__}, one for each sample,", ""
        raise ObjectiveError(f"targets of type {given} have no known meaning: {tensors}{_OTHERWISE}")
    if target.is_floating_point() or target.dtype == torch.bool:
        return _of_numbers(values, target, known)
    if values.dim() == 3 and target.shape == values.shape[:2]:
        tokens = _of_tokens(values, target, batch)
        if tokens is not None:
            return tokens
    if target.dim() > 1 and target.shape[-1] == 1 and target.dim() == values.dim() and values.shape[-1] > 1:
        target = target.squeeze(-1)
    fits = [axis for axis in (1, -1) if _fits(values, target, axis)]
    if len(fits) == 2 and values.dim() > 2:
        raise ObjectiveError(
            f"labels of shape {tuple(target.shape)} fit outputs of shape {tuple(values.shape)} with the classes "
            "along the second axis or along the last: say which, with objective=Classification(axis=1) or "
            "axis=-1 (--objective classification or token-classification; segmentation for pixels)"
        )
    if fits and values.shape[fits[0]] > 1:
        if fits[0] == -1 and values.dim() > 2:
            return Inferred(TokenClassification(), "one class index for each position, classes along the last axis")
        if values.dim() >= 4:
            return Inferred(objective_named("segmentation"), "one class index for each pixel")
        what = "sample" if values.dim() == 2 else "position"
        return Inferred(Classification(), f"one class index for each {what}")
    if alike(values, target):
        return _of_yes_and_no(target, known) or Inferred(Regression(), "one number for each output")
    raise ObjectiveError(
        f"targets of shape {tuple(target.shape)}, {_dtype(target)}, do not fit outputs of shape "
        f"{tuple(values.shape)}: give class indices (N, …) for outputs (N, classes, …), or one number for each "
        f"output; or {_OTHERWISE}, or embedding, for vectors that are compared with one another"
    )


def _of_numbers(values: Tensor, target: Tensor, known: Sequence[Tensor]) -> Inferred:
    if not alike(values, target):
        raise ObjectiveError(
            f"targets of shape {tuple(target.shape)}, {_dtype(target)}, do not fit outputs of shape "
            f"{tuple(values.shape)}: give one number for each output{_counts(values, target)}; or {_OTHERWISE}"
        )
    if target.dtype == torch.bool:
        return Inferred(MultiLabel(), f"targets 0 and 1, one for each output{_of_classes(target)}")
    labels = _of_yes_and_no(target, known)
    if labels is not None:
        return labels
    if target.numel() and all(bool(part.isnan().all()) for part in (target, *known)):
        raise ObjectiveError(
            "every target is NaN, which is unknown, and does not tell what the others are: say it with objective= "
            "(--objective), regression for numbers or multi-label for 0 and 1"
        )
    if all(_sum_to_one(part) for part in (target, *known)):
        return Inferred(Classification(), "probabilities of the classes for each sample")
    return Inferred(Regression(), "one number for each output")


def _of_yes_and_no(target: Tensor, known: Sequence[Tensor]) -> Inferred | None:
    """Of numbers that are 0 and 1 wherever they are known; None for others."""
    parts = (target, *known)
    if not all(map(is_binary, parts)) or all(bool(part.isnan().all()) for part in parts):
        return None
    return Inferred(MultiLabel(told=True), f"targets 0 and 1, one for each output{_of_classes(*parts)}")


def _sum_to_one(target: Tensor) -> bool:
    if target.dim() != 2 or target.shape[1] < 2:
        return False
    sums = target.double().sum(1)
    return bool((target >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-4)


def _of_classes(*parts: Tensor) -> str:
    """What to say where exactly one target of each sample or position is 1, as it is of classes."""
    if any(part.dim() < 2 or part.shape[1] < 2 or not bool((part.sum(1) == 1).all()) for part in parts):
        return ""
    name, each = ("classification", "sample") if parts[0].dim() == 2 else ("segmentation", "position")
    return f"; exactly one of each {each} is 1: if that is its class, give --objective {name}"


def _counts(values: Tensor, target: Tensor) -> str:
    """What differs between them, in a few words."""
    if target.dim() == values.dim() > 1 and len(target) == len(values):
        if target.dim() == 2:
            return f", {values.shape[1]} a sample, not {target.shape[1]}"
        return ""
    return "; class labels are integers (.long())"


def _dtype(target: Tensor) -> str:
    return str(target.dtype).removeprefix("torch.")


def _of_tokens(values: Tensor, target: Tensor, batch: Any) -> Inferred | None:
    """Of outputs (N, T, C) and labels (N, T); None where the batch does not show what they are."""
    tokens, kept = named_input(batch, "input_ids"), indices(target) != IGNORE
    named = tokens is not None
    if tokens is None and isinstance(batch, tuple | list) and isinstance(batch[0], Tensor):
        tokens = batch[0]
    if tokens is not None and not tokens.is_floating_point() and tokens.shape == target.shape and bool(kept.any()):
        words, tokens = values.shape[-1] > int(tokens.max()), tokens.to(target.device)
        if bool((tokens[kept] == target[kept]).all()):
            return Inferred(CausalLanguageModel(), "the labels are the input tokens: each one predicts the next")
        if target.shape[1] > 2 and bool((tokens[:, 1:] == target[:, :-1])[kept[:, :-1]].all()) and words:
            return Inferred(CausalLanguageModel(shift=False), "the labels are the input tokens, shifted by one place")
        if named and int(kept.sum()) * 2 < kept.numel() and words:
            return Inferred(MaskedLanguageModel(), "only some of the tokens have labels: these were masked")
    return Inferred(TokenClassification(), "one class index for each token") if named else None


def _fits(values: Tensor, target: Tensor, axis: int) -> bool:
    return values.dim() >= 2 and values.movedim(axis, -1).shape[:-1] == target.shape
