"""What to type for a file or folder of data that was given by its path alone."""

from __future__ import annotations

from pathlib import Path


def how_to_give(path: Path) -> str:
    """What to type for a file or folder that was given without saying what it holds."""
    if path.is_dir():
        return (
            f"{path}: this is a folder: give it as imagefolder:{path} where it holds pictures in folders of classes, "
            f"or as parquet:{path} where it holds them in tables"
        )
    kind = "tokens" if path.suffix == ".npy" else "text"
    return (
        f"{path}: this is a file, and what it holds must be said: give it as {kind}:{path}, for a language model or "
        "encoder of transformers"
    )
