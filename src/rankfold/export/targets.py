"""How long a model takes where it will run: as torch runs it, compiled by torch, or under onnxruntime."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from rankfold.batches import place_of
from rankfold.costs import Example, latencies, with_batch
from rankfold.export.compiled import compiled
from rankfold.export.onnx import graph_of
from rankfold.sites import unwrap

Target = Literal["eager", "compile", "onnxruntime"]


def target_latencies(
    models: Mapping[str, nn.Module], example: Any, target: Target, *, batch: int = 1, seconds: float = 2.0
) -> dict[str, float]:
    """Median milliseconds of one forward of ``batch`` samples of each model on ``target``, measured in turns.

    "compile": ``torch.compile``, each model apart and for this very input, before the clock starts; what was compiled
    before in this process is compiled anew at its next call. "onnxruntime": the graph that ``rankfold.export.to_onnx``
    writes and checks, on the CPU with as many threads as torch takes. Models are left as found. Cost: a compilation or
    an export of each model, and ``seconds`` for each. Raises ``ExportError`` for a model that the target does not take.
    """
    given = with_batch(example, batch)
    if target == "onnxruntime":
        models = {name: _Session(model, example) for name, model in models.items()}
    if target == "compile":
        models = compiled(models, given)
    return latencies(models, given, batch=batch, seconds=seconds)


class _Session(nn.Module):
    """A model under onnxruntime, called as the model itself is."""

    def __init__(self, model: nn.Module, example: Any) -> None:
        super().__init__()
        (_, self.run), _ = graph_of(model, example)
        self.order = list(inspect.signature(unwrap(model).forward).parameters)
        # so that inputs come in its precision before the clock starts
        if (place := place_of(model.modules())) is not None:
            self.register_buffer("place", place.new_empty(0, device="cpu"))

    def forward(self, *args: Any, **kwargs: Any) -> Sequence[Tensor]:
        named = {name: kwargs[name] for name in self.order if name in kwargs}
        return self.run(Example(args, named | kwargs, 1))
