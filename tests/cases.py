"""One table of layer kinds; every law is tested on every case that it concerns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Case:
    """A layer, the shape of a batch that it takes, and the sites it gives when it is module ``0`` of a model."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    names: tuple[str, ...] = ("0",)

    def model(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
        """A model of this one layer, with random weights of a moderate size."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            layer = self.make()
            with torch.no_grad():
                for parameter in layer.parameters():
                    fan = max(1, parameter[0].numel()) if parameter.dim() > 1 else 4
                    parameter.normal_(0, fan**-0.5)
        model = Attending(layer) if isinstance(layer, nn.MultiheadAttention) else nn.Sequential(layer)
        return model.to(dtype).eval()

    def inputs(self, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.shape, generator=generator, dtype=torch.float64).to(dtype)

    def __repr__(self) -> str:
        return self.name


class Attending(nn.Sequential):
    """Self-attention, or attention to the features of the input where keys and values are narrower."""

    def forward(self, x: Tensor) -> Tensor:
        attention = self[0]
        key, value = x[..., : attention.kdim], x[..., : attention.vdim]
        return attention(x, key, value)[0]


def hugging_face_conv1d(outputs: int, inputs: int) -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return Conv1D(outputs, inputs)


_QKVO = ("0.q_proj", "0.k_proj", "0.v_proj", "0.out_proj")

LINEAR = (
    Case("linear-wide", lambda: nn.Linear(12, 5), (7, 12)),
    Case("linear-tall", lambda: nn.Linear(5, 12), (7, 5)),
    Case("linear-square-no-bias", lambda: nn.Linear(8, 8, bias=False), (7, 8)),
    Case("linear-sequence", lambda: nn.Linear(6, 9), (3, 4, 6)),
    Case("hf-conv1d", lambda: hugging_face_conv1d(6, 10), (3, 4, 10)),
    Case("hf-conv1d-tall", lambda: hugging_face_conv1d(15, 5), (3, 4, 5)),
)

CONVOLUTIONS = (
    Case("conv1d", lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), (3, 4, 11)),
    Case("conv1d-same", lambda: nn.Conv1d(4, 6, 5, padding="same", dilation=2, bias=False), (3, 4, 11)),
    Case("conv1d-circular", lambda: nn.Conv1d(4, 6, 3, padding=2, padding_mode="circular"), (3, 4, 11)),
    Case("conv1d-groups", lambda: nn.Conv1d(6, 9, 3, groups=3), (3, 6, 11)),
    Case("conv2d", lambda: nn.Conv2d(4, 6, 3, padding=1), (2, 4, 7, 8)),
    Case("conv2d-no-bias-stride", lambda: nn.Conv2d(4, 6, 3, stride=(2, 1), padding=(1, 0), bias=False), (2, 4, 7, 8)),
    Case("conv2d-same", lambda: nn.Conv2d(3, 5, (3, 5), padding="same", dilation=(2, 1)), (2, 3, 9, 8)),
    Case("conv2d-valid", lambda: nn.Conv2d(3, 5, 3, padding="valid"), (2, 3, 9, 8)),
    Case("conv2d-reflect", lambda: nn.Conv2d(3, 5, 3, padding=(1, 2), padding_mode="reflect"), (2, 3, 7, 8)),
    Case("conv2d-replicate", lambda: nn.Conv2d(3, 5, 3, 2, padding=2, padding_mode="replicate"), (2, 3, 7, 8)),
    Case("conv2d-circular", lambda: nn.Conv2d(3, 5, 3, padding="same", padding_mode="circular"), (2, 3, 7, 8)),
    Case("conv2d-dilation", lambda: nn.Conv2d(3, 5, 3, padding=3, dilation=(2, 3)), (2, 3, 9, 9)),
    Case("conv2d-groups", lambda: nn.Conv2d(6, 8, 3, padding=1, groups=2), (2, 6, 5, 6)),
    Case("conv2d-many-groups", lambda: nn.Conv2d(8, 12, 3, stride=2, groups=4, bias=False), (2, 8, 7, 7)),
    Case("conv2d-1x1", lambda: nn.Conv2d(7, 5, 1, stride=2), (2, 7, 5, 6)),
    Case("conv2d-3x1", lambda: nn.Conv2d(4, 6, (3, 1), padding=(1, 0)), (2, 4, 5, 6)),
    Case("conv2d-2x4", lambda: nn.Conv2d(4, 6, (2, 4), stride=(1, 2), padding=(1, 2)), (2, 4, 5, 6)),
    Case("conv2d-one-channel", lambda: nn.Conv2d(1, 12, 3), (2, 1, 6, 6)),
    Case("conv3d", lambda: nn.Conv3d(3, 4, (3, 2, 1), stride=(1, 2, 1), padding=(1, 0, 0)), (2, 3, 4, 6, 3)),
    Case("conv3d-groups", lambda: nn.Conv3d(4, 6, 2, groups=2, padding=1, bias=False), (2, 4, 3, 4, 3)),
)

TRANSPOSED = (
    Case("transpose1d", lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1), (3, 4, 7)),
    Case("transpose2d", lambda: nn.ConvTranspose2d(6, 4, 3, stride=2, dilation=2, bias=False), (2, 6, 4, 5)),
    Case(
        "transpose2d-groups",
        lambda: nn.ConvTranspose2d(6, 8, (3, 2), stride=2, padding=1, output_padding=1, groups=2),
        (2, 6, 4, 5),
    ),
    Case("transpose3d", lambda: nn.ConvTranspose3d(3, 4, 2, stride=(2, 1, 2), groups=1), (2, 3, 3, 3, 2)),
)

ATTENTION = (
    Case("attention", lambda: nn.MultiheadAttention(8, 2, batch_first=True), (3, 5, 8), _QKVO),
    Case("attention-sequence-first", lambda: nn.MultiheadAttention(8, 4, bias=False), (5, 3, 8), _QKVO),
    Case(
        "attention-narrow-keys",
        lambda: nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=True),
        (3, 5, 8),
        _QKVO,
    ),
    Case(
        "attention-narrow-keys-no-bias",
        lambda: nn.MultiheadAttention(8, 2, bias=False, kdim=6, vdim=4),
        (5, 3, 8),
        _QKVO,
    ),
)

CASES = (*LINEAR, *CONVOLUTIONS, *TRANSPOSED, *ATTENTION)
PLAIN = (*LINEAR, *CONVOLUTIONS, *TRANSPOSED)  # the layer itself is the site
