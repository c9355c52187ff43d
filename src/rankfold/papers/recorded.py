"""A training whose spectra are recorded, and which goes on with both where it was interrupted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from rankfold.papers.runs import without_checkpoints
from rankfold.record import SpectrumRecorder
from rankfold.record.recorder import Probe
from rankfold.sites.wish import Where
from rankfold.train import History, Progress, Recipe, checkpoint, fit
from rankfold.zoo import Split


def fit_recorded(
    model: nn.Module,
    train: Split,
    validation: Split | None,
    recipe: Recipe,
    place: Path,
    *,
    every: int = 1,
    where: Where | None = None,
    probe: Probe | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> tuple[History, SpectrumRecorder]:
    """Train ``model``, a record at the start, after every ``every`` epochs and at the end, in ``place``.

    The recording is kept there as ``spectra.safetensors``; checkpoints go when the training is done.
    """
    file = place / "spectra.safetensors"
    if file.exists():
        recorder = SpectrumRecorder.load(file, model, probe=probe)
    else:
        recorder = SpectrumRecorder(model, where, probe=probe)
        recorder.step(0)
    last = float(recorder.frame()["epoch"].max())

    def record(epoch: int) -> None:
        if epoch > last and (epoch % every == 0 or epoch == recipe.epochs):
            recorder.step(epoch)
            recorder.save(file)

    def watch(now: Progress) -> None:
        if progress is not None:
            progress(now)
        if now.finished is not None:
            record(now.epoch)

    saved = checkpoint.load(place / "training")
    with recorder:
        if saved is not None and saved["epochs"]:  # its record comes after it: an interruption may lie between
            model.load_state_dict(saved["model"])
            record(len(saved["epochs"]))
        history = fit(model, train, validation, recipe, directory=place / "training", progress=watch)
    recorder.save(file)
    without_checkpoints(place / "training")
    return history, recorder
