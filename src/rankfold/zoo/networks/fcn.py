"""Fully connected ReLU networks of the LoRITa paper (section 5.1, table 1a)."""

from itertools import pairwise

from torch import Tensor, nn


class FCN(nn.Module):
    """(N, …) → (N, classes): `depth` linear layers, ReLU between them, equation (1) of the paper.

    `depth` counts matrices: depth − 1 hidden layers of constant `width` and the output layer. With
    `batch_norm`, as in the authors' code, batch normalisation stands before each ReLU; equation (1) has none.
    """

    def __init__(self, inputs: int, classes: int, depth: int, width: int = 96, batch_norm: bool = True) -> None:
        super().__init__()
        widths = [inputs] + [width] * (depth - 1)
        layers: list[nn.Module] = [nn.Flatten()]
        for n, m in pairwise(widths):
            layers += [nn.Linear(n, m), *([nn.BatchNorm1d(m)] if batch_norm else []), nn.ReLU()]
        self.hidden = nn.Sequential(*layers)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x))
