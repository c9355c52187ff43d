#!/usr/bin/env bash
# lycoris-lora 4.1.3, torch 2.13.0, Python 3.11
#
# Guess: merge_to(1.0) adds to each weight what the network was trained with, for each algorithm and setting.
# Seen: so it is for LoRA, and for LoKr without use_scalar. For LoHa the merged update is alpha / dim times the one in training,
# .25 by default (dim 4, alpha 1): the scale is applied twice. With use_scalar=True the trained factor in front of LoHa and
# LoKr is not merged at all, so that not even the sign need be right. Nothing is said. Set alpha equal to dim for LoHa.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet lycoris-lora==4.1.3 torch==2.13.0 numpy
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - 2>"$place/log" <<'PY' || { cat "$place/log"; exit 1; }
import importlib.metadata

import torch
from lycoris import LycorisNetwork, create_lycoris
from torch import nn

assert importlib.metadata.version("lycoris-lora") == "4.1.3"
LycorisNetwork.apply_preset({"target_module": ["Linear"], "target_name": []})


def times(algorithm, **options):
    """What is merged as a multiple of what was added in use, and what of it is something else."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(32, 48)), torch.randn(64, 32)
    base = model(x).detach()
    network = create_lycoris(model, 1.0, algo=algorithm, **options)
    network.apply_to()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    used = (model(x) - base).detach()
    network.restore()
    network.merge_to(1.0)
    merged = (model(x) - base).detach()
    multiple = float((used * merged).sum() / used.square().sum())
    assert float((merged - multiple * used).norm() / merged.norm()) < 1e-4
    print(f"{algorithm} {options}: merged is {multiple:.4f} times what was used")
    return multiple


for options in ({}, {"linear_dim": 8, "linear_alpha": 4.0}, {"linear_dim": 8, "linear_alpha": 8.0}):
    scale = options.get("linear_alpha", 1.0) / options.get("linear_dim", 4)
    assert abs(times("lora", **options) - 1) < 1e-3 and abs(times("lokr", **options) - 1) < 1e-3
    assert abs(times("loha", **options) - scale) < 1e-3, "the scale is applied once now"
assert abs(times("lora", use_scalar=True) - 1) < 1e-3
assert abs(times("lokr", use_scalar=True) - 1) > 0.5 and abs(times("loha", use_scalar=True) - 0.25) > 0.5
PY
