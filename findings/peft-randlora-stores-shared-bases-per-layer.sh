#!/usr/bin/env bash
# peft 0.21.2, torch 2.13.0, Python 3.11
#
# Guess: RandLoRA, which trains a few coefficients of random bases that all layers share, saves the coefficients and, with
# save_projection=True (its default), these bases once.
# Seen: once for the model, and once more for each layer. Eight layers of 256 × 256 train 3.5 % of their parameters; the file
# holds 1.3 times as many numbers as the layers themselves, 97 % of them nine equal copies of the bases. VeRA, of the same
# idea, stores its bases once. With save_projection=False the file holds the coefficients alone.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet peft==0.21.2 torch==2.13.0 'transformers<6'
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - "$place/adapter" <<'PY'
import sys

import peft
import torch
from safetensors.torch import load_file
from torch import nn

assert peft.__version__ == "0.21.2", peft.__version__
layers, width = 8, 256


def saved(kind, **options):
    torch.manual_seed(0)
    base = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
    config = kind(target_modules=[str(number) for number in range(layers)], **options)
    model = peft.get_peft_model(base, config)
    place = f"{sys.argv[1]}-{kind.__name__}-{len(options)}"
    model.save_pretrained(place)
    tensors = load_file(f"{place}/adapter_model.safetensors")
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    numbers = sum(tensor.numel() for tensor in tensors.values())
    bases = [tensor for name, tensor in tensors.items() if "_B" in name]
    equal = all(torch.equal(tensor, bases[0]) for tensor in bases)
    dense = layers * width * width
    print(f"{kind.__name__} {options}: trained {trained / dense:.3f}, saved {numbers / dense:.3f} of the layers' numbers, "
          f"{len(bases)} bases B, equal {equal}")
    return trained, numbers, len(bases), equal, dense


trained, numbers, bases, equal, dense = saved(peft.RandLoraConfig)
assert trained < 0.05 * dense and numbers > dense, (trained, numbers, dense)
assert bases == layers + 1 and equal, "the bases are stored once now"
assert saved(peft.VeraConfig)[2] == 1
trained, numbers, bases, _, _ = saved(peft.RandLoraConfig, save_projection=False)
assert numbers == trained and bases == 0
PY
