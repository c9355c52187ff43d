#!/usr/bin/env bash
# thop 0.1.1.post2209072238, torch 2.13.0, Python 3.11
#
# Guess: thop.profile counts multiply-adds of the layer types that it knows and of no others, and all parameters of the model.
# Seen: a parameter counts if it lies in a module of a known type that has no children: factors that a module holds as its own
# parameters have 0 parameters and 0 operations, so that a network of such layers looks compressed beyond what it is; a model
# that is one Linear has 0 parameters and a full count of operations. A transposed convolution counts as many operations at each
# OUTPUT position as an ordinary one: stride² times too many at stride 2 and up (4.7 times here with its border).
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet thop==0.1.1.post2209072238 torch==2.13.0 numpy
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import importlib.metadata

import thop
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

assert importlib.metadata.version("thop").endswith("2209072238")


class Factored(nn.Module):
    def __init__(self, inputs, rank, outputs):
        super().__init__()
        self.down, self.up = nn.Parameter(torch.randn(rank, inputs)), nn.Parameter(torch.randn(outputs, rank))

    def forward(self, x):
        return x @ self.down.T @ self.up.T


def seen(name, model, x):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    wanted = counter.get_total_flops() // 2, sum(parameter.numel() for parameter in model.parameters())
    found = tuple(map(int, thop.profile(model, (x,), verbose=False)))
    print(f"{name}: multiply-adds {wanted[0]}, thop {found[0]}; parameters {wanted[1]}, thop {found[1]}")
    return wanted, found


pair = nn.Sequential(nn.Linear(64, 8, bias=False), nn.Linear(8, 48, bias=False))
wanted, found = seen("two linear layers", pair, torch.randn(4, 64))
assert wanted == found
wanted, found = seen("the same factors as parameters", nn.Sequential(Factored(64, 8, 48)), torch.randn(4, 64))
assert wanted == (4 * 8 * 112, 8 * 112) and found == (0, 0)
wanted, found = seen("one linear layer", nn.Linear(64, 48), torch.randn(4, 64))
assert found == (wanted[0], 0)
transposed = nn.Sequential(nn.ConvTranspose2d(8, 16, 3, stride=2, bias=False))
wanted, found = seen("transposed convolution, stride 2", transposed, torch.randn(1, 8, 6, 6))
assert wanted[0] == 36 * 8 * 16 * 9 and found[0] == 13 * 13 * 8 * 16 * 9, "counted otherwise now"
PY
