"""Training the networks that an experiment compares: each once, several at a time, read back when it is there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from joblib import Parallel, delayed
from torch import nn

from rankfold.induce import fold_, overparametrize_
from rankfold.pipeline import Tell
from rankfold.report.quantities import percent
from rankfold.run.container import packed, parsed
from rankfold.run.files import write_atomically
from rankfold.train import Recipe, evaluate, fit
from rankfold.zoo import Data, default_data, load_data, load_weights, model_names, resolve

FORMAT = 1


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
    def name(self) -> str:
        """Readable, and another one for whatever else was asked differently."""
        text = json.dumps({"format": FORMAT} | asdict(self), sort_keys=True)
        mark = hashlib.sha256(text.encode()).hexdigest()[:8]
        return f"{short(self.model)}-n{self.depth}-decay{self.recipe.weight_decay:g}-seed{self.recipe.seed}-{mark}"


@dataclass(frozen=True)
class Trained:
    """A finished training. Accuracies are those of the weights of ``best_epoch``, chosen on validation.

    ``collapse`` says in a sentence that, and when, training fell to chance or to zero weights; ``stopped`` why it
    ended early. None: it did not.
    """

    case: Case
    validation: float
    validation_count: int
    test: float
    best_epoch: int
    epochs: int
    seconds: float
    stopped: str | None
    collapse: str | None
    weights: Path

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


def build(case: Case) -> nn.Module:
    """The network of ``case`` before training, a function of its seed alone."""
    seed = case.recipe.seed
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # factories of one's own draw from the global generator
        return resolve(case.model, generator=torch.Generator().manual_seed(seed)).model


def data_of(case: Case) -> Data:
    """The data of ``case``, its training split restricted where that is asked."""
    if not case.data and case.model not in model_names():
        raise ValueError(f"{case.model}: name the data set that belongs to it")
    data = load_data(case.data or default_data(case.model))
    if case.train_samples is None or case.train_samples >= len(data.train):
        return data
    part = data.train.take(case.train_samples, torch.Generator().manual_seed(case.recipe.seed))
    return Data(data.name, part, data.validation, data.test, data.classes)


def train_all(cases: Sequence[Case], directory: Path, jobs: int, tell: Tell) -> list[Trained]:
    """Every case trained, in the order given; finished ones are read back from ``directory``.

    With several ``jobs`` each training has a process and one thread of its own, so that its result does not depend
    on their number.
    """
    waiting = [case for case in cases if _read(case, directory) is None]
    if len(waiting) < len(cases):
        tell.say(f"{len(cases) - len(waiting)} of {len(cases)} trainings are read back from {directory}")
    if jobs == 1:
        for case in waiting:
            _say(_train(case, directory, tell), tell)
    elif waiting:
        done = Parallel(n_jobs=jobs, return_as="generator_unordered")(
            delayed(_train_alone)(case, directory) for case in waiting
        )
        for number, trained in enumerate(done, start=1):
            _say(trained, tell)
            tell.progress("training", number, len(waiting))
    return [train(case, directory, tell) for case in cases]


def train(case: Case, directory: Path, tell: Tell) -> Trained:
    """The case trained, or read back from ``directory``."""
    return _read(case, directory) or _train(case, directory, tell)


def _train_alone(case: Case, directory: Path) -> Trained:
    torch.set_num_threads(1)
    return _train(case, directory, Tell())


def _train(case: Case, directory: Path, tell: Tell) -> Trained:
    place, data = directory / case.name, data_of(case)
    network = build(case)
    if case.depth > 1:
        generator = torch.Generator().manual_seed(case.recipe.seed)
        overparametrize_(network, case.depth, case.where, start=case.start, generator=generator)
    network.to(device())
    told = Tell(tell.progress).training(case.name)  # an epoch's sentence would be one of thousands here
    history = fit(network, data.train, data.validation, case.recipe, directory=place / "training", progress=told)
    fold_(network).eval()
    score = evaluate(network, data.validation, role="validation").accuracy
    values = {
        "case": asdict(case),
        "validation": score,
        "validation_count": len(data.validation),
        "test": evaluate(network, data.test, role="test").accuracy,
        "best_epoch": history.best_epoch,
        "epochs": len(history.epochs),
        "seconds": history.seconds,
        "stopped": history.stopped,
        "collapse": history.warning,
    }
    write_atomically(place / "weights.safetensors", packed(network.state_dict()))
    write_atomically(place / "run.json", (json.dumps(values, indent=1) + "\n").encode())
    without_checkpoints(place / "training")
    trained = _read(case, directory)
    assert trained is not None
    return trained


def _read(case: Case, directory: Path) -> Trained | None:
    file = directory / case.name / "run.json"
    if not file.exists():
        return None
    try:
        values: dict[str, Any] = parsed(file.read_bytes())
        del values["case"]  # its name tells it apart; kept for people
        return Trained(case, **values, weights=file.with_name("weights.safetensors"))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}): delete {file.parent} to train it again") from None


def _say(trained: Trained, tell: Tell) -> None:
    ended = trained.collapse or trained.stopped
    tell.say(
        f"{trained.case.name}: validation {percent(trained.validation, 2)}, {trained.epochs} epochs, "
        f"{trained.seconds:.0f} s" + (f"; {ended}" if ended else "")
    )
