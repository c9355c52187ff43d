"""What can be trained at all, tried on a few samples before any work."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from rankfold.batches import forward
from rankfold.costs import evaluating
from rankfold.objectives import Objective
from rankfold.run.processes.team import Team
from rankfold.sites import stored
from rankfold.train import feed
from rankfold.train.errors import TrainingError
from rankfold.train.evaluation import choose, materialised, named
from rankfold.train.feed import Feed
from rankfold.train.randomness import seeded
from rankfold.train.recipe import Recipe
from rankfold.train.step.precision import arithmetic

_SCALED_ON = 256  # samples whose outputs say what a change of them is divided by


@dataclass(frozen=True, eq=False)
class Checked:
    """What was found out: the objective, a batch of two samples, and what changes of its answers are divided by."""

    objective: Objective
    sample: Any
    scales: tuple[float, ...] | None


def checked(
    model: nn.Module,
    data: Feed,
    validation: Any,
    recipe: Recipe,
    teacher: nn.Module | None,
    objective: Objective | str | None,
    team: Team,
) -> Checked:
    """TrainingError for what cannot be trained; otherwise what is to be known before."""
    if not data.is_batched:
        team.check(recipe.batch_size)
    if recipe.schedule == "plateau" and validation is None:
        raise TrainingError("the schedule plateau follows the validation loss: give validation data")
    feed.check(data.data, "train", again=True)
    if validation is not None:
        feed.check(validation, "validation", again=True)
    materialised(model)
    for name, parameter in model.named_parameters():
        if not is_lazy(parameter) and not all(
            bool(part.double().isfinite().all()) for part in stored(parameter.detach())
        ):
            raise TrainingError(f"{name} is NaN or infinite: repair or reload the weights before training")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TrainingError(
            "no parameter of the model requires a gradient, so that there is nothing to train: "
            "requires_grad_(True) makes them trainable"
        )
    chosen = choose(model, data.data, objective).objective
    if teacher is None and objective is None and not chosen.labelled and (said := feed.misread(data.data)):
        raise TrainingError(f"train data: {said}")
    _check_teacher(recipe, teacher, chosen)
    _check_smoothing(recipe, chosen)
    sample = _sample(data, 2)
    output = _output(model, sample, recipe, "the model")
    with named("train"):
        if chosen.labelled:
            chosen.losses(output, sample)
        answers = [tuple(answer.values.shape) for answer in chosen.answers(output, sample)]
    scales = None
    if teacher is not None:
        taught = [
            tuple(a.values.shape) for a in chosen.answers(_output(teacher, sample, recipe, "the teacher"), sample)
        ]
        if taught != answers:
            raise TrainingError(
                f"the outputs of teacher and model differ in shape, {_listed(taught)} and {_listed(answers)}: "
                "give the network that the model was made from, or use recipe.without_teacher()"
            )
        many = _sample(data, _SCALED_ON)
        with evaluating(teacher):
            scales = chosen.scales(forward(teacher, many), many)
    for role, part in (("train", data.data), ("validation", validation)):
        tensors = feed.in_memory(part)
        if tensors is not None and tensors.labels is not None and chosen.labelled:
            with named(role):
                chosen.check(output, tensors.labels)
    return Checked(chosen, sample, scales)


def _check_teacher(recipe: Recipe, teacher: nn.Module | None, objective: Objective) -> None:
    if not objective.labelled and teacher is None:
        raise TrainingError(
            f"the objective {objective} compares outputs with those of the original network, and none is given: "
            "give teacher=, or data with targets"
        )
    if recipe.distill is not None and teacher is None:
        raise TrainingError(
            "the recipe distils, and no teacher is given: give teacher=, or use recipe.without_teacher()"
        )
    if recipe.distill is None and teacher is not None and objective.labelled:
        raise TrainingError(
            "a teacher is given, and the recipe does not distil: set distill in the recipe, or leave teacher= out"
        )


def _check_smoothing(recipe: Recipe, objective: Objective) -> None:
    """TrainingError where the recipe asks for smooth labels and nothing would be smoothed."""
    if not recipe.label_smoothing:
        return
    given = f"the recipe has label_smoothing={recipe.label_smoothing:g}, and"
    if not (objective.labelled and objective.smooths):
        raise TrainingError(
            f"{given} the objective {objective} has no labels of classes to smooth: leave label_smoothing out"
        )
    if recipe.distill is not None and recipe.distill.weight == 1:
        raise TrainingError(
            f"{given} distills with weight 1, by which labels do not count: leave label_smoothing out, or give Distill "
            "a weight below 1"
        )


def _listed(shapes: list[tuple[int, ...]]) -> str:
    return ", ".join(map(str, shapes))


def _output(model: nn.Module, sample: Any, recipe: Recipe, title: str) -> Any:
    """What `model` answers in its own precision; TrainingError if it cannot in that of the recipe."""
    with evaluating(model):
        output = forward(model, sample)
        if recipe.precision != "float32":
            try:
                with arithmetic(recipe.precision, next(model.parameters()).device):
                    forward(model, sample)
            except RuntimeError as error:
                cause = " ".join(str(error).split())
                raise TrainingError(
                    f"{title} cannot compute in bfloat16 ({cause}): give a recipe with precision 'float32'"
                ) from error
    return output


def _sample(data: Feed, count: int) -> Any:
    """One batch, of `count` samples where the data are not in batches, drawn without a trace in any random state."""
    with seeded(0, torch.device("cpu"), data.generators()):
        return next(iter(Feed(data.data, count, None).epoch(torch.Generator())))
