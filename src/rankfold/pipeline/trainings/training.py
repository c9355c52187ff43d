"""One training run from its configuration to the files of its directory; resumable, alone or under torchrun."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from rankfold.induce import dlrt_, fold_, overparametrize_
from rankfold.induce.places import ranks_of, trained_numbers
from rankfold.objectives import Inferred
from rankfold.pipeline.trainings.config import ConfigError, TrainConfig
from rankfold.pipeline.trainings.factored import save_factored
from rankfold.pipeline.trainings.inputs import content_of, note_inputs
from rankfold.pipeline.trainings.rundir import PLACE, SMALL, TrainResult, finished, read_result, write_result
from rankfold.record import SpectrumRecorder
from rankfold.run.disk.container import packed
from rankfold.run.disk.files import write_atomically
from rankfold.run.ordinary import ordinarily
from rankfold.run.processes.team import Team, joined
from rankfold.run.progress import Tell, duration, shown
from rankfold.train import Epoch, History, Progress, TrainingError, checkpoint, choose, evaluate, fit
from rankfold.train.randomness import seeded
from rankfold.zoo import Data, load_data, load_weights, resolve


@ordinarily
def train(config: TrainConfig, *, restart: bool = False, tell: Tell | None = None) -> TrainResult:
    """Train what `config` asks for and leave the finished run in `config.out`.

    There: `config.yaml`, `inputs.json` (what weights and data were), `metrics.jsonl` (a line for each epoch),
    `checkpoint*`, `model.safetensors` (the ordinary network, folded, of the best epoch on the validation split),
    `small/` (the same network in its factors, where it was trained at low rank), `result.json`, and, where asked for,
    `spectra.{safetensors,csv,svg}` and `tensorboard/`. Each file is whole or absent; `result.json` comes last. The same
    call resumes an interrupted run and computes, on the same machine with the same number of threads, the same weights;
    a finished one is only read back. Other weights or data under the same names are refused. Under torchrun every
    process makes this call; the first alone writes.

    Raises `ConfigError`, `ZooError`, `TrainingError` with one sentence. A loss that is not finite is a TrainingError:
    the checkpoint of the last good epoch stays.
    """
    device = _device(config.device)
    with _threads(config.threads), joined(device, TrainingError) as team, ExitStack() as stack:
        tell = stack.enter_context(shown(tell if team.first else Tell()))
        place = Path(config.out)
        done = team.shared(lambda: None if restart else finished(config, lambda: content_of(_load(config, tell))))
        if done is None:
            team.shared(lambda: PLACE.check(place))
            with checkpoint.claimed(place, team):
                team.shared(lambda: PLACE.take(place, config.to_dict(), restart))
                done = team.shared(lambda: read_result(place))  # of another process, while this one came to it
                if done is None:
                    return _trained(config, device, tell, team)
        tell.say(f"{place} already holds the finished run: nothing to do")
        return done


def _trained(config: TrainConfig, device: torch.device, tell: Tell, team: Team) -> TrainResult:
    """The run itself, in a directory that is its own."""
    if config.download:
        team.shared(lambda: _load(config, tell) and None)
    with team.agreed():
        data = _load(config, tell)
        model = built(config, data).to(device)
        teacher = None if config.teacher is None else _teacher(config, data).to(device)
    team.shared(lambda: note_inputs(config, data))
    history = _fitted(config, model, data, teacher, Path(config.out), tell, team)
    size, ranks = trained_numbers(model), ranks_of(model)
    if ranks:
        tell.say(f"ranks: {', '.join(f'{name} {rank}' for name, rank in ranks.items())}")
    fold_(model)
    return team.shared(lambda: _delivered(config, model, data, history, teacher, size, ranks, team, tell))


def built(config: TrainConfig, data: Data) -> nn.Module:
    """The network before its first step, a function of the seed: drawn or loaded, and over-parametrised."""
    seed = config.recipe.seed
    generator = torch.Generator().manual_seed(seed)
    model = _network(config.model, data, seed, generator)
    if config.weights is not None:
        load_weights(model, config.weights)
    if config.depth > 1:
        overparametrize_(
            model,
            config.depth,
            config.where,
            start=config.start,  # type: ignore[arg-type]  # checked there
            inner=config.inner,  # type: ignore[arg-type]
            generator=generator,
        )
    if config.dlrt is not None:
        dlrt_(model, config.dlrt.rank, config.where, convolutions=config.dlrt.convolutions)
    if config.way is not None:
        config.way.prepare_(model, config.where)
    return model


def _network(spec: str, data: Data, seed: int, generator: torch.Generator | None = None) -> nn.Module:
    if ":" in spec:
        with seeded(seed, torch.device("cpu"), ()):
            return resolve(spec).model
    return resolve(spec, classes=data.classes, in_channels=data.channels, generator=generator).model


def _teacher(config: TrainConfig, data: Data) -> nn.Module:
    assert config.teacher is not None
    teacher = _network(config.teacher.model or config.model, data, 0)
    load_weights(teacher, config.teacher.weights)
    return teacher


def _load(config: TrainConfig, tell: Tell) -> Data:
    return load_data(config.data, download=config.download, progress=tell.progress)


def _fitted(
    config: TrainConfig, model: nn.Module, data: Data, teacher: nn.Module | None, place: Path, tell: Tell, team: Team
) -> History:
    """Train, with whatever watches; TrainingError where the loss was not finite."""
    with team.agreed():
        objective = choose(model, data.train, config.objective, said=data.objective)
    tell.say(str(objective))
    with ExitStack() as stack:
        watching = [_narrator(tell)]
        if config.record_spectra and team.first:
            watching.append(stack.enter_context(_recording(model, place)))
        if config.tensorboard and team.first:
            watching.append(stack.enter_context(_board(place)))

        def progress(now: Progress) -> None:
            for watch in watching:
                watch(now)

        history = fit(
            model, data.train, data.validation, config.recipe, teacher=teacher, directory=place, progress=progress,
            objective=objective.objective, optimizer=getattr(config.dlrt or config.way, "optimizer", None),
        )  # fmt: skip
    if history.resumed_from and history.resumed_from == len(history.epochs) and history.stopped is None:
        tell.say(f"all {len(history.epochs)} epochs were already done")
    if history.stopped is None:
        return history
    kept = ""
    if history.best_epoch:
        fold_(model)
        team.shared(lambda: _save(model, place))
        kept = f"; the best weights so far, of epoch {history.best_epoch}, are in {place / 'model.safetensors'}"
    raise TrainingError(f"{history.stopped}. The checkpoint of epoch {len(history.epochs)} stays in {place}{kept}")


def _narrator(tell: Tell) -> Callable[[Progress], None]:
    """Batches as progress with the time left; a sentence for each epoch."""
    events = itertools.count()

    def watch(now: Progress) -> None:
        if next(events) == 0 and now.epoch > 1:
            tell.say(f"resuming after epoch {now.epoch - 1} of {now.epochs}")
        tell.progress("training", (now.epoch - 1) * now.batches + now.batch, now.epochs * now.batches)
        if now.finished is None:
            return
        end = now.finished
        reached = "" if end.validation is None else f", validation {end.validation.judged}"
        left = end.seconds * (now.epochs - now.epoch)
        tell.say(
            f"epoch {now.epoch} of {now.epochs}: loss {end.train_loss:.4f}{reached}, {end.seconds:.1f} s"
            + (f", about {duration(left)} left" if left else "")
        )

    return watch


@contextmanager
def _recording(model: nn.Module, place: Path) -> Iterator[Callable[[Progress], None]]:
    """Spectra at the start and after every epoch; their file goes with the checkpoint, table and picture come last."""
    file = place / "spectra.safetensors"
    recorder = SpectrumRecorder.load(file, model) if file.exists() else SpectrumRecorder(model)
    with recorder:
        if not file.exists():
            recorder.step(0)
            recorder.save(file)
        saved = checkpoint.load(place)
        if saved is not None and recorder.frame()["epoch"].max() < len(saved["epochs"]):
            model.load_state_dict(saved["model"])  # as `fit` will; killed between the checkpoint and its record
            recorder.step(len(saved["epochs"]))

        def watch(now: Progress) -> None:
            if now.finished is not None:
                recorder.step(now.epoch)
                recorder.save(file)

        yield watch
        write_atomically(place / "spectra.csv", recorder.frame().to_csv(index=False).encode())
        recorder.plot(place / "spectra.svg")


@contextmanager
def _board(place: Path) -> Iterator[Callable[[Progress], None]]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "tensorboard: the package is not installed: pip install 'rankfold[tensorboard]', or set tensorboard: false"
        ) from None
    with SummaryWriter(str(place / "tensorboard")) as writer:

        def watch(now: Progress) -> None:
            if now.finished is not None:
                for name, value in _scalars(now.finished).items():
                    writer.add_scalar(name, value, now.epoch)
                writer.flush()

        yield watch


def _scalars(epoch: Epoch) -> dict[str, float]:
    return {name: value for name, value in epoch.to_dict().items() if name != "epoch" and value is not None}


def _delivered(
    config: TrainConfig,
    model: nn.Module,
    data: Data,
    history: History,
    teacher: nn.Module | None,
    trained: int,
    ranks: dict[str, int],
    team: Team,
    tell: Tell,
) -> TrainResult:
    """The only place that sees the test split."""
    place, asked = Path(config.out), config.to_dict()
    judged = choose(model, data.train, config.objective or data.objective)
    chosen = judged.objective
    validation = evaluate(model, data.validation, role="validation", objective=chosen, teacher=teacher)
    test = None
    if data.test is not None:
        test = evaluate(model, data.test, role="test", objective=chosen, teacher=teacher)
    result = TrainResult(
        model=config.model,
        data=config.data,
        depth=config.depth,
        weight_decay=config.recipe.weight_decay,
        seed=config.recipe.seed,
        epochs=len(history.epochs),
        best_epoch=history.best_epoch,
        validation=validation,
        test=test,
        params=sum(parameter.numel() for parameter in model.parameters()),
        trained_params=trained,
        seconds=history.seconds,
        device=str(team.device),
        threads=torch.get_num_threads(),
        processes=team.size,
        warning=history.warning,
        directory=str(place),
        ranks=ranks,
        dlrt=asked.get("dlrt"),
        way=asked.get("way"),
    )
    _save(model, place)
    if ranks and (size := _save_small(config, model, ranks, data, judged, place, tell)) is not None:
        result = replace(result, small=str(place / SMALL), small_params=size)
    write_result(place, result)
    return result


def _save_small(
    config: TrainConfig, model: nn.Module, ranks: dict[str, int], data: Data, judged: Inferred, place: Path, tell: Tell
) -> int | None:
    """Saves the factors too, and says how many parameters that makes; what stands in the way is said, for the training
    itself is done."""
    tucker = config.dlrt is not None and config.dlrt.convolutions == "tucker"
    try:
        return save_factored(model, ranks, tucker, place / SMALL, config.model, data, judged)
    except (ValueError, OSError) as error:
        tell.say(f"not saved in factors ({error}); the ordinary network is in {place / 'model.safetensors'}")
        return None


def _save(model: nn.Module, place: Path) -> None:
    """The ordinary state dict; tied tensors under each of their names, as `load_weights` wants them."""
    write_atomically(place / "model.safetensors", packed(model.state_dict()))


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device: torch knows no device {name!r}: give auto, cpu or cuda") from None
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", device.index or 0)))
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        torch.zeros(1, device=device).item()
    except Exception:  # each kind of device fails in a way of its own
        missing = "CUDA" if device.type == "cuda" and not torch.cuda.is_available() else device
        raise ConfigError(f"device: torch finds no {missing} on this machine: give device: cpu, or auto") from None
    return device


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
