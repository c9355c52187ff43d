"""What can be trained at all, tried on two samples before any work."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from rankfold.batches import forward, logits_of
from rankfold.costs import evaluating
from rankfold.run.team import Team
from rankfold.train import feed
from rankfold.train.errors import TrainingError
from rankfold.train.evaluation import materialised, rows
from rankfold.train.feed import Feed
from rankfold.train.precision import arithmetic
from rankfold.train.randomness import seeded
from rankfold.train.recipe import Recipe


def checked(
    model: nn.Module, data: Feed, validation: Any, recipe: Recipe, teacher: nn.Module | None, team: Team
) -> Any:
    """TrainingError for what cannot be trained; otherwise the batch of a few samples that was tried."""
    if not data.is_batched:
        team.check(recipe.batch_size)
    if recipe.schedule == "plateau" and validation is None:
        raise TrainingError("the schedule plateau follows the validation loss: give validation data")
    feed.check(data.data, "train")
    if validation is not None:
        feed.check(validation, "validation")
    materialised(model)
    for name, parameter in model.named_parameters():
        if not is_lazy(parameter) and not bool(parameter.detach().double().isfinite().all()):
            raise TrainingError(f"{name} holds NaN or infinity: mend the weights before training")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TrainingError(
            "no parameter of the model requires a gradient: there is nothing to train; requires_grad_(True) thaws it"
        )
    if recipe.distill is not None and teacher is None:
        raise TrainingError("the recipe distils but no teacher is given: pass teacher, or recipe.without_teacher()")
    if recipe.distill is None and teacher is not None:
        raise TrainingError("a teacher is given but the recipe does not distil: set distill, or pass no teacher")
    sample = _sample(data)
    logits = _logits(model, sample, recipe, "the model")
    if teacher is not None:
        taught = _logits(teacher, sample, recipe, "the teacher")
        if taught.shape != logits.shape:
            raise TrainingError(
                f"teacher and model differ in their outputs, {tuple(taught.shape)} and {tuple(logits.shape)}: give the "
                "network that the model was made from, or recipe.without_teacher()"
            )
    rows(logits, feed.labels(sample, "train").to(logits.device), "train")
    for role, part in (("train", data.data), ("validation", validation)):
        tensors = feed.in_memory(part)
        if tensors is not None:
            feed.check_range(tensors.labels, logits.shape[-1], role)
    return sample


def _logits(model: nn.Module, sample: Any, recipe: Recipe, title: str) -> Tensor:
    """What `model` answers in its own precision; TrainingError if it cannot in that of the recipe."""
    with evaluating(model):
        logits = logits_of(forward(model, sample))
        if recipe.precision != "float32":
            try:
                with arithmetic(recipe.precision, logits.device):
                    forward(model, sample)
            except RuntimeError as error:
                cause = " ".join(str(error).split())
                raise TrainingError(
                    f"{title} cannot compute in bfloat16 ({cause}): give a recipe with precision 'float32'"
                ) from error
    return logits


def _sample(data: Feed) -> Any:
    """One batch, drawn without a trace in any random state."""
    with seeded(0, torch.device("cpu"), data.generators()):
        return next(iter(Feed(data.data, 2, None).epoch(torch.Generator())))
