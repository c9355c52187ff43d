#!/usr/bin/env bash
# torch 2.13.0, transformers 5.24.0, pytorch-optimizer 4.1.0, Python 3.11, on a CPU
#
# Guess: Adafactor keeps a row and a column of numbers for each weight, for a convolution those of the matrix outputs × (inputs × kernel),
# and so next to nothing beside Adam's two numbers for each weight.
# Seen: so it is for linear layers, 1 % of their numbers. Of a convolution the last two dimensions are taken for the matrix, which are the
# kernel's: 3 × 3 kernels keep 2/3 of a number for each weight, spatial pairs (3 × 1, 1 × 3) 4/3, and 1 × 1 kernels, the outer ones of
# a Tucker pair among them, two, as many as Adam. The Adafactors of torch, transformers and pytorch-optimizer agree; CAME of the latter keeps
# five for 1 × 1, first moment included. Nothing is said. Train such a weight as a matrix that is viewed as a kernel in the forward pass.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 pytorch-optimizer==4.1.0 'numpy<3'
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import pytorch_optimizer
import torch
from transformers.optimization import Adafactor

assert torch.__version__.startswith("2.13.0")
assert [version(name) for name in ("transformers", "pytorch-optimizer")] == ["5.24.0", "4.1.0"]
optimizers = {
    "torch": lambda weights: torch.optim.Adafactor(weights, lr=1e-2),
    "transformers": lambda weights: Adafactor(weights, lr=1e-2, relative_step=False),
    "pytorch-optimizer": lambda weights: pytorch_optimizer.AdaFactor(weights, lr=1e-2, relative_step=False),
    "CAME": lambda weights: pytorch_optimizer.CAME(weights, lr=1e-2),
    "Adam": lambda weights: torch.optim.Adam(weights, lr=1e-2),
}


def kept(optimizer, *shape):
    """State for each weight, in numbers, without the first moment that some keep beside the second."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(shape))
    weight.grad = torch.randn(shape)
    made = optimizer([weight])
    made.step()
    tensors = [value for value in made.state[weight].values() if torch.is_tensor(value) and value.numel() > 1]
    return sum(value.numel() for value in tensors) / weight.numel()


cases = {  # shape, Adafactor's state for each weight without a first moment, CAME's with one
    "linear": ((256, 128), 0.0117, 1.0234),
    "3 × 3": ((256, 128, 3, 3), 2 / 3, 7 / 3),
    "3 × 3 as a matrix": ((256, 1152), 0.0048, 1.0096),
    "3 × 1 of a spatial pair": ((16, 128, 3, 1), 4 / 3, 11 / 3),
    "1 × 3 of a spatial pair": ((256, 16, 1, 3), 4 / 3, 11 / 3),
    "1 × 1": ((256, 128, 1, 1), 2, 5),
    "1 × 1 as a matrix": ((256, 128), 0.0117, 1.0234),
}
for what, (shape, seen, with_confidence) in cases.items():
    found = {name: kept(optimizer, *shape) for name, optimizer in optimizers.items()}
    print(f"{what} {shape}:", ", ".join(f"{name} {share:.2f}" for name, share in found.items()))
    assert found["Adam"] == 2
    assert abs(found["torch"] - seen) < 0.01 and abs(found["transformers"] - seen) < 0.01, "convolutions are factored in another way now"
    assert abs(found["pytorch-optimizer"] - 1 - seen) < 0.01 and abs(found["CAME"] - with_confidence) < 0.02
PY
