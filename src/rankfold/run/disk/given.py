"""What to type for a file or folder of data that was given by its path alone."""

from __future__ import annotations

from pathlib import Path

OWN_DATA = "a function that returns (train, validation, test), each (inputs, targets)"
_TEXTS = {".npy": "tokens"} | dict.fromkeys(
    (".txt", ".md", ".csv", ".tsv", ".jsonl", ".json", ".parquet", ".gz"), "text"
)


def how_to_give(path: Path) -> str:
    """What to type for a file or folder that was given without saying what it holds."""
    if path.is_dir():
        return (
            f"{path}: this is a folder: give it as imagefolder:{path} where it holds pictures in folders of classes, "
            f"or as parquet:{path} where it holds them in tables"
        )
    read = f"have it read by {OWN_DATA}, and give that as --data package.module:function"
    kind = _TEXTS.get(path.suffix.lower())
    if kind is None:
        return f"{path}: no data are read from a file of this kind: {read}"
    return (
        f"{path}: this is a file, and what it holds must be said: for a model of transformers that reads text give "
        f"it as {kind}:{path}; else {read}"
    )
