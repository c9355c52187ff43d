"""A method: keep the largest columns of the weight, that is, some inputs, and drop the others."""

from dataclasses import dataclass

import torch
from torch import Tensor

import rankfold as rf
from rankfold.forms import Factors, Form
from rankfold.linalg import tails


@dataclass(frozen=True)
class Kept:
    matrix: Tensor
    order: Tensor
    comparable: bool = False

    @property
    def errors(self):
        return tails(self.matrix.norm(dim=0)[self.order])

    @property
    def levels(self):
        norms = self.matrix.norm(dim=0)[self.order]
        return norms / norms[0].clamp_min(1e-300)

    @property
    def ranks(self):
        return range(1, min(self.matrix.shape) + 1)

    def relative_error(self, rank):
        return float(self.errors[rank] / self.errors[0])

    def factors(self, rank):
        picked = self.order[:rank]
        right = torch.eye(self.matrix.shape[1], dtype=self.matrix.dtype)[picked]
        return Factors((right, self.matrix[:, picked]))


@dataclass(frozen=True)
class Columns:
    name: str = "columns"
    forms: frozenset = frozenset({Form.FACTORED})
    needs_data: bool = False

    def decompose(self, site, form, weight, statistics, bias=None):
        matrix = site.layer.geometry(form).matrix(weight).double()
        return Kept(matrix, matrix.norm(dim=-2).argsort(descending=True)) if matrix.dim() == 2 else None


COLUMNS = rf.register_method(Columns())
