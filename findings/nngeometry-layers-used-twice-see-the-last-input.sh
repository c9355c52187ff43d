#!/usr/bin/env bash
# nngeometry 0.4, torch 2.13.0, Python 3.11
#
# Guess: the dense Fisher matrix of a network that calls one layer two or three times (recurrence, tied blocks) is exact, as that of
# any other network of linear layers is, or such a network is refused.
# Seen: the input of a layer is kept in one place, which the next call overwrites: the gradients of all calls are multiplied with the
# input of the last. Weights of the layer are off by a tenth to a half of the whole matrix, dense, diagonal and low-rank form alike;
# its bias, which has no input, and all other layers are exact. No error, no warning. Take another library for such layers.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 'tqdm<5' 'numpy>=2,<3'
"$place/venv/bin/pip" install --quiet --no-deps nngeometry==0.4
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from nngeometry.metrics import FIM
from nngeometry.object import PMatDense, PMatDiag, PMatLowRank
from torch import nn
from torch.func import functional_call, jacrev
from torch.utils.data import DataLoader, TensorDataset

assert version("nngeometry") == "0.4"
torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
x = torch.randn(6, 4)


class Repeated(nn.Module):
    def __init__(self, calls):
        super().__init__()
        self.calls, self.inner, self.last = calls, nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        for _ in range(self.calls):
            x = torch.tanh(self.inner(x))
        return self.last(x)


def true_fisher(model):
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    jacobian = jacrev(lambda given: functional_call(model, given, (x,)))(parameters)
    jacobian = torch.cat([part.reshape(6, 3, -1) for part in jacobian.values()], 2)
    chances = torch.softmax(model(x).detach(), 1)
    curvature = torch.diag_embed(chances) - chances[:, :, None] * chances[:, None, :]
    return torch.einsum("ncp,ncd,ndq->pq", jacobian, curvature, jacobian) / 6


def off(seen, true):
    return float((seen - true).norm() / true.norm())


for calls in (1, 2, 3):
    model = Repeated(calls)
    true = true_fisher(model)
    found = {form.__name__: FIM(model=model, loader=DataLoader(TensorDataset(x), batch_size=3), representation=form,
                                variant="classif_logits", function=lambda *batch: model(batch[0])).to_torch()
             for form in (PMatDense, PMatLowRank, PMatDiag)}
    dense = found["PMatDense"]
    errors = [off(dense, true), off(found["PMatLowRank"], true), off(found["PMatDiag"].diag(), true.diag())]
    rest = off(dense[16:, 16:], true[16:, 16:])
    print(f"{calls} calls: dense, low-rank and diagonal Fisher are off by {', '.join(f'{e:.1%}' for e in errors)}; without the "
          f"weights of the repeated layer by {rest:.0e}")
    assert rest < 1e-9
    assert max(errors) < 1e-9 if calls == 1 else min(errors) > 0.01, "each call's own input counts now"
PY
