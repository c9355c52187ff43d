"""A layer in training on the manifold of low rank: left · core · right, of which autograd trains the core alone.

The bases move by themselves, from what probes gather in one backward pass: the gradient of the weight times each
basis, without the weight's gradient and without an inverse of the core.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.layers.training import CONVOLUTIONS, InTraining
from rankfold.layers.weights.kernels import Tucker
from rankfold.layers.weights.weight import weight_of
from rankfold.linalg.manifold.tangent import Triple, wide
from rankfold.linalg.manifold.tucker import Ladder, TuckerPoint, frames, rank_on


class DynamicLowRank(InTraining):
    """``y = x·(left·core·right)ᵀ + bias``, for a linear layer or a convolution, which ``ordinary`` is without weight.

    ``left`` (m, p) and ``right`` (q, n), orthonormal, are buffers; ``core`` (p, q) and ``bias`` are parameters. Only in
    a window may p and q differ; the rank is the smaller one.
    ``stored_transposed``: the ordinary layer keeps its weight as (n, m).
    Once ``free_`` was called, autograd trains left and right themselves; they are not orthonormal then, and the core is
    the identity.
    While ``probing`` a forward pass in training costs r(m + n) more for each row, and backward leaves in ``gradients``
    the sums of gVᵀ (m, q) and Uᵀg (p, n) over all backward passes since they were cleared.
    """

    moving = ("left", "core", "right")
    left: Tensor
    right: Tensor

    def __init__(
        self, ordinary: nn.Module, left: Tensor, core: Tensor, right: Tensor, *, stored_transposed: bool = False
    ) -> None:
        super().__init__(ordinary, (left.shape[0], right.shape[1]), stored_transposed)
        self.register_buffer("left", left)
        self.core = nn.Parameter(core)
        self.register_buffer("right", right)
        self.register_parameter("bias", self._parameters.pop("bias"))  # behind the core in the state dict
        self.probing = False
        self._probes: tuple[Tensor, Tensor] | None = None

    @property
    def rank(self) -> int:
        return min(self.core.shape)

    @property
    def freed(self) -> bool:
        """Whether left and right are parameters."""
        return isinstance(self.left, nn.Parameter)

    @torch.no_grad()
    def free_(self) -> None:
        """The same weight as two factors, which are parameters from now on: √S on either side. A direction that holds
        nothing is zero on the left alone, as in LoRA's start: with zeros on both sides it could never learn."""
        p, values, q = torch.linalg.svd(wide(self.core.detach()), full_matrices=False)
        empty = values <= torch.finfo(values.dtype).eps * values[:1].clamp_min(torch.finfo(values.dtype).tiny)
        left, right = torch.where(empty, 0.0, values.sqrt()), torch.where(empty, 1.0, values.sqrt())
        self.put_(
            wide(self.left) @ p * left, torch.eye(len(values), device=values.device),
            right.unsqueeze(1) * (q @ wide(self.right)),
        )  # fmt: skip
        self.hold_(False)

    @torch.no_grad()
    def straighten_(self) -> bool:
        """Orthonormal bases again, where what was loaded were factors in training; whether they had not been."""
        for basis in (self.left, self.right.mT):
            apart = basis.mT @ basis - torch.eye(basis.shape[1], dtype=basis.dtype, device=basis.device)
            if bool(apart.abs().max() > max(1e-3, 32 * torch.finfo(basis.dtype).eps)):
                break
        else:
            return False
        to = self.point().straightened()
        for name in self.moving:
            getattr(self, name).copy_(getattr(to, name))
        return True

    def point(self) -> Triple | TuckerPoint:
        """Bases and core in at least float32, for linear algebra."""
        return Triple(wide(self.left), wide(self.core.detach()), wide(self.right))

    def hold_(self, held: bool = True) -> None:
        """``held``: left and right are buffers, and the core is trained; else left and right are trained, and the core
        is a buffer between them. Values stay."""
        self._put_kinds({"core"} if held else {"left", "right"})

    def _put_kinds(self, trained: set[str]) -> None:
        moving, wanted = {name: getattr(self, name).detach() for name in self.moving}, self.trained[0].requires_grad
        for name, part in moving.items():
            delattr(self, name)
            if name in trained:
                self.register_parameter(name, nn.Parameter(part, wanted))
            else:
                self.register_buffer(name, part)
        self._probes, self.probing = None, False

    def factors(self) -> tuple[Tensor, ...]:
        return self.right, self.left @ self.core

    def fits(self, shapes: Mapping[str, torch.Size]) -> bool:
        (m, n), (p, q) = self.shape, (*shapes["core"], 0, 0)[:2]
        return shapes == {"left": (m, p), "core": (p, q), "right": (q, n)}

    @property
    def gradients(self) -> tuple[Tensor, Tensor] | None:
        """(gVᵀ, Uᵀg) as gathered, or None where no backward pass has met the probes."""
        if self._probes is None or any(probe.grad is None for probe in self._probes):
            return None
        return self._probes[0].grad, self._probes[1].grad  # type: ignore[return-value]

    def agreement(self) -> tuple[Tensor, Tensor]:
        """The core's gradient as the probes tell it, Uᵀ(gVᵀ), and as it is: equal, if nobody has scaled either."""
        assert self.gradients is not None
        assert self.core.grad is not None
        return self.left.mT @ self.gradients[0], self.core.grad

    def clear_gradients(self) -> None:
        """The probes themselves stay: a forward pass that is still to be differentiated may know them."""
        for probe in self._probes or ():
            probe.grad = None

    def forward(self, input: Tensor) -> Tensor:
        if not (self.probing and self.training and torch.is_grad_enabled()):
            return self._through(input, self.factors())
        left_probe, right_probe = self._ready()
        # both are zero: nothing is added but two places where gradients are taken
        return self._probed(input, left_probe, right_probe)

    def _probed(self, x: Tensor, left_probe: Tensor, right_probe: Tensor) -> Tensor:
        main = self._out(self._in(x, self.right), self.left @ self.core + left_probe, self.bias)
        return main + self._out(self._in(x, right_probe), self.left, None)

    def _ready(self) -> tuple[Tensor, Tensor]:
        left, right = self._probe_shapes()
        known = self._probes
        if known is None or (known[0].shape, known[1].shape, known[0].device) != (left, right, self.left.device):
            self._probes = self.left.new_zeros(left).requires_grad_(), self.right.new_zeros(right).requires_grad_()
        assert self._probes is not None
        return self._probes

    def _probe_shapes(self) -> tuple[torch.Size, torch.Size]:
        (p, q), (m, n) = self.core.shape, self.shape
        return torch.Size((m, q)), torch.Size((p, n))

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

    @torch.no_grad()
    def put_(self, left: Tensor, core: Tensor, right: Tensor) -> None:
        """Other factors, of any rank, in the dtype and on the device of the present ones. The core becomes another
        ``nn.Parameter``, without a gradient: graphs that are still alive know the former one at its former shape."""
        # contiguous, as they are when they are loaded: another layout rounds otherwise
        self.left, self.right = left.to(self.left).contiguous(), right.to(self.right).contiguous()
        self.core = nn.Parameter(core.to(self.core).contiguous(), self.core.requires_grad)
        self._probes = None


class DynamicTucker(DynamicLowRank):
    """A convolution in Tucker's form, 1×1 by ``right`` (q, c), the kernel ``core`` (p, q, …) and 1×1 by ``left``
    (m, p), of which autograd trains the core alone.

    ``ladder``: (p, q) at rank 1, 2, …; in a window the layer may have others. While ``probing`` backward leaves in
    ``gradients`` the weight's gradient seen through a basis of one side and the frame of the core's rows of the other,
    (m, p) and (q, c); forward runs two more small convolutions. Once ``free_`` was called all three are trained.
    """

    def __init__(self, ordinary: nn.Module, left: Tensor, core: Tensor, right: Tensor, ladder: Ladder) -> None:
        super().__init__(ordinary, left, core, right)
        points = core[0, 0].numel()
        self.shape, self.ladder = (left.shape[0], right.shape[1] * points), ladder

    @property
    def rank(self) -> int:
        return rank_on(self.ladder, self.core)

    def numbers_at(self, rank: int) -> int:
        (m, n), (p, q), points = self.shape, self.ladder[rank - 1], self.core[0, 0].numel()
        return q * (n // points) + p * q * points + m * p

    def point(self) -> TuckerPoint:
        return TuckerPoint(wide(self.left), wide(self.core.detach()), wide(self.right), self.ladder)

    def free_(self) -> None:
        """Bases and core as they are become parameters."""
        self.hold_(False)

    def hold_(self, held: bool = True) -> None:
        self._put_kinds({"core"} if held else {"left", "core", "right"})

    def factors(self) -> tuple[Tensor, ...]:
        return self.right, self.core, self.left

    @property
    def weight(self) -> Tensor:
        right, core, left = self.factors()
        return weight_of(Tucker(), (self._at_a_point(right), core, self._at_a_point(left)))

    def fits(self, shapes: Mapping[str, torch.Size]) -> bool:
        m, channels = self.left.shape[0], self.right.shape[1]
        p, q = (*shapes["core"], 0, 0)[:2]
        return shapes == {"left": (m, p), "core": (p, q, *self.core.shape[2:]), "right": (q, channels)}

    def _through(self, x: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
        right, core, left = factors
        return self._mix(self._convolved(self._mix(x, right), core), left, self.bias)

    def _probed(self, x: Tensor, left_probe: Tensor, right_probe: Tensor) -> Tensor:
        with torch.no_grad():
            out_frame, in_frame = (frame.to(self.core) for frame in frames(wide(self.core.detach())))
        within = self._mix(x, self.right)
        core = self._convolved(within, self.core)
        main = self._mix(core, self.left, self.bias) + self._mix(self._convolved(within, out_frame), left_probe)
        return main + self._mix(self._convolved(self._mix(x, right_probe), in_frame), self.left)

    def agreement(self) -> tuple[Tensor, Tensor]:
        expected, given = super().agreement()  # through the frame of the core's rows
        frame = frames(wide(self.core.detach()))[0].flatten(1)
        return expected, wide(given).flatten(1) @ frame.mT

    def _probe_shapes(self) -> tuple[torch.Size, torch.Size]:
        return self.left.shape, self.right.shape

    def _mix(self, x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
        return CONVOLUTIONS[len(self.kernel)](x, self._at_a_point(matrix), bias)

    def _convolved(self, x: Tensor, kernel: Tensor) -> Tensor:
        return self.ordinary._conv_forward(x, kernel, None)  # type: ignore[operator]

    def _at_a_point(self, matrix: Tensor) -> Tensor:
        return matrix[(..., *(None,) * len(self.kernel))]

    def extra_repr(self) -> str:
        (m, n), (p, q) = self.shape, self.core.shape[:2]
        return f"{n // self.core[0, 0].numel()}, {m}, kernel_size={self.kernel}, ranks=({p}, {q})"
