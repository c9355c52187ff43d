#!/usr/bin/env bash
# peft 0.21.2, torch 2.13.0, Python 3.11
#
# Guess: an adapter saved over a float32 model can be loaded over the same model in bfloat16, as with LoRA, and changes the
# outputs by rounding; save_projection=True, FRoD's default, "guarantees that we can reload the adapter" (its help).
# Seen: of FRoD's shared basis only one half (frod_V) is in the file, the other is computed anew from the base weights at
# loading. Rounded weights give another basis, which does not belong to the saved half: a fresh adapter, which changes
# nothing in float32, changes the outputs by more than their own size in bfloat16. No error, no warning.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet peft==0.21.2 torch==2.13.0 'transformers<6'
OMP_NUM_THREADS=1 "$place/venv/bin/python" - "$place/adapter" <<'PY'
import copy
import sys
import warnings

import peft
import torch
from torch import nn

assert peft.__version__ == "0.21.2", peft.__version__
torch.manual_seed(0)
base = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).eval()
x = torch.randn(16, 64)


def off(config, dtype):
    """How far the outputs with a fresh adapter, saved in float32 and loaded over the base in dtype, are from those without."""
    place = f"{sys.argv[1]}-{type(config).__name__}"
    peft.get_peft_model(copy.deepcopy(base), config).save_pretrained(place)
    plain = copy.deepcopy(base).to(dtype)
    with torch.no_grad(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        wanted = plain(x.to(dtype)).float()
        got = peft.PeftModel.from_pretrained(plain, place).eval()(x.to(dtype)).float()
    error = float((got - wanted).norm() / wanted.norm())
    print(f"{type(config).__name__} over {dtype}: outputs off by {error:.2g}, warnings {[str(w.message)[:60] for w in said]}")
    return error


lora, frod = peft.LoraConfig(target_modules=["0", "2"]), peft.FrodConfig(target_modules=["0", "2"], progressbar=False)
assert frod.save_projection
assert off(lora, torch.bfloat16) < 0.02
assert off(frod, torch.float32) < 1e-4
assert off(frod, torch.bfloat16) > 0.5, "the base may be of another dtype now"
PY
