#!/usr/bin/env bash
# torchao 0.18.0, torch 2.13.0, Python 3.11, on a CPU
#
# Guess: quantize_ with Int4WeightOnlyConfig(group_size=32) refuses a layer whose inputs are no multiple of 32, as
# IntxWeightOnlyConfig with groups of 32 does, or makes its last group shorter.
# Seen: it leaves the layer in its own precision, without an error or a warning (the log has a line at level INFO). The second
# factor of a low-rank pair has the rank as its inputs: at ranks 40 and 100 half of the network's numbers stay as they were.
# Count the weights that are still plain afterwards, or choose ranks that are multiples.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torchao==0.18.0 torch==2.13.0 numpy
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - 2>"$place/log" <<'PY' || { cat "$place/log"; exit 1; }
import logging

import torch
import torchao
from torch import nn
from torchao.quantization import Int4WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup, quantize_

assert torchao.__version__.startswith("0.18.0"), torchao.__version__
said = []


class Said(logging.Handler):
    def emit(self, record):
        said.append((record.levelname, record.getMessage()))


logging.getLogger().addHandler(Said())
int4 = Int4WeightOnlyConfig(group_size=32)
intx = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))


def outcome(config, inputs):
    layer = nn.Sequential(nn.Linear(inputs, 64, dtype=torch.bfloat16))
    before = layer[0].weight.detach().clone()
    try:
        quantize_(layer, config)
    except (AssertionError, ImportError) as error:
        return f"{type(error).__name__}: {error}"
    plain = type(layer[0].weight) is nn.Parameter and torch.equal(layer[0].weight, before)
    return "left as it was" if plain else "quantised"


for inputs in (40, 100):
    seen = outcome(int4, inputs), outcome(intx, inputs)
    print(f"{inputs} inputs: Int4WeightOnlyConfig: {seen[0]}; IntxWeightOnlyConfig: {seen[1]}")
    assert seen[0] == "left as it was", "no longer passed over"
    assert seen[1].startswith("AssertionError")
assert not any(level in ("WARNING", "ERROR") for level, _ in said), said
seen = outcome(int4, 64), outcome(intx, 64)  # the former needs a kernel that a CPU lacks, and says so: it is not passed over
print(f"64 inputs: Int4WeightOnlyConfig: {seen[0]}; IntxWeightOnlyConfig: {seen[1]}")
assert seen[0] != "left as it was" and seen[1] == "quantised"
PY
