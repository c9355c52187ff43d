"""The training loop: any model, any data, any objective, one recipe; resumable, reproducible, silent."""

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import forward, size_of, tensors_in
from rankfold.costs import evaluating
from rankfold.objectives import Evaluation, Figures, Objective
from rankfold.observe.passes import fitting_layout, laid_out
from rankfold.run.ordinary import rounded_anew
from rankfold.run.processes.memory import settled
from rankfold.run.processes.team import Team, joined
from rankfold.run.progress import showing_epochs
from rankfold.run.seeds import derived_seed
from rankfold.train import checkpoint
from rankfold.train.breakdown import breakdown
from rankfold.train.check import Checked, checked
from rankfold.train.content import content_of
from rankfold.train.errors import TrainingError
from rankfold.train.evaluation import evaluate, named
from rankfold.train.feed import Feed
from rankfold.train.history import Epoch, History, Progress, ProgressCallback
from rankfold.train.randomness import seeded
from rankfold.train.recipe import Plateau, Recipe
from rankfold.train.run import Make, Run
from rankfold.train.step.alone import without_variance
from rankfold.train.step.precision import arithmetic
from rankfold.train.step.schedule import decay_factor, plateau_factor, rate_factor


@showing_epochs("training")
def fit(
    model: nn.Module,
    train: Any,
    validation: Any | None,
    recipe: Recipe,
    *,
    teacher: nn.Module | None = None,
    directory: str | Path | None = None,
    progress: ProgressCallback | None = None,
    objective: Objective | str | None = None,
    optimizer: Make | None = None,
) -> History:
    """Train ``model`` in place on ``train`` and leave it with the weights of its best epoch on ``validation``.

    Parameters that do not require a gradient stay as they are; module modes, gradients and the global random state are
    left as found. A loss that is not finite ends training with a sentence in ``History.stopped`` and the best weights
    so far; KeyboardInterrupt passes through, also with the best weights so far.

    Under torchrun, or in a process group of torch.distributed, every process makes this same call: each takes its slice
    of the same batches, gradients are averaged, and together they compute what one process does, up to rounding; batch
    normalisation sees its slice alone. The first process validates, writes and reports progress; all read
    ``directory``.

    Args:
        model: any module.
        train: as ``data`` in ``rankfold.evaluate``, to be read several times. A DataLoader's own batches and order are
            kept (less a batch of one sample, of which batch normalisation has no variance); other data are shuffled and
            cut into ``recipe.batch_size``.
        validation: chooses the epoch; the start counts as epoch 0, and is kept if no epoch is better. None: the last
            epoch is kept.
        recipe: everything else that training needs to know.
        teacher: in eval mode; needed where ``recipe.distill`` is given, or where data have no targets.
        directory: ``checkpoint-*.pt`` is written there after every epoch, and ``metrics.jsonl`` holds a line for each.
            The same call resumes after an interruption and computes, on the same machine with the same number of
            threads, the very same weights; a finished run is only read back. Weights that the model begins with are not
            compared, those of the checkpoint take their place.
        progress: called as ``progress(step)`` after every batch, with a ``rankfold.train.Progress``. After the last
            batch of an epoch it is called once the epoch is validated and saved, and ``step.finished`` has its record;
            before, ``finished`` is None: whoever wants epochs alone looks at that. What it raises ends the training.
        objective: as in ``rankfold.evaluate``; its losses are minimised, with a teacher also the distance from its
            outputs.
        optimizer: makes the optimizer in place of the recipe's own, from the model, one of torch's classes, ``groups``
            and settings: ``functools.partial(rankfold.Dlrt, tolerance=0.1)`` for a model that ``rankfold.dlrt_`` has
            prepared.

    Returns:
        The history: losses and figures of every epoch, and the best one.

    Raises:
        TrainingError: before any work: empty data, targets that do not fit the model's outputs (for data that are not
            in memory, when the batch comes), data that can be read only once, nothing to train, a missing or unused
            teacher, a directory of another run: of another recipe, objective, model or teacher, or of other data, as
            far as these are in memory.

    Cost: a training pass for each epoch, and one over ``validation``; an epoch at most is lost by an interruption.

    Example:
        >>> x = torch.randn(64, 4); y = (x[:, 0] > 0).long()
        >>> history = rf.fit(nn.Linear(4, 2), (x, y), (x, y), rf.Recipe(epochs=2, batch_size=16))
        >>> [epoch.epoch for epoch in history.epochs]
        [1, 2]
    """
    settled()
    if not isinstance(recipe, Recipe):
        raise TrainingError(
            f"recipe: give a rankfold.Recipe, not a {type(recipe).__name__}: Recipe.from_dict makes one of a dict"
        )
    data = Feed(train, recipe.batch_size, recipe.augment)
    device = _device(model)
    with (
        joined(device, TrainingError) as team,
        checkpoint.claimed(directory, team),
        _left_as_found(model),
        rounded_anew(),
        seeded(recipe.seed, device, data.generators()),
    ):
        with team.agreed():
            known = checked(model, data, validation, recipe, teacher, objective, team)
            layout = fitting_layout(model, known.sample)
            # the first process alone writes, and looks at what it finds
            content = content_of(train, validation, teacher) if directory is not None and team.first else None
            run = Run.begin_or_resume(
                model, recipe, directory, len(data), known.objective.name, team, optimizer, content
            )
        resumed_from = run.epoch
        if team.summed(resumed_from) != [resumed_from * team.size]:
            raise TrainingError(
                f"the processes find different checkpoints in {directory}: give a directory that all of them share"
            )
        progress = progress if team.first else None
        network = team.wrapped(model, laid_out(known.sample, layout))
        setting = _Setting(model, network, teacher, recipe, known, device, layout, team)
        try:
            if run.epoch == 0:
                if validation is not None:
                    run.start = team.shared(lambda: setting.evaluated(validation))
                team.shared(run.save)
            stopped = None
            while run.epoch < recipe.epochs and stopped is None:
                stopped = _epoch(setting, data, validation, run, progress)
            warning = team.shared(lambda: breakdown(model, run.start, run.epochs, run.best_epoch))
            warning = "; ".join(filter(None, (warning, run.lacking()))) or None
            run.share_best()
        finally:
            run.restore_best()
    return History(run.start, tuple(run.epochs), run.best_epoch, stopped, resumed_from, warning)


@dataclass(frozen=True, eq=False)
class _Setting:
    model: nn.Module
    network: nn.Module  # the model, or what averages its gradients over the processes
    teacher: nn.Module | None
    recipe: Recipe
    known: Checked
    device: torch.device
    layout: torch.memory_format
    team: Team

    def evaluated(self, validation: Any) -> Evaluation:
        objective = self.known.objective
        teacher = None if objective.labelled else self.teacher  # what judges is enough to choose by
        return evaluate(self.model, validation, role="validation", objective=objective, teacher=teacher)


def _epoch(
    setting: _Setting, data: Feed, validation: Any | None, run: Run, progress: ProgressCallback | None
) -> str | None:
    """One epoch of training, its validation and its checkpoint; or the sentence that ends the run."""
    recipe, model, team = setting.recipe, setting.model, setting.team
    number, batches, began = run.epoch + 1, len(data), time.perf_counter()
    total_steps, step = recipe.epochs * batches, run.epoch * batches
    seed, peak = derived_seed(recipe.seed, number), _peak(recipe, run)
    generator = torch.Generator().manual_seed(seed)
    figures = setting.known.objective.figures()
    loss_sum, count, rate = 0.0, 0.0, 0.0
    model.train()
    with seeded(seed, setting.device, data.generators()):
        stream = data.epoch(generator)
        for index in itertools.count(1):
            with team.agreed():
                batch = next(stream, None)
                parts = None if batch is None else _forward(setting, batch, step, figures)
            if batch is None or parts is None:
                break
            if _too_small(team, batch, parts):
                continue
            totals = team.summed(*(number for part in parts for number in (part.total, part.count)))
            counts = [max(found, 1) for found in totals[1::2]]
            losses = sum(part.weight * total / n for part, total, n in zip(parts, totals[::2], counts, strict=True))
            rate = peak * rate_factor(recipe.schedule, min(step, total_steps - 1), total_steps, recipe.warmup)
            if not isfinite(losses):
                bad = any(x.is_floating_point() and not bool(x.isfinite().all()) for x in tensors_in(batch))
                helps = "a smaller learning_rate, or clip_norm, usually helps"
                return (
                    f"training stopped in epoch {number}, batch {index} of {batches}: the loss is {losses} at learning "
                    f"rate {rate:.3g}; {'the batch holds NaN or infinity: look for bad samples' if bad else helps}"
                )
            # Gradients are averaged over the processes: what counts is the share of each in the batch.
            shares = [part.weight * (part.count * team.size / n) for part, n in zip(parts, counts, strict=True)]
            loss = torch.stack([share * part.loss for share, part in zip(shares, parts, strict=True)]).sum()
            decay = recipe.weight_decay * decay_factor(recipe.relax, step, total_steps)
            _update(setting, run, loss, rate, decay)
            step += 1
            loss_sum, count = loss_sum + losses * totals[1], count + totals[1]
            if progress is not None and index < batches:
                progress(Progress(number, recipe.epochs, index, batches, losses))
    if count == 0:
        raise TrainingError(
            "train data: an epoch gave no batch that teaches anything: give at least one sample, and with batch "
            "normalisation batches of at least two"
        )
    whole = setting.known.objective.figures()
    for sums in team.gathered(figures.sums):
        whole.add_sums(sums)

    run.settle()

    def closed() -> Epoch:
        with run.averaged():
            result = None if validation is None else setting.evaluated(validation)
        seconds = time.perf_counter() - began
        with named("train"):
            return Epoch(number, loss_sum / count, whole.result().figures, result, rate, seconds)

    record = team.shared(closed)
    with team.agreed():
        run.finish(record)
        if progress is not None:
            progress(Progress(number, recipe.epochs, batches, batches, loss_sum / count, record))
    return None


def _peak(recipe: Recipe, run: Run) -> float:
    """The learning rate that the schedule scales in the next epoch."""
    if recipe.schedule != "plateau":
        return recipe.learning_rate
    losses = [epoch.validation_loss for epoch in run.epochs if epoch.validation_loss is not None]
    return recipe.learning_rate * plateau_factor(losses, recipe.plateau or Plateau())


@dataclass(frozen=True, eq=False)
class _Part:
    """One term of the loss on this process's slice of a batch: `weight` times the mean `loss` of `count` positions."""

    loss: Tensor
    count: int
    weight: float

    @property
    def total(self) -> float:
        return self.loss.item() * self.count


def _too_small(team: Team, batch: Any, parts: list[_Part]) -> bool:
    """Whether a process had a single sample, of which its batch normalisation has no variance: then none trains."""
    if size_of(batch) >= 2 * team.size:
        return False
    return team.summed(0 if parts else 1) != [0]


def _forward(setting: _Setting, batch: Any, step: int, figures: Figures) -> list[_Part]:
    """The terms of the loss; none for a single sample that batch normalisation cannot be trained on."""
    recipe, team, objective = setting.recipe, setting.team, setting.known.objective
    batch = team.share(batch)
    given = laid_out(batch, setting.layout)
    with arithmetic(recipe.precision, setting.device), team.own_draws(recipe.seed, step):
        taught = None if setting.teacher is None else _teach(setting.teacher, given)
        try:
            output = forward(setting.network, given)
        except ValueError as error:
            if not without_variance(error, given):
                raise
            return []
    with named("train"):
        parts = loss_parts(objective, output, batch, taught, recipe, setting.known.scales)
        plain = objective.labelled and taught is None and not recipe.label_smoothing
        figures.add(output, batch, taught, known=(parts[0].loss, parts[0].count) if plain else None, rows=False)
    return parts


def loss_parts(
    objective: Objective, output: Any, batch: Any, taught: Any, recipe: Recipe, scales: tuple[float, ...] | None = None
) -> list[_Part]:
    """What is minimised: (1 − w) · losses + w · distance from the teacher (Hinton, Vinyals, Dean 2015, section 2); the
    distance alone where there are no targets."""
    how = recipe.distill
    if taught is None:
        return [_Part(*objective.losses(output, batch, recipe.label_smoothing), 1.0)]
    temperature, weight = (1.0, 1.0) if how is None else (how.temperature, how.weight)
    weight = weight if objective.labelled else 1.0
    parts = [_Part(*objective.distances(output, taught, batch, temperature, scales), weight)]
    if weight < 1:
        parts.append(_Part(*objective.losses(output, batch, recipe.label_smoothing), 1 - weight))
    return parts


def _update(setting: _Setting, run: Run, loss: Tensor, rate: float, decay: float) -> None:
    for group in run.optimizer.param_groups:
        group["lr"] = rate * group.get("rate_scale", 1.0)
        if group["weight_decay"]:  # it only ever falls; exempt groups have none
            group["weight_decay"] = decay
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    run.clip()
    run.optimizer.step()
    run.average()


def _teach(teacher: nn.Module, batch: Any) -> Any:
    with torch.no_grad(), evaluating(teacher):
        return forward(teacher, batch)


def _device(model: nn.Module) -> torch.device:
    return next(parameter.device for parameter in model.parameters())


@contextmanager
def _left_as_found(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for parameter, gradient in gradients:
            parameter.grad = gradient
