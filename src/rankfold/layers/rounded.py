"""Stages of factored layers whose weights are whole numbers: int8 with one scale for each direction of the rank.

The numbers are buffers, which no cast of the model changes and no optimizer sees; the weight is made of them at each
call, in the dtype of the scales.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankfold.layers.weights.errors import FactoredWriteError
from rankfold.layers.weights.reading import made_to_be_read
from rankfold.layers.weights.scripting import Traced
from rankfold.layers.weights.weight import guarded

_STORED = (
    "is stored as whole numbers and scales, so what is written there would be lost: to train or to merge, "
    "compress in other forms (forms= without int8 and residual), or write into the dense model first"
)


class WholeNumbers(Traced):
    """Something that stores a matrix as whole numbers: ``numbers`` of them are weights, which count as parameters."""

    buffers_are_weights = True
    unscripted = ("whose weights are whole numbers", "the forms 'int8' and 'residual'")

    @property
    def numbers(self) -> int:
        raise NotImplementedError

    def dense(self) -> Tensor:
        """The matrix in the dtype of its scales, made anew."""
        raise NotImplementedError

    @property
    @made_to_be_read
    def weight(self) -> Tensor:
        """The matrix, made at each read; refuses to be written to."""
        made = guarded(self.dense())
        made._is_hf_initialized = True  # type: ignore[attr-defined]  # nothing here is to be drawn at random
        return made

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            raise FactoredWriteError(f"the weight of a {type(self).__name__} {_STORED}")
        super().__setattr__(name, value)


def numbers_of(module: nn.Module) -> int:
    """How many weights a module stores: its parameters, and what is stored as whole numbers."""
    whole = sum(each.numbers for each in module.modules() if isinstance(each, WholeNumbers))
    return sum(p.numel() for p in module.parameters()) + whole


def is_whole(module: nn.Module) -> bool:
    """Whether some weights of a layer are whole numbers."""
    return any(isinstance(each, WholeNumbers) for each in module.modules())


class Rounded(WholeNumbers):
    """A stage whose weight is ``codes`` (int8, of its shape) times ``scale``, one for each place along ``axis``."""

    if TYPE_CHECKING:
        axis: int
        codes: Tensor
        scale: Tensor
        bias: Any

    @property
    def numbers(self) -> int:
        return self.codes.numel()

    def dense(self) -> Tensor:
        sizes = [1] * self.codes.dim()
        sizes[self.axis] = -1
        return self.codes.to(self.scale.dtype) * self.scale.reshape(sizes)


class RoundedLinear(Rounded, nn.Linear):  # type: ignore[override]
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.dense(), self.bias)


class RoundedEmbedding(Rounded, nn.Embedding):  # type: ignore[override]
    """Only the rows that are looked up are multiplied by the scales; they lie along the columns."""

    def forward(self, input: Tensor) -> Tensor:
        return F.embedding(input, self.codes).to(self.scale.dtype) * self.scale


class _RoundedConv(Rounded):
    def forward(self, input: Tensor) -> Tensor:
        stage: Any = self
        return stage._conv_forward(input, self.dense(), self.bias)


class RoundedConv1d(_RoundedConv, nn.Conv1d):  # type: ignore[override]
    pass


class RoundedConv2d(_RoundedConv, nn.Conv2d):  # type: ignore[override]
    pass


class RoundedConv3d(_RoundedConv, nn.Conv3d):  # type: ignore[override]
    pass


ROUNDED: dict[type[nn.Module], type[Rounded]] = {
    nn.Linear: RoundedLinear,
    nn.Embedding: RoundedEmbedding,
    nn.Conv1d: RoundedConv1d,
    nn.Conv2d: RoundedConv2d,
    nn.Conv3d: RoundedConv3d,
}


def round_(stage: nn.Module, axis: int) -> Rounded:
    """Give a stage, fresh and not filled, whole numbers in place of its weight; its other settings stay."""
    made: Any = stage
    weight = made._parameters.pop("weight")
    made.__class__ = ROUNDED[type(stage)]
    made.axis = axis
    made.register_buffer("codes", torch.empty(weight.shape, dtype=torch.int8, device=weight.device))
    made.register_buffer("scale", torch.empty(weight.shape[axis], dtype=weight.dtype, device=weight.device))
    return made
