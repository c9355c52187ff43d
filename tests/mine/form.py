"""A form: rank r in r(m + n − r) numbers: r rows of the product, and what the other rows are made of them."""

import scipy.linalg
import torch
from torch import nn

from rankfold.forms import Form, register


class PivotedLinear(nn.Module):
    def __init__(self, n, rank, m, bias, dtype):
        super().__init__()
        self.down = nn.Linear(n, rank, bias=False, device="meta", dtype=dtype)
        self.rest = nn.Linear(rank, m - rank, bias=False, device="meta", dtype=dtype)
        self.bias = nn.Parameter(torch.empty(m, device="meta", dtype=dtype)) if bias else None
        self.register_buffer("order", torch.empty(m, dtype=torch.int32, device="meta"))

    @property
    def weight(self):
        return torch.cat([self.down.weight, self.rest.weight @ self.down.weight])[self.order]

    def forward(self, x):
        y = torch.cat([z := self.down(x), self.rest(z)], -1)[..., self.order]
        return y if self.bias is None else y + self.bias.to(y.dtype)


class Pivoted(Form):
    like, parameter = Form.FACTORED, "rest.weight"

    def offered(self, layer):
        return layer.kind == "Linear"

    def max_rank(self, layer):
        return min(layer.shape[0] - 1, layer.shape[1])

    def params(self, layer, rank, bias):
        return rank * (sum(layer.shape) - rank) + (layer.shape[0] if bias else 0)

    def buffers(self, layer, rank):
        return 4 * layer.shape[0]

    def flops(self, layer, rank, calls):
        rows = sum(torch.Size(call.output).numel() // layer.shape[0] for call in calls)
        return 2 * rows * self.params(layer, rank, False)

    def skeleton(self, layer, old, rank, bias):
        return PivotedLinear(layer.shape[1], rank, layer.shape[0], bias, layer.weight(old).dtype)

    def write_(self, layer, new, factors):
        right, left = (part.double() for part in factors.parts)
        order = torch.from_numpy(scipy.linalg.qr(left.T.numpy(), pivoting=True, mode="r")[1]).long()
        chosen, rest = left[order[: len(right)]], left[order[len(right) :]]
        new.down.weight.copy_(chosen @ right)
        new.rest.weight.copy_(torch.linalg.lstsq(chosen.T, rest.T, driver="gelsd").solution.T)
        new.order.copy_(order.argsort())


PIVOTED = register(Pivoted("my-pivoted"))
