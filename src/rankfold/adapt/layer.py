"""Frozen layers with an update of low rank beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankfold.linalg.leading import Leading, leading_of_product
from rankfold.sites import Form, Layer, read_layer

_CONVOLUTIONS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class AdaptedLayer(nn.Module):
    """A frozen ``base`` (``nn.Linear``, Hugging Face's ``Conv1D``, an ungrouped convolution) and an update beside it.

    What kinds differ in is ``matrices``: B (m, r) and A (r, n) of the update ``scaling`` · B A, the weight of the base
    read as a matrix (m, n).
    """

    gone: bool = False  # the base is in its place again: the optimizer that trained it has nothing left to train

    def __init__(self, base: nn.Module, scaling: float = 1.0) -> None:
        super().__init__()
        layer = read_layer(base)
        if layer is None:
            raise TypeError(f"a {type(base).__name__} has no matrix that could be adapted")
        self.base, self.scaling, self._layer = base, scaling, layer

    @property
    def kind(self) -> Layer:
        """How the base is read."""
        return self._layer

    @property
    def kernel(self) -> tuple[int, ...]:
        """(C_in, k, …) of a convolution; () of a linear layer."""
        conv = self._layer.convolution
        return () if conv is None else (conv.channels_in, *conv.kernel)

    @property
    def stored_transposed(self) -> bool:
        return self._layer.stored_transposed

    def __getattr__(self, name: str) -> Any:
        """What the base says of itself (in_features, stride, …), for code that was written for it."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            base = self.__dict__.get("_modules", {}).get("base")
            if base is None or name.startswith("__"):  # copying and pickling are this layer's own matter
                raise
            return getattr(base, name)

    def matrices(self) -> tuple[Tensor, Tensor]:
        """B (m, r) and A (r, n)."""
        raise NotImplementedError

    @property
    def rank(self) -> int:
        return self.matrices()[0].shape[1]

    def update(self) -> Tensor:
        """The update as a matrix (m, n), scaling included."""
        left, right = self.matrices()
        return self.scaling * left @ right

    @property
    def weight(self) -> Tensor:
        """The weight with its update, as the base stores it; computed at each read."""
        weight: Any = self.base.weight
        return weight + self._layer.geometry(Form.FACTORED).fold(weight.shape, self.update()).to(weight)

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias  # type: ignore[return-value]

    def spectrum(self) -> Leading:
        """The singular value decomposition of B A, without the scaling, float64 on the CPU; nothing of (m, n)."""
        left, right = (part.detach().double().cpu() for part in self.matrices())
        return leading_of_product(left, right)

    def lora(self, tolerance: float = 0.0) -> tuple[Tensor, Tensor]:
        """Balanced A (r, n) and B (m, r) with the update's product, float64; without the scaling.

        Singular values of at most ``tolerance`` times the largest are left out; at least one is kept.
        Cost O((m + n) r²): the product is not formed.
        """
        found = self.spectrum()
        kept = len(found.values)
        if tolerance > 0 and kept:
            kept = int((found.values > tolerance * found.values[0]).sum())
        return found.pair(max(1, kept))

    def _inwards(self, x: Tensor, right: Tensor) -> Tensor:
        if not self.kernel:
            return F.linear(x, right)
        return self.base._conv_forward(x, right.reshape(len(right), *self.kernel), None)  # type: ignore[operator]

    def _outwards(self, x: Tensor, left: Tensor) -> Tensor:
        if not self.kernel:
            return F.linear(x, left)
        points = len(self.kernel) - 1
        return _CONVOLUTIONS[points](x, left[(..., *(None,) * points)])

    def extra_repr(self) -> str:
        return f"rank={self.rank}, scaling={self.scaling:g}"


class DeepLoRALinear(AdaptedLayer):
    """``x ↦ base(x) + scaling · x (W_L … W_1)ᵀ``: ``factors`` are W_L (m, r), (r, r) …, W_1 (r, n).

    Two factors are ordinary LoRA.
    """

    def __init__(self, base: nn.Module, factors: Sequence[Tensor], scaling: float) -> None:
        super().__init__(base, scaling)
        self.factors = nn.ParameterList(factors)

    @property
    def rank(self) -> int:
        return self.factors[0].shape[1]

    def matrices(self) -> tuple[Tensor, Tensor]:
        first, *inner, last = self.factors
        for factor in inner:
            first = first @ factor
        return first, last

    def forward(self, input: Tensor) -> Tensor:
        x = input
        for factor in reversed(self.factors):
            x = F.linear(x, factor)
        return self.base(input) + self.scaling * x

    def extra_repr(self) -> str:
        return f"rank={self.rank}, depth={len(self.factors)}, scaling={self.scaling:g}"


class AtomicLayer(AdaptedLayer):
    """``base`` with an update Σ sᵢ uᵢ vᵢᵀ of atoms: ``left`` U (m, r) and ``right`` Vᵀ (r, n) of unit length, ``gains``
    s (r,) ≥ 0. The sum of all gains of all layers is at most ``radius``; see ``rankfold.debora_``."""

    def __init__(self, base: nn.Module, left: Tensor, gains: Tensor, right: Tensor, radius: float, frame: str) -> None:
        super().__init__(base)
        self.left, self.gains, self.right = nn.Parameter(left), nn.Parameter(gains), nn.Parameter(right)
        self.radius, self.frame = radius, frame

    @property
    def rank(self) -> int:
        return len(self.gains)

    def matrices(self) -> tuple[Tensor, Tensor]:
        return self.left * self.gains, self.right

    def forward(self, input: Tensor) -> Tensor:
        if not self.rank:
            return self.base(input)
        return self.base(input) + self._outwards(self._inwards(input, self.right), self.left * self.gains)

    @torch.no_grad()
    def put_(self, left: Tensor, gains: Tensor, right: Tensor) -> None:
        """Other atoms, as many as there are; the parameters stay the same objects."""
        for parameter, value in ((self.left, left), (self.gains, gains), (self.right, right)):
            parameter.data = value.to(parameter).contiguous()
            parameter.grad = None

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """Of another number of atoms too; another m or n is refused as always."""
        gains = state_dict.get(f"{prefix}gains")
        if isinstance(gains, Tensor) and gains.dim() == 1 and len(gains) != self.rank:
            self.put_(
                self.left.new_zeros(len(self.left), len(gains)), self.gains.new_zeros(len(gains)),
                self.right.new_zeros(len(gains), self.right.shape[1]),
            )  # fmt: skip
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        return f"atoms={self.rank}, radius={self.radius:g}, {self.frame}"
