"""What layers in training have in common: they stand for an ordinary layer, and their parameters may change shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankfold.layers.weights.kernels import Pair
from rankfold.layers.weights.matrices import Matrix
from rankfold.layers.weights.weight import weight_of

CONVOLUTIONS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class InTraining(nn.Module):
    """A layer that trains in the place of an ordinary one, a linear layer or a convolution, in another shape.

    Entries of the state dict that ``moving`` names change their shapes in training, and take the shapes of what is
    loaded. Their optimizer averages gradients of parameters among them over processes: ``DistributedDataParallel`` does
    not know parameters that come later.
    """

    moving: ClassVar[tuple[str, ...]] = ()
    gone: bool = (
        False  # the ordinary layer is in its place again: the optimizer that trained it has nothing left to train
    )
    prepared: str = ""  # the function that has put it in its place
    bias: nn.Parameter | None

    def __init__(self, ordinary: nn.Module, shape: tuple[int, int], stored_transposed: bool) -> None:
        super().__init__()
        self.stored_transposed, self.kernel = stored_transposed, tuple(getattr(ordinary, "kernel_size", ()))
        self.shape = shape  # (m, n) of the matrix
        self.lacking = ""  # what the optimizer was to reach and has not, in a sentence, for whoever ends the training
        bias = ordinary._parameters.get("bias")
        self.register_parameter("bias", bias)
        ordinary._parameters["weight"] = ordinary._parameters["bias"] = None
        self._ordinary = (ordinary,)  # no submodule: it has no weight and is only asked how it convolves

    def __getattr__(self, name: str) -> Any:
        """Settings of the ordinary layer too (``in_features``, ``stride``), which code around it may read."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            settings = vars(vars(self)["_ordinary"][0]) if "_ordinary" in vars(self) else {}
            if name.startswith("_") or name in self.moving or name not in settings:
                raise
            return settings[name]

    @property
    def ordinary(self) -> nn.Module:
        """The layer that this one stands for, without weight and bias."""
        return self._ordinary[0]

    @property
    def trained(self) -> tuple[nn.Parameter, ...]:
        """The parameters of its weight, in this phase of the training."""
        return tuple(p for name, p in self.named_parameters(recurse=False) if name != "bias")

    @property
    def rank(self) -> int:
        raise NotImplementedError

    @property
    def numbers(self) -> int:
        """How many its weight takes when it is stored as it is meant to end."""
        return self.numbers_at(self.rank)

    def numbers_at(self, rank: int) -> int:
        """How many that would be at another rank."""
        return rank * sum(self.shape)

    def factors(self) -> tuple[Tensor, ...]:
        """(right (r, n), left (m, r)), whose product left·right the weight is; or the matrix (m, n) alone."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """The dense weight as the ordinary layer keeps it, multiplied out only where it must be (docs/layers.md)."""
        factors = self.factors()
        if len(factors) == 1:
            matrix = factors[0]
            if not self.kernel:
                return matrix.t() if self.stored_transposed else matrix
            return self._kernel(matrix)
        if not self.kernel:
            matrix = weight_of(Matrix(), factors)
            return matrix.t() if self.stored_transposed else matrix
        return weight_of(Pair(1, False), (self._kernel(factors[0]), factors[1][(..., *(None,) * len(self.kernel))]))

    def forward(self, input: Tensor) -> Tensor:  # named as in nn.Linear: callers may
        return self._through(input, self.factors())

    def _through(self, x: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
        if len(factors) == 1:
            return self._in(x, factors[0], self.bias)
        return self._out(self._in(x, factors[0]), factors[1], self.bias)

    def _kernel(self, right: Tensor) -> Tensor:
        return right.reshape(right.shape[0], -1, *self.kernel)

    def _in(self, x: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
        if not self.kernel:
            return F.linear(x, right, bias)
        return self.ordinary._conv_forward(x, self._kernel(right), bias)  # type: ignore[operator]

    def _out(self, h: Tensor, left: Tensor, bias: Tensor | None) -> Tensor:
        if not self.kernel:
            return F.linear(h, left, bias)
        return CONVOLUTIONS[len(self.kernel)](h, left[(..., *(None,) * len(self.kernel))], bias)

    def resize_(self, shapes: Mapping[str, torch.Size]) -> None:
        """Room for other shapes of what is ``moving``, not filled; parameters become other ones. Nothing where they do
        not belong to this layer: loading then refuses as always."""
        for name in self.moving:
            old = getattr(self, name)
            if name in shapes and shapes[name] != old.shape:
                new = torch.empty(shapes[name], dtype=old.dtype, device=old.device)
                setattr(self, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)

    def fits(self, shapes: Mapping[str, torch.Size]) -> bool:
        """Whether these are shapes that the layer may take."""
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """Of another rank too: the layer takes the rank of what is loaded; another m or n is refused as always."""
        given = {name: state_dict.get(f"{prefix}{name}") for name in self.moving}
        shapes = {name: value.shape for name, value in given.items() if isinstance(value, Tensor)}
        if len(shapes) == len(self.moving) and self.fits(shapes):
            self.resize_(shapes)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        m, n = self.shape
        return f"{n}, {m}, rank={self.rank}"
