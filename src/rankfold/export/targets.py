"""How long a model takes where it will run: as torch runs it, compiled by torch, or under onnxruntime."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rankfold.costs import Example, evaluating, latencies, with_batch
from rankfold.export.errors import ExportError, first_line, quiet
from rankfold.export.onnx import to_onnx
from rankfold.sites import unwrap

Target = Literal["eager", "compile", "onnxruntime"]


def target_latencies(
    models: Mapping[str, nn.Module], example: Any, target: Target, *, batch: int = 1, seconds: float = 2.0
) -> dict[str, float]:
    """Median milliseconds of one forward of ``batch`` samples of each model on ``target``, measured in turns.

    "compile": ``torch.compile``, compiled for this very input before the clock starts; "onnxruntime": the graph that
    ``rankfold.export.to_onnx`` writes and checks, on the CPU with as many threads as torch takes. Models are left as
    found. Cost: a compilation or an export of each model, and ``seconds`` for each. Raises ``ExportError`` for a model
    that the target does not take.
    """
    given = with_batch(example, batch)
    if target == "onnxruntime":
        with tempfile.TemporaryDirectory(prefix="rankfold-") as folder:
            running: dict[str, nn.Module] = {
                name: _Session(model, example, Path(folder) / f"{number}.onnx")
                for number, (name, model) in enumerate(models.items())
            }
            return latencies(running, given, batch=batch, seconds=seconds)
    if target == "compile":
        models = {name: _compiled(model, given) for name, model in models.items()}
    return latencies(models, given, batch=batch, seconds=seconds)


def _compiled(model: nn.Module, example: Example) -> nn.Module:
    made: Any = torch.compile(model)
    given = example.fitting(model)
    with evaluating(model), quiet():
        try:
            made(*given.args, **given.kwargs)
        except Exception as error:  # the compiler raises exceptions of many kinds, with pages of text
            raise ExportError(f"torch.compile fails for this model: {first_line(error)}") from error
    return made


class _Session(nn.Module):
    """A model under onnxruntime, called as the model itself is."""

    def __init__(self, model: nn.Module, example: Any, file: Path) -> None:
        super().__init__()
        to_onnx(model, example, file)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.names = list(inspect.signature(unwrap(model).forward).parameters)
        self.floats = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        self.asked = [node.name for node in self.session.get_inputs()]

    def forward(self, *args: Any, **kwargs: Any) -> list[Any]:
        given = dict(zip(self.names, args, strict=False)) | kwargs
        return self.session.run(None, {name: self._array(given[name]) for name in self.asked})

    def _array(self, x: Tensor) -> Any:
        return (x.to(self.floats) if x.is_floating_point() else x).numpy()
