"""A layer in training on the manifold of low rank: left · core · right, of which autograd trains the core alone.

The bases move by themselves, from what ``Probes`` gather in one backward pass: the gradient of the weight times each
basis, without the weight's gradient and without an inverse of the core.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankfold.layers.rules import Matrix, Pair
from rankfold.layers.weight import weight_of

_CONVOLUTIONS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class DynamicLowRank(nn.Module):
    """``y = x·(left·core·right)ᵀ + bias``, for a linear layer or a convolution, which ``ordinary`` is without weight.

    ``left`` (m, r) and ``right`` (r, n), orthonormal, are buffers; ``core`` (r, r) and ``bias`` are parameters.
    ``stored_transposed``: the ordinary layer keeps its weight as (n, m).
    While ``probing`` a forward pass in training costs r(m + n) more for each row, and backward leaves in ``gradients``
    the sums of gVᵀ (m, r) and Uᵀg (r, n) over all backward passes since they were cleared.
    """

    left: Tensor
    right: Tensor
    bias: nn.Parameter | None

    def __init__(
        self, ordinary: nn.Module, left: Tensor, core: Tensor, right: Tensor, *, stored_transposed: bool = False
    ) -> None:
        super().__init__()
        self.stored_transposed, self.kernel = stored_transposed, tuple(getattr(ordinary, "kernel_size", ()))
        self.register_buffer("left", left)
        self.core = nn.Parameter(core)
        self.register_buffer("right", right)
        bias = ordinary._parameters.get("bias")
        self.register_parameter("bias", bias)
        ordinary._parameters["weight"] = ordinary._parameters["bias"] = None
        self._ordinary = (ordinary,)  # no submodule: it has no weight and is only asked how it convolves
        self.probing = False
        self._probes: tuple[Tensor, Tensor] | None = None

    @property
    def ordinary(self) -> nn.Module:
        """The layer that this one stands for, without weight and bias."""
        return self._ordinary[0]

    @property
    def rank(self) -> int:
        return self.core.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of the matrix."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def weight(self) -> Tensor:
        """The dense weight as the ordinary layer keeps it, multiplied out only where it must be (docs/layers.md)."""
        factors = (self.right, self.left @ self.core)
        if not self.kernel:
            matrix = weight_of(Matrix(), factors)
            return matrix.t() if self.stored_transposed else matrix
        return weight_of(Pair(1, False), (self._kernel(factors[0]), factors[1][(..., *(None,) * len(self.kernel))]))

    @property
    def gradients(self) -> tuple[Tensor, Tensor] | None:
        """(gVᵀ, Uᵀg) as gathered, or None where no backward pass has met the probes."""
        if self._probes is None or any(probe.grad is None for probe in self._probes):
            return None
        return self._probes[0].grad, self._probes[1].grad  # type: ignore[return-value]

    def clear_gradients(self) -> None:
        """The probes themselves stay: a forward pass that is still to be differentiated may know them."""
        for probe in self._probes or ():
            probe.grad = None

    def forward(self, input: Tensor) -> Tensor:  # named as in nn.Linear: callers may
        if not (self.probing and self.training and torch.is_grad_enabled()):
            return self._out(self._in(input, self.right), self.left @ self.core, self.bias)
        left_probe, right_probe = self._ready()
        # both are zero: nothing is added but two places where gradients are taken
        main = self._out(self._in(input, self.right), self.left @ self.core + left_probe, self.bias)
        return main + self._out(self._in(input, right_probe), self.left, None)

    def _ready(self) -> tuple[Tensor, Tensor]:
        if (
            self._probes is None
            or self._probes[0].shape != self.left.shape
            or self._probes[0].device != self.left.device
        ):
            self._probes = (
                torch.zeros_like(self.left).requires_grad_(),
                torch.zeros_like(self.right).requires_grad_(),
            )
        return self._probes

    def _kernel(self, right: Tensor) -> Tensor:
        return right.reshape(right.shape[0], -1, *self.kernel)

    def _in(self, x: Tensor, right: Tensor) -> Tensor:
        if not self.kernel:
            return F.linear(x, right)
        return self.ordinary._conv_forward(x, self._kernel(right), None)  # type: ignore[operator]

    def _out(self, h: Tensor, left: Tensor, bias: Tensor | None) -> Tensor:
        if not self.kernel:
            return F.linear(h, left, bias)
        return _CONVOLUTIONS[len(self.kernel)](h, left[(..., *(None,) * len(self.kernel))], bias)

    def __deepcopy__(self, memo: Any) -> DynamicLowRank:
        probes, self._probes = self._probes, None  # of a graph of the original alone
        try:
            made = self.__class__.__new__(self.__class__)
            memo[id(self)] = made
            made.__dict__.update({key: copy.deepcopy(value, memo) for key, value in self.__dict__.items()})
        finally:
            self._probes = probes
        return made

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_probes": None}

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """Of another rank too: the layer takes the rank of what is loaded; another m or n is refused as always."""
        core = state_dict.get(f"{prefix}core")
        if isinstance(core, Tensor) and core.dim() == 2 and core.shape[0] == core.shape[1] != self.rank:
            self.resize_(core.shape[0])
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @torch.no_grad()
    def resize_(self, rank: int) -> None:
        """Room for another rank, not filled."""
        (m, n), old = self.shape, self.core
        self.put_(self.left.new_empty(m, rank), old.new_empty(rank, rank), self.right.new_empty(rank, n))

    @torch.no_grad()
    def put_(self, left: Tensor, core: Tensor, right: Tensor) -> None:
        """Other factors, of any rank, in the dtype and on the device of the present ones. The core becomes another
        ``nn.Parameter``, without a gradient: graphs that are still alive know the former one at its former shape."""
        # contiguous, as they are when they are loaded: another layout rounds otherwise
        self.left, self.right = left.to(self.left).contiguous(), right.to(self.right).contiguous()
        self.core = nn.Parameter(core.to(self.core).contiguous(), self.core.requires_grad)
        self._probes = None

    def extra_repr(self) -> str:
        m, n = self.shape
        return f"{n}, {m}, rank={self.rank}"
