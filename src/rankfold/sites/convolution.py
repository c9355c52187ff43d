"""Convolutions in one, two and three dimensions, plain and transposed, with any stride, padding, dilation, groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.layers import CPConv, LowRankConv, SpatialConv2d, TuckerConv
from rankfold.sites.geometry import ChannelFolding, Matricization, SpatialFolding
from rankfold.sites.patches import patches, sampled, taken
from rankfold.sites.product import ordinary_class
from rankfold.sites.setting import setting_of
from rankfold.sites.site import Call, Factors, Form, Side

_PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
PATCH_LIMIT = 2304  # columns: moments of 256 channels × 3 × 3 take 42 MB
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class ConvLayer:
    kind: str
    channels_in: int
    channels_out: int
    kernel: tuple[int, ...]
    groups: int
    has_bias: bool
    transposed: bool

    @property
    def shape(self) -> tuple[int, int]:
        return self.channels_out // self.groups, self.channels_in // self.groups * prod(self.kernel)

    @property
    def forms(self) -> frozenset[Form]:
        forms = {Form.KEEP, Form.DENSE, Form.FACTORED}
        if self.groups == 1 and not self.transposed and prod(self.kernel) > 1:
            forms |= {Form.TUCKER, Form.CP}
            if len(self.kernel) == 2 and min(self.kernel) > 1:
                forms.add(Form.SPATIAL)
        return frozenset(forms)

    @property
    def side(self) -> Side:
        # the spatial pair needs to know the patches; where their moments would be large, it is not offered
        return "input" if Form.SPATIAL in self.forms and self.shape[1] <= PATCH_LIMIT else "output"

    def geometry(self, form: Form) -> Matricization:
        return SpatialFolding() if form is Form.SPATIAL else ChannelFolding(self.groups, self.transposed)

    def tucker_ranks(self, rank: int) -> tuple[int, int]:
        """(r_out, r_in) of the Tucker form at ``rank`` output channels: both modes keep the same fraction."""
        share = ceil(rank * self.channels_in / self.max_rank(Form.TUCKER))
        return rank, min(self.channels_in, share, rank * prod(self.kernel))

    def max_rank(self, form: Form) -> int:
        if form is Form.SPATIAL:
            return min(self.channels_out * self.kernel[1], self.channels_in * self.kernel[0])
        if form is Form.TUCKER:  # of the kernel unfolded along its output channels
            return min(self.shape)
        if form is Form.CP:
            # a larger CP rank is possible but then costs more than the dense kernel in every case met
            return min(self.channels_out, self.channels_in) * max(self.kernel)
        return min(self.shape)

    def rows(self, module: Any, inputs: Tensor, output: Tensor) -> Tensor:
        return self.output_rows(output) if self.side == "output" else patches(module, inputs)

    def output_rows(self, output: Tensor) -> Tensor:
        batched = output if output.dim() == len(self.kernel) + 2 else output.unsqueeze(0)
        rows = batched.movedim(1, -1).reshape(-1, self.channels_out)
        return rows if self.groups == 1 else rows.unflatten(1, (self.groups, -1)).transpose(0, 1)

    def paired_rows(self, module: Any, inputs: Tensor, *outputs: Tensor) -> tuple[Tensor, ...] | None:
        if self.transposed:
            return None
        rows, at = sampled(module, inputs)
        return rows, *(taken(module, output, at) for output in outputs)

    def params(self, form: Form, rank: int, bias: bool) -> int:
        c_in, c_out, k = self.channels_in, self.channels_out, prod(self.kernel)
        if form is Form.FACTORED:
            weights = rank * c_in * k + c_out * rank
        elif form is Form.SPATIAL:
            weights = rank * (c_in * self.kernel[0] + c_out * self.kernel[1])
        elif form is Form.TUCKER:
            r_out, r_in = self.tucker_ranks(rank)
            weights = r_in * c_in + r_out * r_in * k + c_out * r_out
        elif form is Form.CP:
            weights = rank * (c_in + sum(self.kernel) + c_out)
        else:
            weights = c_out * c_in // self.groups * k
        return weights + (c_out if bias else 0)

    def flops(self, form: Form, rank: int, calls: Sequence[Call]) -> int:
        return sum(self._flops(form, rank, call) for call in calls)

    def _flops(self, form: Form, rank: int, call: Call) -> int:
        dims = len(self.kernel)
        batch = call.output[0] if len(call.output) == dims + 2 else 1
        size_in, size_out = call.input[-dims:], call.output[-dims:]
        p_in, p_out, k = prod(size_in), prod(size_out), prod(self.kernel)
        c_in, c_out = self.channels_in, self.channels_out
        if form is Form.FACTORED:
            macs = rank * c_in * k * (p_in if self.transposed else p_out) + c_out * rank * p_out
        elif form is Form.SPATIAL:
            macs = rank * c_in * self.kernel[0] * size_out[0] * size_in[1] + c_out * rank * self.kernel[1] * p_out
        elif form is Form.TUCKER:
            r_out, r_in = self.tucker_ranks(rank)
            macs = r_in * c_in * p_in + r_out * r_in * k * p_out + c_out * r_out * p_out
        elif form is Form.CP:
            lines = 0
            for axis, length in enumerate(self.kernel):
                lines += rank * length * prod(size_out[: axis + 1]) * prod(size_in[axis + 1 :])
            macs = rank * c_in * p_in + lines + c_out * rank * p_out
        else:
            macs = c_out * c_in // self.groups * k * (p_in if self.transposed else p_out)
        return 2 * batch * macs

    def skeleton(self, like: Any, form: Form, rank: int, bias: bool) -> nn.Module:
        return self._ghost(like, form, rank, bias).to_empty(device=like.weight.device)

    def _ghost(self, like: Any, form: Form, rank: int, bias: bool) -> nn.Module:
        """On the meta device: nothing is initialised, and no random number is drawn."""
        dims = len(self.kernel)
        factory: dict[str, Any] = {"device": "meta", "dtype": like.weight.dtype}
        like = setting_of(like)
        conv: Any = _PLAIN[dims - 1]
        same: Any = _TRANSPOSED[dims - 1] if self.transposed else conv
        setting = {"stride": like.stride, "padding": like.padding, "dilation": like.dilation}
        setting["padding_mode"] = like.padding_mode
        if self.transposed:
            setting["output_padding"] = like.output_padding

        def one_by_one(inputs: int, outputs: int, bias: bool = False, groups: int = 1) -> nn.Module:
            return conv(inputs, outputs, 1, bias=bias, groups=groups, **factory)

        def along(axis: int, inputs: int, outputs: int, groups: int = 1, bias: bool = False) -> nn.Module:
            """A convolution along one axis, with the original layer's setting on that axis and none on the others."""
            alone: dict[str, Any] = {
                key: tuple(value[a] if a == axis else neutral for a in range(dims))
                for key, value, neutral in (
                    ("kernel_size", self.kernel, 1),
                    ("stride", like.stride, 1),
                    ("dilation", like.dilation, 1),
                )
            }
            padding = like.padding
            if not isinstance(padding, str):
                padding = tuple(padding[a] if a == axis else 0 for a in range(dims))
            return conv(
                inputs, outputs, padding=padding, padding_mode=like.padding_mode, groups=groups, bias=bias,
                **alone, **factory,
            )  # fmt: skip

        c_in, c_out = self.channels_in, self.channels_out
        if form is Form.FACTORED:
            wide = rank * self.groups
            down = same(c_in, wide, self.kernel, groups=self.groups, bias=False, **setting, **factory)
            return LowRankConv({"down": down, "up": one_by_one(wide, c_out, bias, self.groups)})
        if form is Form.SPATIAL:
            return SpatialConv2d({"down": along(0, c_in, rank), "up": along(1, rank, c_out, bias=bias)})
        if form is Form.TUCKER:
            r_out, r_in = self.tucker_ranks(rank)
            core = conv(r_in, r_out, self.kernel, bias=False, **setting, **factory)
            return TuckerConv({"down": one_by_one(c_in, r_in), "core": core, "up": one_by_one(r_out, c_out, bias)})
        if form is Form.CP:
            lines = {f"line{axis}": along(axis, rank, rank, groups=rank) for axis in range(dims)}
            return CPConv({"down": one_by_one(c_in, rank), **lines, "up": one_by_one(rank, c_out, bias)})
        return same(c_in, c_out, self.kernel, groups=self.groups, bias=bias, **setting, **factory)

    @torch.no_grad()
    def write_(self, layer: Any, form: Form, factors: Factors) -> None:
        if form is Form.DENSE:
            weight: Tensor = layer.weight
            weight.copy_(self.geometry(form).put(weight, factors.parts[0].to(weight.dtype)))
            return
        stages: list[Any] = list(layer.children())
        parts = list(factors.parts)
        if form is Form.FACTORED and self.transposed:
            # stored as (C_in, r, *k) with the groups along C_in, so the matrix (g, r, C_in/g·k) turns back through put
            down = ChannelFolding(self.groups, transposed=True).put(stages[0].weight, parts[0])
            stages[0].weight.copy_(down)
            stages[1].weight.copy_(parts[1].reshape(stages[1].weight.shape))
            return
        if form is Form.SPATIAL:
            c_out, rank, _, k_w = stages[1].weight.shape
            parts[1] = parts[1].reshape(c_out, k_w, rank).transpose(1, 2)
        for stage, part in zip(stages, parts, strict=True):
            stage.weight.copy_(part.reshape(stage.weight.shape))


def read_convolution(module: Any) -> ConvLayer | None:
    """The layer object of a convolution, or None if it is none."""
    for kinds in (_PLAIN, _TRANSPOSED):
        for kind in kinds:
            if ordinary_class(module).forward is kind.forward:
                return ConvLayer(
                    kind.__name__, module.in_channels, module.out_channels, tuple(module.kernel_size),
                    module.groups, module.bias is not None, kinds is _TRANSPOSED,
                )  # fmt: skip
    return None
