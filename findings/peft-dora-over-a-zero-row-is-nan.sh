#!/usr/bin/env bash
# peft 0.21.2, torch 2.13.0, Python 3.11
#
# Guess: use_dora=True starts as the base does, as plain LoRA does, whatever the base weight holds.
# Seen: an output whose row of the weight is zero (pruned, padded up to a multiple, or a token that was never used) is NaN from
# the first pass on, for DoRA divides by the row's norm; the loss is NaN with it, and after one step so are all factors.
# Linear layers, convolutions and embeddings (columns of zeros there) alike; no error, no warning. Plain LoRA of the same
# layers is exact.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet peft==0.21.2 torch==2.13.0 'transformers<6'
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import copy

import peft
import torch
from torch import nn

assert peft.__version__ == "0.21.2", peft.__version__
torch.manual_seed(0)
linear, convolution, embedding = nn.Linear(16, 8), nn.Conv2d(16, 8, 3), nn.Embedding(10, 8)
with torch.no_grad():
    linear.weight[5:] = 0
    convolution.weight[5:] = 0
    embedding.weight[:, 5:] = 0
given = {linear: torch.randn(4, 16), convolution: torch.randn(4, 16, 5, 5), embedding: torch.arange(10)}


def seen(layer, x, dora):
    """The share of outputs that are NaN at the start, how far the others are from the base's, the share of factors that are
    NaN after a step."""
    model = peft.get_peft_model(nn.Sequential(copy.deepcopy(layer)), peft.LoraConfig(target_modules=["0"], r=2, use_dora=dora))
    out = model(x)
    off = (out - layer(x)).detach().abs().nan_to_num().max()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    out.square().mean().backward()
    optimizer.step()
    trained = [p.detach().flatten() for name, p in model.named_parameters() if p.requires_grad and "magnitude" not in name]
    factors = torch.cat(trained)
    return float(out.isnan().float().mean()), float(off), float(factors.isnan().float().mean())


for layer, x in given.items():
    for dora in (False, True):
        start, off, after = seen(layer, x, dora)
        print(f"{type(layer).__name__}, DoRA {dora}: {start:.1%} of the outputs NaN, the others {off:.0e} off; "
              f"after a step {after:.0%} of the factors NaN")
        assert off < 1e-5
        assert (start, after) == (0, 0) if not dora else (start == 3 / 8 and after > 0.5), "no longer NaN"
PY
