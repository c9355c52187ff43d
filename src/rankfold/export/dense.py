"""A compressed model of transformers multiplied out into an ordinary folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from rankfold.batches import as_found
from rankfold.costs import Example, evaluating
from rankfold.export.check import difference
from rankfold.export.errors import ExportError
from rankfold.export.outputs import in_a_row
from rankfold.run.disk.files import write_atomically
from rankfold.sites import is_pretrained, unwrap


def to_folder(model: nn.Module, example: Any, directory: str | Path, card: str = "") -> tuple[int, float]:
    """Write a model of transformers as a Hugging Face folder with its factors multiplied out, which loads anywhere and
    saves no space; returns the bytes written and the largest absolute difference of the outputs on ``example``.
    ``card``: the text of its README.md.

    ``ExportError`` for any other model, for a directory in which there is something already, and where a layer has
    gained a bias for which the architecture has no place.
    """
    root, directory = unwrap(model), Path(directory)
    if not is_pretrained(root):
        raise ExportError(
            f"only models of transformers are multiplied out into a folder, and this is a {type(root).__name__}: "
            "--to onnx or --to torch-export writes a file that runs without rankfold; in Python, .weight of "
            "each factored layer of rankfold.load(DIR, fresh).model is the ordinary weight"
        )
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ExportError(f"{directory}: there are files already: give a directory that is new or empty")
    from rankfold import hub

    try:
        dense = hub.to_dense(root)
        files = hub.files_of(dense)
    except hub.HubError as error:
        raise ExportError(str(error)) from None
    files |= {"README.md": card.encode()} if card else {}
    given = Example.of(example).fitting(root.modules())
    with evaluating(root), as_found(root), evaluating(dense):
        pairs = zip(*(in_a_row(each(*given.args, **given.kwargs)) for each in (root, dense)), strict=True)
        worst = max(difference(a, b, "its outputs", "the dense model", "the example") for a, b in pairs)
    for name in sorted(files, key=lambda name: name == "config.json"):  # last, so that half a folder is none
        write_atomically(directory / name, files[name])
    return sum(map(len, files.values())), worst
