"""Folders of Hugging Face's transformers, told by their config.json without importing that library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rankfold.run.disk.container import read_object

CONFIG, METHOD = "config.json", "rankfold"


class FolderError(ValueError):
    """A folder of transformers that cannot be read; one line with the remedy."""


def config_of(directory: str | Path) -> dict[str, Any]:
    """What config.json holds; ``FolderError`` in one line where there is none, or something else in it."""
    file = Path(directory) / CONFIG
    try:
        return read_object(file, "a configuration of transformers", "download or save the model again")
    except OSError as error:
        raise FolderError(f"{file}: {error.strerror or error}: give a folder with a {CONFIG}") from None
    except ValueError as error:
        raise FolderError(str(error)) from None


def is_folder(path: str | Path) -> bool:
    """Whether it is a folder with a config.json, as every model of transformers has."""
    return (Path(path) / CONFIG).is_file()


def is_factored(path: str | Path) -> bool:
    """Whether it is such a folder, and has layers of rankfold; ``FolderError`` for a config.json that is damaged."""
    if not is_folder(path):
        return False
    asked = config_of(path).get("quantization_config")
    return isinstance(asked, dict) and asked.get("quant_method") == METHOD
