"""The cells of experiments: what is computed once and read back, and among them the networks that are compared."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from rankfold.induce import fold_, overparametrize_
from rankfold.pipeline import Tell
from rankfold.report.quantities import percent
from rankfold.run.cells import Kept, named, run_cells
from rankfold.run.disk.container import packed, read_object
from rankfold.run.disk.files import write_atomically
from rankfold.run.progress import Progress
from rankfold.train import Recipe, evaluate, fit
from rankfold.zoo import Data, default_data, load_data, load_weights, model_names, resolve

_ASKED = {"format": 1}


@dataclass(frozen=True)
class Case:
    """One training: ``depth`` composed matrices in every site that ``where`` selects (all by default), from ``start``.

    ``data`` "" is the data set that belongs to the built-in ``model``. ``train_samples`` restricts the training split
    to so many samples, drawn with the seed of the recipe.
    """

    model: str
    depth: int
    recipe: Recipe
    data: str = ""
    start: Literal["balanced", "random"] = "balanced"
    where: str | None = None
    train_samples: int | None = None

    @property
    def title(self) -> str:
        return f"{short(self.model)}-n{self.depth}-decay{self.recipe.weight_decay:g}-seed{self.recipe.seed}"

    @property
    def name(self) -> str:
        """Readable, and another one for whatever else was asked differently."""
        return named(self, _ASKED)


@dataclass(frozen=True)
class Trained:
    """A finished training. Accuracies are those of the weights of ``best_epoch``, chosen on validation.

    ``collapse`` says in a sentence that, and when, training fell to chance or to zero weights; ``stopped`` why it
    ended early. None: it did not. ``test`` is NaN until ``tested`` has looked.
    """

    case: Case
    validation: float
    validation_count: int
    best_epoch: int
    epochs: int
    seconds: float
    stopped: str | None
    collapse: str | None
    weights: Path
    test: float = math.nan

    def part(self, data: Data) -> Data:
        """``data`` with the training samples that this training saw."""
        return restricted(data, self.case.train_samples, self.case.recipe.seed)

    def network(self) -> nn.Module:
        """The ordinary network (factors multiplied out), in eval mode. ``ZooError`` if its file is damaged."""
        network = build(self.case)
        load_weights(network, self.weights)
        return network.eval()


def without_checkpoints(directory: Path) -> None:
    """Remove the checkpoints of a finished run, which take many times the space of its weights; metrics stay."""
    (directory / "checkpoint.json").unlink(missing_ok=True)
    for file in directory.glob("checkpoint-*.pt"):
        file.unlink()


def short(model: str) -> str:
    """The name of a built-in network, or of the function that makes it."""
    return model.rpartition(":")[2]


def device() -> torch.device:
    """Where networks are trained and evaluated: the GPU where torch finds one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def one_thread() -> Iterator[None]:
    """What is inside computes with one thread, and alike wherever it runs; the caller has its own again after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def build(case: Case) -> nn.Module:
    """The network of ``case`` before training, a function of its seed alone."""
    seed = case.recipe.seed
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # factories of one's own draw from the global generator
        return resolve(case.model, generator=torch.Generator().manual_seed(seed)).model


def given(model: str, weights: Path) -> nn.Module:
    """The network ``model`` with the ``weights`` of a file, in eval mode."""
    network = resolve(model).model
    load_weights(network, weights)
    return network.eval()


def data_of(case: Case) -> Data:
    """The data of ``case``, its training split restricted where that is asked."""
    if not case.data and case.model not in model_names():
        raise ValueError(f"{case.model}: name the data set that belongs to it")
    return restricted(load_data(case.data or default_data(case.model)), case.train_samples, case.recipe.seed)


def restricted(data: Data, samples: int | None, seed: int) -> Data:
    """``data`` with so many training samples, drawn with ``seed``; all of them where there are no more."""
    if samples is None or samples >= len(data.train):
        return data
    part = data.train.take(samples, torch.Generator().manual_seed(seed))
    return replace(data, train=part)


def computed(
    cases: Sequence[Any],
    work: Callable[[Any, Path, Progress], dict[str, Any]],
    kind: str,
    directory: Path,
    jobs: int,
    tell: Tell,
    words: Callable[[dict[str, Any]], str] = lambda values: "",
) -> list[dict[str, Any]]:
    """``work`` done for every case, or read back from ``directory/runs``: see ``rankfold.run.cells``."""
    return run_cells(cases, kept(work, kind, directory, words), jobs, progress=tell.progress, say=tell.say)


def kept(
    work: Callable[[Any, Path, Progress], dict[str, Any]],
    kind: str,
    directory: Path,
    words: Callable[[dict[str, Any]], str] = lambda values: "",
) -> Kept:
    """Where ``computed`` keeps what.

    ``kind`` tells apart what is computed of equal cases: ``work`` as the first release had it, so that its cells count.
    """
    return Kept(work, directory / "runs", {"format": 2, "kind": f"rankfold.papers.{kind}"}, words=words)


def time_remark(found: Sequence[dict[str, Any]]) -> str:
    """What the cells cost, in a sentence."""
    return f"Processor time of all cells: {sum(value['cpu_seconds'] for value in found) / 60:.1f} minutes."


def train_all(cases: Sequence[Case], directory: Path, jobs: int, tell: Tell) -> list[Trained]:
    """Every case trained, in the order given; finished ones are read back from ``directory``.

    With several ``jobs`` each training has a process and one thread of its own, so that its result does not depend
    on their number.
    """
    kept = _Trainings(_train, directory, _ASKED, "{}/run.json", _said)
    found = run_cells(cases, kept, jobs, what="trainings", progress=tell.progress, say=tell.say)
    return [_trained(case, kept.file(case), values) for case, values in zip(cases, found, strict=True)]


def _train(case: Case, place: Path, progress: Progress) -> dict[str, Any]:
    data, network = data_of(case), build(case)
    if case.depth > 1:
        generator = torch.Generator().manual_seed(case.recipe.seed)
        overparametrize_(network, case.depth, case.where, start=case.start, generator=generator)
    network.to(device())
    told = Tell(progress).training(case.name)  # an epoch's sentence would be one of thousands here
    history = fit(network, data.train, data.validation, case.recipe, directory=place / "training", progress=told)
    fold_(network).eval()
    values = {
        "validation": evaluate(network, data.validation, role="validation").accuracy,
        "validation_count": len(data.validation),
        "best_epoch": history.best_epoch,
        "epochs": len(history.epochs),
        "seconds": history.seconds,
        "stopped": history.stopped,
        "collapse": history.warning,
    }
    write_atomically(place / "weights.safetensors", packed(network.state_dict()))
    return values


def tested(run: Trained, data: Data) -> Trained:
    """``run`` with its accuracy on test, which is looked at here, once, and kept with the training."""
    if not math.isnan(run.test):
        return run
    found = evaluate(run.network().to(device()), data.test, role="test").accuracy
    file = run.weights.with_name("run.json")
    values = read_object(file, "a finished cell", "delete it to compute it again") | {"test": found}
    write_atomically(file, (json.dumps(values, indent=1) + "\n").encode())
    return replace(run, test=found)


class _Trainings(Kept):
    def do(self, cell: Case, progress: Progress) -> dict[str, Any]:
        values = super().do(cell, progress)
        without_checkpoints(self.file(cell).parent / "training")  # only now: a full disk loses no training
        return values


def _trained(case: Case, file: Path, values: dict[str, Any]) -> Trained:
    own = {field.name: values[field.name] for field in fields(Trained) if field.name in values}
    try:
        return Trained(**own | {"case": case, "weights": file.with_name("weights.safetensors")})
    except TypeError as error:
        raise ValueError(f"{file}: damaged ({error}): delete it to compute it again") from None


def _said(values: dict[str, Any]) -> str:
    ended = values["collapse"] or values["stopped"]
    reached = f"validation {percent(values['validation'], 2)}, {values['epochs']} epochs, {values['seconds']:.0f} s"
    return f"{reached}; {ended}" if ended else reached
