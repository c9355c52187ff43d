#!/usr/bin/env bash
# ptflops 0.7.5, torch 2.13.0, Python 3.11
#
# Guess: get_model_complexity_info, which also counts functions and operations on tensors, counts x A B wherever it counts it, however
# the two products are written.
# Seen: with the default backend, torch.matmul, x.matmul, torch.mm and torch.bmm count; the same products written x @ a, F.linear,
# torch.einsum or torch.linalg.multi_dot cost nothing, and their parameters are there: a layer of factors is free or full by the
# spelling. backend="aten" counts all of these alike, and counts nothing of torch.baddbmm, which the default counts. No warning unless
# verbose. Count with FlopCounterMode of torch.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 ptflops==0.7.5 'numpy<3'
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from ptflops import get_model_complexity_info
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

assert version("ptflops") == "0.7.5" and torch.__version__.startswith("2.13.0")


class Layer(nn.Module):
    def __init__(self, run, *shapes):
        super().__init__()
        self.run, self.factors = run, nn.ParameterList(torch.randn(shape) for shape in shapes)

    def forward(self, x):
        return self.run(x, *self.factors)


def counts(model, shape):
    found = [
        get_model_complexity_info(model, shape, as_strings=False, print_per_layer_stat=False, **options)
        for options in ({}, {"backend": "aten"})
    ]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.randn(1, *shape))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert all(int(one[1]) == parameters for one in found)
    return int(found[0][0]), int(found[1][0]), counter.get_total_flops() // 2


spellings = {
    "torch.matmul": lambda x, a, b: torch.matmul(torch.matmul(x, a), b),
    "x.matmul": lambda x, a, b: x.matmul(a).matmul(b),
    "torch.mm": lambda x, a, b: torch.mm(torch.mm(x, a), b),
    "x @ a": lambda x, a, b: x @ a @ b,
    "F.linear": lambda x, a, b: F.linear(F.linear(x, a.T), b.T),
    "torch.einsum": lambda x, a, b: torch.einsum("nr,ro->no", torch.einsum("ni,ir->nr", x, a), b),
    "multi_dot": lambda x, a, b: torch.linalg.multi_dot([x, a, b]),
}
for name, run in spellings.items():
    default, aten, true = counts(Layer(run, (64, 8), (8, 48)), (64,))
    print(f"{name}: multiply-adds {true}, ptflops {default}, with aten {aten}")
    assert true == aten == 8 * (64 + 48)
    assert default == (true if name in ("torch.matmul", "x.matmul", "torch.mm") else 0), "it is counted otherwise now"

default, aten, true = counts(Layer(lambda x, a: torch.baddbmm(x, x, a), (1, 16, 16)), (10, 16))
print(f"torch.baddbmm: multiply-adds {true}, ptflops {default}, with aten {aten}")
assert true == 10 * 16 * 16 and default >= true and aten == 0, "it is counted otherwise now"
PY
