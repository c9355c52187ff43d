"""The network that ``rankfold train`` left in a directory. Imports torch: only from inside a command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from shlex import quote

import typer

from rankfold.cli.loading import Cut, Loaded, open_model
from rankfold.cli.saved import check_is_model, code_named, is_saved, open_saved
from rankfold.pipeline.trainings.config import ConfigError, parse, read
from rankfold.run.progress import Talk


def is_run(directory: Path) -> bool:
    """Whether ``rankfold train`` wrote there, and nothing that brings a manifest of its own."""
    return (directory / "config.yaml").is_file() and not (directory / "manifest.json").exists()


def open_run(
    directory: Path, spec: str | None, data: str | None, download: bool, talk: Talk, cut: Cut | None = None
) -> Loaded:
    """The ordinary network of the best epoch, built as ``config.yaml`` says or by ``spec``, and its data or ``data``.

    The file may name built-in models and data alone: a file does not decide which code runs. Raises ConfigError for a
    run without weights yet.
    """
    file, weights = directory / "config.yaml", directory / "model.safetensors"
    config = parse(read(file), file)
    if not weights.exists():
        again = f"rankfold train {quote(str(file))} -o {quote(str(directory))}"
        raise ConfigError(f"{directory}: there is no model.safetensors yet: {again} continues the training")
    asked = code_named(config.model if spec is None else None, config.data if data is None else None)
    if asked is not None:
        raise ConfigError(f"{directory}: {asked}")
    found = open_model(
        spec or config.model, weights, data or config.data, download, talk, trained=True, own_data=True, cut=cut
    )
    if config.objective is None or found.data is None:
        return found
    return replace(found, data=replace(found.data, objective=config.objective))


def open_either(
    model: str,
    weights: Path | None,
    spec: str | None,
    data: str | None,
    download: bool,
    talk: Talk,
    cut: Cut | None = None,
) -> Loaded:
    """A directory that ``compress``, ``apply`` or ``train`` wrote (of code of one's own, which ``spec`` names), or a
    model with its trained ``weights``; with its own data where none are given."""
    if not is_saved(model):
        check_is_model(model)
        return open_model(model, weights, data, download, talk, trained=True, own_data=True, cut=cut)
    if weights is not None:
        raise typer.BadParameter("a saved model holds its own weights: leave --weights out", param_hint="--weights")
    if is_run(Path(model)):
        return open_run(Path(model), spec, data, download, talk, cut)
    return open_saved(Path(model), spec, data, download, talk, own_data=True, cut=cut)
