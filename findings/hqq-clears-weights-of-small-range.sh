#!/usr/bin/env bash
# hqq 0.2.8.post1, torch 2.13.0, Python 3.11, on a CPU
#
# Guess: HQQ fits a scale and a zero point to each group of weights, so that a layer times any constant is quantised with the same
# relative error; a row's precision depends on the row, with axis=1.
# Seen: a group of weights that spans 1e-4 or less becomes one number, whatever the bits: 99 % error, without a word, in float32 too.
# Above that the scale is at most 20,000 levels for each unit, so that eight bits begin to lose at a span of 1.3 % (255 / 20,000):
# at 1e-3 they have twelve times the error of ordinary weights, where four bits have lost nothing. Groups are cut from the
# flattened weight: of a layer of 8 inputs eight rows share one, and beside large rows the small ones are lost.
# Split the singular values of a factored layer evenly between the factors, and look at each factor's own error.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 'numpy<3' 'transformers<6' 'accelerate<2' 'einops<1' 'tqdm<5' 'termcolor<4' setuptools wheel
"$place/venv/bin/pip" install --quiet --no-deps --no-build-isolation hqq==0.2.8.post1
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
from torch import nn

assert version("hqq") == "0.2.8.post1", version("hqq")


def error(weight, bits):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data.copy_(weight)
    settings = BaseQuantizeConfig(nbits=bits, group_size=64, axis=1)
    seen = HQQLinear(layer, settings, compute_dtype=torch.float32, device="cpu").dequantize()
    return (seen - weight).norm(dim=1) / weight.norm(dim=1)


torch.manual_seed(0)
weight = torch.rand(64, 128) * 2 - 1
found = {}
for bits in (8, 4, 2):
    found[bits] = {size: float(error(weight * size / 2, bits).mean()) for size in (1, 1e-2, 1e-3, 1e-4, 1e-5)}
    print(f"{bits} bits:", ", ".join(f"weights within {size:g}: {off:.1%}" for size, off in found[bits].items()))
assert found[4][1e-5] > 0.9 and found[8][1e-5] > 0.9, "small ranges keep their levels now"
assert found[8][1e-3] > 5 * found[8][1] and found[4][1e-3] < 1.5 * found[4][1]

for inputs in (128, 8):
    mixed = torch.rand(64, inputs) * 2 - 1
    mixed[::2] *= 100
    off = error(mixed, 4)
    print(f"{inputs} inputs, every other row a hundred times larger: {off[::2].mean():.0%} error there, {off[1::2].mean():.0%} in the others")
    assert (off[1::2].mean() > 0.9) == (inputs == 8)
PY
