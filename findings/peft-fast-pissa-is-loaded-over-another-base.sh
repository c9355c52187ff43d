#!/usr/bin/env bash
# peft 0.21.2, torch 2.13.0, Python 3.11
#
# Guess: a PiSSA adapter that is saved as any other loads over the untouched base with the outputs that it had, as PEFT takes the
# same start off the base again; with the fast start, "pissa_niter_16", up to rounding; a LoRA-GA adapter too, or loading is refused.
# Seen: so it is for "pissa" alone. The fast start is a randomised one and is drawn anew at loading: the base that is left is another,
# and the outputs are off from the first pass on, untrained: by 25 % in a layer of 256 × 256 as torch makes it (rank 16), by 1.5 %
# where singular values fall as 1 / i. LoRA-GA takes nothing off at loading, so that the whole start is added to the outputs. No error,
# no warning. Save with path_initial_model_for_weight_conversion, which is exact for all of them.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet peft==0.21.2 torch==2.13.0 transformers==5.24.0
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - "$place" <<'PY'
import copy
import sys
import warnings

import peft
import torch
from peft import LoraConfig, LoraGAConfig, PeftModel, get_peft_model
from peft.tuners.lora.loraga import preprocess_loraga
from torch import nn

assert peft.__version__ == "0.21.2", peft.__version__


def off(start, falling):
    """How far the outputs move by saving an untrained adapter and loading it: as it is, and converted."""
    torch.manual_seed(0)
    base, x = nn.Sequential(nn.Linear(256, 256)), torch.randn(512, 256)
    if falling:
        left, _, right = torch.linalg.svd(base[0].weight.detach())
        base[0].weight.data = left @ torch.diag(1 / torch.arange(1.0, 257.0)) @ right
    outputs, source = base(x).detach(), copy.deepcopy(base)

    def moved(model):
        return float((model(x).detach() - outputs).norm() / outputs.norm())

    config = LoraConfig(r=16, target_modules=["0"], init_lora_weights=start)
    if start == "lora_ga":
        config.lora_ga_config = LoraGAConfig(scale="weight_svd")
        preprocess_loraga(source, config, lambda: source(x).square().mean().backward())
    model = get_peft_model(source, config)
    error = [moved(model)]
    first, plain, converted = (f"{sys.argv[1]}/{start}-{falling}-{name}" for name in ("first", "plain", "converted"))
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(first)
    model.peft_config["default"].init_lora_weights = start
    model.save_pretrained(plain)
    model.save_pretrained(converted, path_initial_model_for_weight_conversion=first)
    for folder in (plain, converted):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # what loads wrongly says nothing
            error.append(moved(PeftModel.from_pretrained(copy.deepcopy(base), folder)))
    return error


for falling in (False, True):
    for start in ("pissa", "pissa_niter_4", "pissa_niter_16", "lora_ga"):
        fresh, plain, converted = off(start, falling)
        kind = "falling" if falling else "even"
        print(f"{start}, {kind} singular values: outputs off by {fresh:.0e}; loaded by {plain:.1e}; converted and loaded by {converted:.0e}")
        assert fresh < 1e-5 and converted < 1e-5
        if start == "pissa":
            assert plain < 1e-5
        else:
            assert plain > 1e-3, "the adapter loads over the base that it was made with now"
PY
