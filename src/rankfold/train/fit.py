"""The training loop: any model, any labelled data, one recipe; resumable, reproducible, silent."""

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankfold.batches import forward, logits_of
from rankfold.costs import evaluating
from rankfold.run.progress import showing_epochs
from rankfold.run.seeds import derived_seed
from rankfold.run.team import Team, joined
from rankfold.train import checkpoint, feed
from rankfold.train.breakdown import breakdown
from rankfold.train.check import checked
from rankfold.train.errors import TrainingError
from rankfold.train.evaluation import evaluate, rows
from rankfold.train.feed import Feed
from rankfold.train.history import Epoch, History, Progress, ProgressCallback
from rankfold.train.layout import fitting_layout, laid_out
from rankfold.train.precision import arithmetic
from rankfold.train.randomness import seeded
from rankfold.train.recipe import Distill, Plateau, Recipe
from rankfold.train.run import Run
from rankfold.train.schedule import decay_factor, plateau_factor, rate_factor


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
) -> History:
    """Train `model` in place on `train` and leave it with the weights of its best epoch on `validation`.

    Data are as in `evaluate`; a DataLoader's own batches and order are kept, other data are shuffled and cut
    into `recipe.batch_size`. Parameters that do not require a gradient stay as they are; module modes,
    gradients and the global random state are left as found. Without `validation` the last epoch is kept;
    with it the start counts as epoch 0 and is kept if no epoch is better (accuracy, then loss). `teacher`
    (eval mode, no gradients) is needed where `recipe.distill` is given.

    With `directory`, `checkpoint-*.pt` is written after every epoch, and `metrics.jsonl` holds a line per
    epoch. The same call with the same directory resumes after an interruption and computes, on the same
    machine with the same number of threads, the very same weights; a finished run is only read back. (Data
    whose own randomness lives in persistent worker processes are beyond this.)

    Under torchrun, or in a process group of torch.distributed, every process makes this same call. Each takes its
    slice of the same batches, gradients are averaged (DistributedDataParallel), and together they compute what one
    process does, up to rounding; batch normalisation sees its slice alone. The first process validates, writes
    and reports progress; all read `directory`.

    A loss that is not finite ends training: a sentence in `History.stopped`, and the best weights so far.
    KeyboardInterrupt passes through, also with the best weights so far.
    Raises TrainingError before any work: empty data, labels outside the model's outputs (for data that are
    not in memory: when the batch comes), nothing to train, a missing or unused teacher, a directory that
    holds another run, a batch size that the processes cannot share.
    """
    data = Feed(train, recipe.batch_size, recipe.augment)
    device = _device(model)
    with (
        joined(device, TrainingError) as team,
        checkpoint.claimed(directory, team),
        _left_as_found(model),
        seeded(recipe.seed, device, data.generators()),
    ):
        with team.agreed():
            sample = checked(model, data, validation, recipe, teacher, team)
            layout = fitting_layout(model, sample)
            run = Run.begin_or_resume(model, recipe, directory, len(data), team)
        resumed_from = run.epoch
        if team.summed(resumed_from) != [resumed_from * team.size]:
            raise TrainingError(f"the processes find different checkpoints in {directory}: all must see the same files")
        progress = progress if team.first else None
        setting = _Setting(model, team.wrapped(model, laid_out(sample, layout)), teacher, recipe, device, layout, team)
        try:
            if run.epoch == 0:
                if validation is not None:
                    run.start = team.shared(lambda: evaluate(model, validation, role="validation"))
                team.shared(run.save)
            stopped = None
            while run.epoch < recipe.epochs and stopped is None:
                stopped = _epoch(setting, data, validation, run, progress)
            warning = team.shared(lambda: breakdown(model, run.start, run.epochs, run.best_epoch))
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
    device: torch.device
    layout: torch.memory_format
    team: Team


def _epoch(
    setting: _Setting, data: Feed, validation: Any | None, run: Run, progress: ProgressCallback | None
) -> str | None:
    """One epoch of training, its validation and its checkpoint; or the sentence that ends the run."""
    recipe, model, team = setting.recipe, setting.model, setting.team
    number, batches, began = run.epoch + 1, len(data), time.perf_counter()
    total, step = recipe.epochs * batches, run.epoch * batches
    seed, peak = derived_seed(recipe.seed, number), _peak(recipe, run)
    generator = torch.Generator().manual_seed(seed)
    loss_sum, correct, count, rate = 0.0, 0.0, 0.0, 0.0
    model.train()
    with seeded(seed, setting.device, data.generators()):
        stream = data.epoch(generator)
        for index in itertools.count(1):
            with team.agreed():
                batch = next(stream, None)
                outcome = None if batch is None else _forward(setting, batch, step)
            if outcome is None:
                break
            losses, hits, size = team.summed(*outcome.sums)
            rate = peak * rate_factor(recipe.schedule, min(step, total - 1), total, recipe.warmup)
            if not isfinite(losses):
                return (
                    f"training stopped in epoch {number}, batch {index} of {batches}: the loss is {losses} at "
                    f"learning rate {rate:.3g}; a smaller learning_rate, or clip_norm, is the usual remedy"
                )
            # Gradients are averaged over the processes: what counts is the share of each in the batch.
            decay = recipe.weight_decay * decay_factor(recipe.relax, step, total)
            _update(setting, run, outcome.loss * (outcome.size * team.size / size), rate, decay)
            step += 1
            loss_sum, correct, count = loss_sum + losses, correct + hits, count + size
            if progress is not None and index < batches:
                progress(Progress(number, recipe.epochs, index, batches, losses / size))
    if count == 0:
        raise TrainingError("train data: an epoch gave no batch; give at least one labelled sample")

    def closed() -> Epoch:
        with run.averaged():
            result = None if validation is None else evaluate(model, validation, role="validation")
        return Epoch(
            number,
            loss_sum / count,
            correct / count,
            None if result is None else result.loss,
            None if result is None else result.accuracy,
            rate,
            time.perf_counter() - began,
        )

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
class _Outcome:
    """Of this process's slice of a batch: mean `loss` of `size` rows, `correct` of them."""

    loss: Tensor
    correct: int
    size: int

    @property
    def sums(self) -> tuple[float, float, float]:
        return self.loss.item() * self.size, self.correct, self.size


def _forward(setting: _Setting, batch: Any, step: int) -> _Outcome:
    recipe, team = setting.recipe, setting.team
    batch = team.share(batch)
    target = feed.labels(batch, "train").to(setting.device)
    batch = laid_out(batch, setting.layout)
    with arithmetic(recipe.precision, setting.device), team.own_draws(recipe.seed, step):
        with torch.no_grad():
            taught = None if setting.teacher is None else _teach(setting.teacher, batch)
        logits = logits_of(forward(setting.network, batch))
    logits, target = rows(logits, target, "train")
    feed.check_range(target, logits.shape[1], "train")
    loss = _loss(logits, target, taught, recipe.distill, recipe.label_smoothing)
    return _Outcome(loss, int((logits.argmax(1) == target).sum()), len(target))


def _update(setting: _Setting, run: Run, loss: Tensor, rate: float, decay: float) -> None:
    for group in run.optimizer.param_groups:
        group["lr"] = rate * group.get("rate_scale", 1.0)
        if group["weight_decay"]:  # it only ever falls; exempt groups have none
            group["weight_decay"] = decay
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if setting.recipe.clip_norm is not None:
        nn.utils.clip_grad_norm_(run.trained, setting.recipe.clip_norm)
    run.optimizer.step()
    run.average()


def _teach(teacher: nn.Module, batch: Any) -> Tensor:
    with evaluating(teacher):
        logits = logits_of(forward(teacher, batch))
    return logits.reshape(-1, logits.shape[-1])


def _loss(logits: Tensor, target: Tensor, taught: Tensor | None, distill: Distill | None, smoothing: float) -> Tensor:
    """(1 − w)·CE + w·T²·KL(teacher ‖ model) at temperature T: Hinton, Vinyals, Dean 2015, section 2."""
    if distill is None or taught is None:
        return F.cross_entropy(logits, target, label_smoothing=smoothing)
    t, w = distill.temperature, distill.weight
    divergence = F.kl_div(
        F.log_softmax(logits / t, 1),
        F.log_softmax(taught.to(logits) / t, 1),
        reduction="batchmean",
        log_target=True,
    )
    loss = w * t * t * divergence
    if w < 1:
        loss = loss + (1 - w) * F.cross_entropy(logits, target, label_smoothing=smoothing)
    return loss


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
