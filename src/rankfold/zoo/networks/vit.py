"""Plain vision transformer (Beyer, Zhai, Kolesnikov 2022) in the sizes of the LoRITa paper, section 5.1."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention, (N, T, width) → same; query, key, value, output are four matrices."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self._split_heads(layer(x)) for layer in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """Pre-norm transformer block: attention, then a two-layer GELU network of ``expansion`` times the width."""

    def __init__(self, width: int, heads: int, expansion: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, expansion * width), nn.GELU(), nn.Linear(expansion * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """(N, in_channels, image, image) → (N, classes): patches, fixed sine-cosine positions, mean over tokens.

    The paper gives depth, heads and the width of 256; a patch side of 4 (64 tokens), heads of width / heads
    and an MLP of 4 × width are the customary values.
    """

    positions: Tensor

    def __init__(
        self,
        depth: int,
        heads: int,
        classes: int,
        in_channels: int = 3,
        image: int = 32,
        patch: int = 4,
        width: int = 256,
        expansion: int = 4,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_channels, width, patch, stride=patch)
        self.register_buffer("positions", sine_cosine_positions(image // patch, width), persistent=False)
        self.blocks = nn.Sequential(*(Block(width, heads, expansion) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(tokens)).mean(dim=1))


def sine_cosine_positions(side: int, width: int) -> Tensor:
    """Fixed position code, (side², width): sines and cosines of row and column at width/4 frequencies."""
    frequencies = 10_000.0 ** -torch.linspace(0, 1, width // 4)
    angles = torch.outer(torch.arange(side, dtype=torch.float32), frequencies)
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = axis[:, None, :].expand(side, side, -1)
    columns = axis[None, :, :].expand(side, side, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)
