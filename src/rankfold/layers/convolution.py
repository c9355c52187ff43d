"""Convolutions as chains of cheaper ones, with the settings of the layer that each stands for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rankfold.layers.weights.kernels import CP, Pair, Spatial, Tucker
from rankfold.layers.weights.products import cp_kernel, low_rank_kernel, spatial_kernel, tucker_kernel
from rankfold.layers.weights.reading import made_to_be_read
from rankfold.layers.weights.refuse import RefusesWeight
from rankfold.layers.weights.rule import Rule
from rankfold.layers.weights.weight import weight_of

_SETTINGS = ("kernel_size", "stride", "padding", "dilation", "padding_mode", "output_padding")


class FactoredConv(RefusesWeight, nn.Module):
    """A convolution as a chain of cheaper ones, run in order; subclasses say how the factors form the kernel.

    ``in_channels``, ``out_channels``, ``kernel_size``, ``stride``, ``padding``, ``dilation``, ``groups``,
    ``padding_mode``, ``output_padding`` and ``transposed`` are those of the convolution it stands for, which may itself
    be a stage of another.
    """

    __constants__ = (*_SETTINGS, "groups", "transposed", "in_channels", "out_channels")

    if TYPE_CHECKING:  # for readers alone: TorchScript takes annotations of a class for attributes of its own
        kernel_size: tuple[int, ...]
        stride: tuple[int, ...]
        padding: tuple[int, ...] | str
        dilation: tuple[int, ...]
        padding_mode: str
        output_padding: tuple[int, ...]
        up: Any

    def __init__(self, stages: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, stage in stages.items():
            self.add_module(name, stage)
        chain: list[Any] = list(stages.values())
        self.in_channels: int = chain[0].in_channels
        self.out_channels: int = chain[-1].out_channels
        self.groups: int = chain[0].groups
        self.transposed: bool = chain[0].transposed
        for name in _SETTINGS:
            setattr(self, name, self._setting(name, chain))

    def _setting(self, name: str, chain: list[Any]) -> Any:
        """One setting of the dense layer, read from the stages."""
        return getattr(chain[0], name)

    @property
    def bias(self) -> Tensor | None:
        return self.up.bias

    def forward(self, input: Tensor) -> Tensor:
        for stage in self.children():
            input = stage(input)
        return input

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"


class LowRankConv(FactoredConv):
    """A k×k (transposed) convolution to r channels, then 1×1 to the outputs. Exact at full rank for every setting.

    Args:
        stages: its two convolutions by name, ``down`` and ``up``; made by ``rankfold.apply_``.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(4, 8, 3))
        >>> _ = rf.apply_(net, rf.plan(net, rf.Ranks({"0": 2}), "truncate", example=torch.randn(1, 4, 5, 5)))
        >>> type(net[0]).__name__, net[0].down.out_channels
        ('LowRankConv', 2)
    """

    if TYPE_CHECKING:
        down: Any
        up: Any

    @property
    def weight(self) -> Tensor:
        """The dense kernel, shaped as in the layer it stands for, as a ``FactoredWeight`` (docs/layers.md)."""
        if torch.jit.is_scripting():
            return low_rank_kernel(self.down.weight, self.up.weight, self.groups, self.transposed)
        return _kernel(self, "pair")

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """``output_size`` as in ``nn.ConvTranspose2d``, for a transposed convolution."""
        if self.transposed:
            return self.up(self.down(input, output_size))
        return self.up(self.down(input))


class SpatialConv2d(FactoredConv):
    """A k_h×1 convolution to r channels, then 1×k_w to the outputs: r·(C_in·k_h + C_out·k_w) weights."""

    if TYPE_CHECKING:
        down: nn.Conv2d
        up: nn.Conv2d

    def _setting(self, name: str, chain: list[Any]) -> Any:
        return _by_axis(name, chain)

    @property
    def weight(self) -> Tensor:
        if torch.jit.is_scripting():
            return spatial_kernel(self.down.weight, self.up.weight)
        return _kernel(self, "spatial")


class TuckerConv(FactoredConv):
    """Tucker-2: 1×1 to r_in channels, the k×k core, 1×1 to the outputs."""

    if TYPE_CHECKING:
        down: Any
        core: Any
        up: Any

    def _setting(self, name: str, chain: list[Any]) -> Any:
        return getattr(chain[1], name)

    @property
    def weight(self) -> Tensor:
        if torch.jit.is_scripting():
            return tucker_kernel(self.down.weight, self.core.weight, self.up.weight)
        return _kernel(self, "tucker")


class CPConv(FactoredConv):
    """CP: 1×1 to r channels, one depthwise convolution along each axis, 1×1 to the outputs."""

    if TYPE_CHECKING:
        down: Any
        up: Any

    def _setting(self, name: str, chain: list[Any]) -> Any:
        return _by_axis(name, chain[1:-1])

    @property
    def weight(self) -> Tensor:
        if torch.jit.is_scripting():
            factors: list[Tensor] = []
            for stage in self.children():
                factors.append(stage.weight)  # type: ignore[arg-type]
            return cp_kernel(factors)
        return _kernel(self, "cp")


def _by_axis(name: str, chain: list[Any]) -> Any:
    """A setting whose entry for each axis is that of the stage along it."""
    first = getattr(chain[0], name)
    return first if isinstance(first, str) else tuple(getattr(stage, name)[a] for a, stage in enumerate(chain))


@torch.jit.unused
@made_to_be_read
def _kernel(layer: Any, form: str) -> Tensor:
    rules: dict[str, Rule] = {
        "pair": Pair(layer.groups, layer.transposed), "spatial": Spatial(), "tucker": Tucker(), "cp": CP(),
    }  # fmt: skip
    return weight_of(rules[form], [stage.weight for stage in layer.children()])
