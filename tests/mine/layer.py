"""A layer type: its weight has another name and lies transposed, and it has no bias."""

import torch
from torch import nn

from rankfold.sites import LinearLayer, register_reader


class Mix(nn.Module):
    def __init__(self, n, m):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(n, m) / n**0.5)

    def forward(self, x):
        return torch.einsum("...n,nm->...m", x, self.kernel)


@register_reader
def read_mix(module):
    if type(module) is Mix:
        n, m = module.kernel.shape
        return LinearLayer("Mix", (m, n), has_bias=False, stored_transposed=True, parameter="kernel")
    return None
