"""Convolutions in one, two and three dimensions, plain and transposed, with any stride, padding, dilation, groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rankfold.forms import Call, Convolution, Form, Layer, Side
from rankfold.forms.convolving import PLAIN, TRANSPOSED, kernel_macs, same
from rankfold.forms.geometry import ChannelFolding
from rankfold.sites.kinds.acting import acts_as
from rankfold.sites.patches import patches, sampled, taken
from rankfold.sites.product import ordinary_class

PATCH_LIMIT = 2304  # columns: moments of 256 channels × 3 × 3 take 42 MB


@dataclass(frozen=True)
class ConvLayer(Layer):
    kind: str
    setting: Convolution
    has_bias: bool

    @property
    def convolution(self) -> Convolution:  # type: ignore[override]
        return self.setting

    @property
    def kernel(self) -> tuple[int, ...]:
        return self.setting.kernel

    @property
    def transposed(self) -> bool:
        return self.setting.transposed

    @property
    def groups(self) -> int:
        return self.setting.groups

    @property
    def shape(self) -> tuple[int, int]:
        conv = self.setting
        return conv.channels_out // conv.groups, conv.channels_in // conv.groups * conv.points

    @property
    def side(self) -> Side:
        # the spatial pair needs to know the patches; where their moments would be large, it is not offered
        return "input" if Form.SPATIAL.offered(self) and self.shape[1] <= PATCH_LIMIT else "output"

    @property
    def matricization(self) -> ChannelFolding:
        return ChannelFolding(self.groups, self.transposed)

    def rows(self, module: Any, inputs: Tensor, output: Tensor) -> Tensor:
        return self.output_rows(output) if self.side == "output" else patches(module, inputs)

    def output_rows(self, output: Tensor) -> Tensor:
        batched = output if output.dim() == len(self.kernel) + 2 else output.unsqueeze(0)
        rows = batched.movedim(1, -1).reshape(-1, self.setting.channels_out)
        return rows if self.groups == 1 else rows.unflatten(1, (self.groups, -1)).transpose(0, 1)

    def paired_rows(self, module: Any, inputs: Tensor, *outputs: Tensor) -> tuple[Tensor, ...] | None:
        if self.transposed:
            return None
        rows, at = sampled(module, inputs)
        return rows, *(taken(module, output, at) for output in outputs)

    def dense(self, old: Any, bias: bool) -> nn.Module:
        conv = self.setting
        return same(old, len(conv.kernel), conv.channels_in, conv.channels_out, conv.groups, bias)

    def dense_flops(self, calls: Sequence[Call]) -> int:
        conv = self.setting
        one = conv.channels_out * conv.channels_in // conv.groups * conv.points
        return 2 * sum(one * kernel_macs(conv, call) for call in calls)


def read_convolution(module: Any) -> ConvLayer | None:
    """The layer object of a convolution; None for any other module."""
    for kinds in (PLAIN, TRANSPOSED):
        for kind in kinds:
            if ordinary_class(module).forward is kind.forward or acts_as(module, kind):
                setting = Convolution(
                    module.in_channels, module.out_channels, tuple(module.kernel_size), module.groups,
                    kinds is TRANSPOSED,
                )  # fmt: skip
                return ConvLayer(kind.__name__, setting, module.bias is not None)
    return None
