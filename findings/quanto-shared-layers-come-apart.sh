#!/usr/bin/env bash
# optimum-quanto 0.2.7, torch 2.13.0, Python 3.11, on a CPU
#
# Guess: quantize(model, weights=qint8) quantises a layer that hangs at two places once, at both; activations=qint8 without a pass
# under Calibration changes nothing, or is refused.
# Seen: the layer is replaced at the first place alone and stays a float layer at the second, so that one weight has become two:
# the model needs more memory than before, and training moves only one of them. Activations that were never calibrated have scale 1, of
# which int8 keeps whole numbers: the outputs are off by half, freeze() included. Transposed and one-dimensional convolutions
# are passed over. No error, no warning in any of these. Two layers that share a parameter are both quantised.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 'numpy<3' 'safetensors<1' 'huggingface_hub<3' ninja optimum-quanto==0.2.7
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import copy
from importlib.metadata import version

import torch
from optimum.quanto import Calibration, freeze, qint8, quantize
from torch import nn

assert version("optimum-quanto") == "0.2.7", version("optimum-quanto")
torch.manual_seed(0)
shared = nn.Linear(64, 64)
model = nn.Sequential(shared, nn.ReLU(), shared)
assert len(list(model.parameters())) == 2
quantize(model, weights=qint8)
freeze(model)
kinds = [type(layer).__name__ for layer in model]
print(f"one layer at two places becomes {kinds}")
assert kinds == ["QLinear", "ReLU", "Linear"] and model[0] is not model[2], "both places are quantised now"

tied = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
tied[2].weight = tied[0].weight
quantize(tied, weights=qint8)
freeze(tied)
assert [type(layer).__name__ for layer in tied] == ["QLinear", "ReLU", "QLinear"]

passed = nn.Sequential(nn.Conv1d(4, 4, 3), nn.ConvTranspose2d(4, 4, 3), nn.Conv2d(4, 4, 3))
quantize(passed, weights=qint8)
print("convolutions:", [type(layer).__name__ for layer in passed])
assert [type(layer).__name__ for layer in passed] == ["Conv1d", "ConvTranspose2d", "QConv2d"]

plain, x = nn.Sequential(nn.Linear(64, 64)), torch.randn(256, 64)
for calibrated in (False, True):
    seen = copy.deepcopy(plain)
    quantize(seen, weights=qint8, activations=qint8)
    if calibrated:
        with Calibration():
            seen(x)
    freeze(seen)
    off = float((seen(x) - plain(x)).norm() / plain(x).norm())
    print(f"int8 activations, {'' if calibrated else 'not '}calibrated: outputs off by {off:.0%}")
    assert (off > 0.2) != calibrated, "activations without calibration are left alone now"
PY
