"""Tucker-2 of a convolution: 1×1 to r_in channels, a small k×k core, 1×1 to the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod
from typing import Any

from torch import nn

from rankfold.forms import convolving
from rankfold.forms.form import Call, Factors, Form, register
from rankfold.forms.layer import Convolution, Layer
from rankfold.layers import TuckerConv


class Tucker(Form):
    def offered(self, layer: Layer) -> bool:
        conv = layer.convolution
        return conv is not None and conv.groups == 1 and not conv.transposed and conv.points > 1

    def ranks_of(self, layer: Layer, rank: int) -> tuple[int, int]:
        """(r_out, r_in) at ``rank`` output channels: both modes keep the same fraction."""
        conv = _conv(layer)
        share = ceil(rank * conv.channels_in / self.max_rank(layer))
        return rank, min(conv.channels_in, share, rank * conv.points)

    def params(self, layer: Layer, rank: int, bias: bool) -> int:
        conv, (r_out, r_in) = _conv(layer), self.ranks_of(layer, rank)
        weights = r_in * conv.channels_in + r_out * r_in * conv.points + conv.channels_out * r_out
        return weights + (conv.channels_out if bias else 0)

    def flops(self, layer: Layer, rank: int, calls: Sequence[Call]) -> int:
        conv, (r_out, r_in), macs = _conv(layer), self.ranks_of(layer, rank), 0
        for call in calls:
            batch, size_in, size_out = convolving.places(conv, call)
            behind = r_out * r_in * conv.points + conv.channels_out * r_out
            macs += batch * (r_in * conv.channels_in * prod(size_in) + behind * prod(size_out))
        return 2 * macs

    def skeleton(self, layer: Layer, old: Any, rank: int, bias: bool) -> nn.Module:
        conv, (r_out, r_in) = _conv(layer), self.ranks_of(layer, rank)
        dims = len(conv.kernel)
        down = convolving.one_by_one(old, dims, conv.channels_in, r_in)
        core = convolving.same(old, dims, r_in, r_out)
        return TuckerConv(
            {"down": down, "core": core, "up": convolving.one_by_one(old, dims, r_out, conv.channels_out, bias)}
        )

    def write_(self, layer: Layer, new: Any, factors: Factors) -> None:
        fill_stages_(new, factors)


def fill_stages_(new: Any, factors: Factors) -> None:
    """Each part into the weight of the stage of the same number."""
    stages: list[Any] = list(new.children())
    for stage, part in zip(stages, factors.parts, strict=True):
        stage.weight.copy_(part.reshape(stage.weight.shape))


def _conv(layer: Layer) -> Convolution:
    assert layer.convolution is not None  # ``offered`` has said so
    return layer.convolution


TUCKER = Tucker("tucker")
Form.TUCKER = register(TUCKER)
