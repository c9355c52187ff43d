"""What can be trained at all, tried on two samples before any work."""

from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from rankfold.batches import forward, logits_of
from rankfold.costs import evaluating
from rankfold.train import feed
from rankfold.train.errors import TrainingError
from rankfold.train.evaluation import materialised, rows
from rankfold.train.feed import Feed
from rankfold.train.parallel import Team
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
        raise TrainingError("no parameter of the model requires a gradient: there is nothing to train")
    if recipe.distill is not None and teacher is None:
        raise TrainingError("the recipe distils but no teacher is given: pass teacher, or recipe.without_teacher()")
    if recipe.distill is None and teacher is not None:
        raise TrainingError("a teacher is given but the recipe does not distil: set distill, or pass no teacher")
    sample = _sample(data)
    with evaluating(model):
        logits = logits_of(forward(model, sample))
    if teacher is not None:
        with evaluating(teacher):
            taught = logits_of(forward(teacher, sample))
        if taught.shape != logits.shape:
            raise TrainingError(
                f"teacher and model differ in their outputs, {tuple(taught.shape)} and {tuple(logits.shape)}"
            )
    rows(logits, feed.labels(sample, "train").to(logits.device), "train")
    for role, part in (("train", data.data), ("validation", validation)):
        tensors = feed.in_memory(part)
        if tensors is not None:
            feed.check_range(tensors.labels, logits.shape[-1], role)
    return sample


def _sample(data: Feed) -> Any:
    """One batch, drawn without a trace in any random state."""
    with seeded(0, torch.device("cpu"), data.generators()):
        return next(iter(Feed(data.data, 2, None).epoch(torch.Generator())))
