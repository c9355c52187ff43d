"""A model as an exported program of torch."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.costs import Example
from rankfold.export.check import Run, exported
from rankfold.export.errors import ExportError, first_line, quiet
from rankfold.export.outputs import in_a_row, plain
from rankfold.export.trace import Traced, answer, ready
from rankfold.export.written import Written
from rankfold.run.disk.files import write_atomically
from rankfold.run.progress import Tell


def to_torch_export(model: nn.Module, example: Any, path: str | Path, *, tell: Tell | None = None) -> Written:
    """Write ``model`` as a ``.pt2`` of ``torch.export``.

    An output with names becomes a dict of its tensors, without caches and losses. The program is compared in memory,
    before it is written; a file of this kind can run code when it is loaded, so this library never loads one.

    Args:
        model: any module.
        example: one input with its batch axis, or a tuple or mapping of arguments.
        path: of the file.
        tell: what is being done, a sentence for each step.

    Returns:
        As ``to_onnx``.

    Raises:
        ExportError: as in ``to_onnx``.

    Example:
        >>> from rankfold.export import to_torch_export
        >>> to_torch_export(nn.Sequential(nn.Linear(4, 2)), torch.zeros(1, 4), "net.pt2") < 1e-4
        True
    """
    root, example = ready(model, example)
    output = answer(root, example)
    program, written = exported(root, plain, example, output, _made, "the exported program", tell or Tell())
    buffer = io.BytesIO()
    with quiet():
        torch.export.save(program, buffer)
    write_atomically(Path(path), buffer.getvalue())
    return written


def _made(traced: Traced, names: Sequence[str]) -> tuple[torch.export.ExportedProgram, Run]:
    module = traced.program.module()

    def run(given: Example) -> Sequence[Tensor]:
        try:
            return in_a_row(module(*given.args, **given.kwargs))
        except Exception as error:  # a size that it refuses, in any of torch's ways
            raise ExportError(f"the exported program cannot run: {first_line(error)}") from error

    return traced.program, run
