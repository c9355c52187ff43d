#!/usr/bin/env bash
# tensorly-torch 0.5.0, tensorly 0.10.0, torch 2.13.0, Python 3.11
#
# Guess: FactorizedLinear.from_linear(layer, rank=1.0) keeps the layer, as full rank, or at least as many numbers as the layer has, in
# each of its factorizations; FactorizedConv.from_conv at full rank computes what the convolution does, or is refused.
# Seen: 1.0 is a share of numbers which each form takes in its own way. Of 384 numbers "tucker" keeps more and is exact, "cp" as many
# and is off by a fifth, "blocktt" 160 and is off by two thirds. from_conv forgets padding_mode: a convolution with "reflect" pads with
# zeros then, exact inside and wrong at the border, without a word; padding, dilation and a stride that is the same in all directions
# are kept.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet tensorly-torch==0.5.0 tensorly==0.10.0 torch==2.13.0 packaging==26.4 'numpy>=2,<3' 'scipy<2'
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import importlib.metadata

import tensorly
import torch
from torch import nn

tensorly.set_backend("pytorch")
import tltorch  # noqa: E402

assert importlib.metadata.version("tensorly-torch") == "0.5.0"


def apart(found, wanted):
    return float((found - wanted).detach().norm() / wanted.detach().norm())


torch.manual_seed(0)
layer, x = nn.Linear(16, 24, bias=False), torch.randn(50, 16)
off, numbers = {}, {}
for form in ("tucker", "cp", "blocktt"):
    made = tltorch.FactorizedLinear.from_linear(layer, n_tensorized_modes=2, factorization=form, rank=1.0, bias=False)
    off[form], numbers[form] = apart(made(x), layer(x)), sum(p.numel() for p in made.parameters())
    print(f"{form}, rank=1.0: {numbers[form]} numbers for {layer.weight.numel()}, {off[form]:.1e} off")
assert off["tucker"] < 1e-4 and off["cp"] > 0.1 and off["blocktt"] > 0.5 and numbers["blocktt"] < 200, "1.0 is the whole now"

image = torch.randn(2, 8, 9, 9)
for options in ({}, {"stride": 2}, {"padding": 1}, {"dilation": 2}, {"padding": 1, "padding_mode": "reflect"}):
    conv = nn.Conv2d(8, 12, 3, **options)
    made = tltorch.FactorizedConv.from_conv(conv, rank=(12, 8, 3, 3), factorization="tucker")
    found, wanted = made(image), conv(image)
    inside = apart(found[..., 1:-1, 1:-1], wanted[..., 1:-1, 1:-1])
    print(f"convolution, {options or 'plain'}: {apart(found, wanted):.1e} off, inside {inside:.1e}")
    assert inside < 1e-4
    assert (apart(found, wanted) > 0.1) == ("padding_mode" in options), "padding_mode is kept now"
PY
