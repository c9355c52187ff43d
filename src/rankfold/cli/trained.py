"""The network that ``rankfold train`` left in a directory. Imports torch: only from inside a command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rankfold.cli.loading import Loaded, open_model
from rankfold.pipeline.trainings.config import ConfigError, parse, read
from rankfold.run.progress import Talk


def is_run(directory: Path) -> bool:
    """Whether ``rankfold train`` wrote there, and nothing that brings a manifest of its own."""
    return (directory / "config.yaml").is_file() and not (directory / "manifest.json").exists()


def open_run(directory: Path, spec: str | None, data: str | None, download: bool, talk: Talk) -> Loaded:
    """The ordinary network of the best epoch, built as ``config.yaml`` says or by ``spec``, and its data or ``data``.

    The file may name built-in models and data alone: a file does not decide which code runs. Raises ConfigError for a
    run without weights yet.
    """
    file, weights = directory / "config.yaml", directory / "model.safetensors"
    config = parse(read(file), file)
    if not weights.exists():
        raise ConfigError(
            f"{directory}: no model.safetensors yet: rankfold train {file} -o {directory} goes on with it"
        )
    if spec is None and ":" in config.model:
        raise ConfigError(f"{directory}: was made from {config.model}; say --model {config.model} if its code may run")
    if data is None and ":" in config.data:
        raise ConfigError(f"{directory}: its data are {config.data}; say --data {config.data} if its code may run")
    found = open_model(spec or config.model, weights, data or config.data, download, talk, trained=True, own_data=True)
    if config.objective is None or found.data is None:
        return found
    return replace(found, data=replace(found.data, objective=config.objective))
