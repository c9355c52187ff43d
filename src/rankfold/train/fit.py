"""The training loop: any model, any labelled data, one recipe; resumable, reproducible, silent."""

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
from torch.nn.parameter import is_lazy

from rankfold.batches import forward, logits_of
from rankfold.costs import evaluating
from rankfold.train import feed
from rankfold.train.errors import TrainingError
from rankfold.train.evaluation import evaluate, materialised, rows
from rankfold.train.feed import Feed
from rankfold.train.history import Epoch, History, Progress, ProgressCallback
from rankfold.train.layout import fitting_layout, laid_out
from rankfold.train.precision import arithmetic
from rankfold.train.randomness import derived_seed, seeded
from rankfold.train.recipe import Distill, Recipe
from rankfold.train.run import Run
from rankfold.train.schedule import rate_factor


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

    A loss that is not finite ends training: a sentence in `History.stopped`, and the best weights so far.
    KeyboardInterrupt passes through, also with the best weights so far.
    Raises TrainingError before any work: empty data, labels outside the model's outputs (for data that are
    not in memory: when the batch comes), nothing to train, a missing or unused teacher, a directory that
    holds another run.
    """
    data = Feed(train, recipe.batch_size, recipe.augment)
    sample = _check(model, data, validation, recipe, teacher)
    device = _device(model)
    with _left_as_found(model), seeded(recipe.seed, device, data.generators()):
        setting = _Setting(model, teacher, recipe, device, fitting_layout(model, sample))
        run = Run.begin_or_resume(model, recipe, directory, len(data))
        resumed_from = run.epoch
        try:
            if run.epoch == 0:
                if validation is not None:
                    run.start = evaluate(model, validation, role="validation")
                run.save()
            stopped = None
            while run.epoch < recipe.epochs and stopped is None:
                stopped = _epoch(setting, data, validation, run, progress)
        finally:
            run.restore_best()
    return History(run.start, tuple(run.epochs), run.best_epoch, stopped, resumed_from)


@dataclass(frozen=True, eq=False)
class _Setting:
    model: nn.Module
    teacher: nn.Module | None
    recipe: Recipe
    device: torch.device
    layout: torch.memory_format


def _epoch(
    setting: _Setting, data: Feed, validation: Any | None, run: Run, progress: ProgressCallback | None
) -> str | None:
    """One epoch of training, its validation and its checkpoint; or the sentence that ends the run."""
    recipe, model = setting.recipe, setting.model
    number, batches, began = run.epoch + 1, len(data), time.perf_counter()
    total, step = recipe.epochs * batches, run.epoch * batches
    seed = derived_seed(recipe.seed, number)
    generator = torch.Generator().manual_seed(seed)
    loss_sum, correct, count, rate = 0.0, 0, 0, 0.0
    model.train()
    with seeded(seed, setting.device, data.generators()):
        for index, batch in enumerate(data.epoch(generator), start=1):
            rate = recipe.learning_rate * rate_factor(recipe.schedule, min(step, total - 1), total, recipe.warmup)
            loss, hits, size = _step(setting, batch, run, rate)
            if not isfinite(loss):
                return (
                    f"training stopped in epoch {number}, batch {index} of {batches}: the loss is {loss} at "
                    f"learning rate {rate:.3g}; a smaller learning_rate, or clip_norm, is the usual remedy"
                )
            step += 1
            loss_sum, correct, count = loss_sum + loss * size, correct + hits, count + size
            if progress is not None and index < batches:
                progress(Progress(number, recipe.epochs, index, batches, loss))
    if count == 0:
        raise TrainingError("train data: an epoch gave no batch; give at least one labelled sample")
    with run.averaged():
        result = None if validation is None else evaluate(model, validation, role="validation")
    record = Epoch(
        number,
        loss_sum / count,
        correct / count,
        None if result is None else result.loss,
        None if result is None else result.accuracy,
        rate,
        time.perf_counter() - began,
    )
    run.finish(record)
    if progress is not None:
        progress(Progress(number, recipe.epochs, batches, batches, loss_sum / count, record))
    return None


def _step(setting: _Setting, batch: Any, run: Run, rate: float) -> tuple[float, int, int]:
    """One optimisation step: (loss, correct labels, labels); nothing is changed if the loss is not finite."""
    recipe, model = setting.recipe, setting.model
    target = feed.labels(batch, "train").to(setting.device)
    batch = laid_out(batch, setting.layout)
    with arithmetic(recipe.precision, setting.device):
        with torch.no_grad():
            taught = None if setting.teacher is None else _teach(setting.teacher, batch)
        logits = logits_of(forward(model, batch))
    logits, target = rows(logits, target, "train")
    feed.check_range(target, logits.shape[1], "train")
    loss = _loss(logits, target, taught, recipe.distill, recipe.label_smoothing)
    value = loss.item()
    if isfinite(value):
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        run.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(run.trained, recipe.clip_norm)
        run.optimizer.step()
        run.average()
    return value, int((logits.argmax(1) == target).sum()), len(target)


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


def _check(model: nn.Module, data: Feed, validation: Any, recipe: Recipe, teacher: nn.Module | None) -> Any:
    """TrainingError for what cannot be trained; otherwise the batch of a few samples that was tried."""
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
