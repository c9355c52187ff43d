#!/usr/bin/env bash
# peft 0.21.2, torch 2.13.0, Python 3.11
#
# Guess: merging an adapter over a layer whose weight is computed from other parameters (weight_norm, spectral_norm or orthogonal of
# torch.nn.utils.parametrizations, a mask of torch.nn.utils.prune) changes nothing but rounding, or is refused.
# Seen: the adapter trains and runs. merge_and_unload adds its update to a tensor that is computed anew at the next pass, so that
# the merged model is the base again; LoRA, DoRA and LoHa alike, safe_merge=True included. No error, no warning.
# Make the weight a plain one first: remove_parametrizations(layer, "weight"), prune.remove(layer, "weight").
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet peft==0.21.2 torch==2.13.0 'transformers<6'
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W error::UserWarning - <<'PY'
import collections

import peft
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.parametrize import remove_parametrizations

assert peft.__version__ == "0.21.2", peft.__version__


def seen(made, removed, config):
    """How far the adapter moves the outputs, and how far merging leaves them from the adapter's and from the base's."""
    torch.manual_seed(0)
    layers = {"first": nn.Linear(16, 16), "between": nn.Tanh(), "last": nn.Linear(16, 4)}
    base = nn.Sequential(collections.OrderedDict(layers)).eval()
    x = torch.randn(5, 16)
    with torch.no_grad():
        made(base.first)
        base(x)
        removed(base.first)
        plain = base(x)
        model = peft.get_peft_model(base, config).eval()
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter) * 0.3
        used = model(x)
        merged = model.merge_and_unload(safe_merge=True)(x)
    moved, lost, left = (float((a - b).norm() / plain.norm()) for a, b in ((used, plain), (merged, used), (merged, plain)))
    print(f"moved by {moved:.2f}; merged: {lost:.1e} from that, {left:.1e} from the base")
    return moved, lost, left


computed = (
    (parametrizations.weight_norm, lambda layer: remove_parametrizations(layer, "weight")),
    (parametrizations.spectral_norm, lambda layer: remove_parametrizations(layer, "weight")),
    (parametrizations.orthogonal, lambda layer: remove_parametrizations(layer, "weight")),
    (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), lambda layer: prune.remove(layer, "weight")),
)
configs = (
    lambda: peft.LoraConfig(target_modules=["first"], r=2),
    lambda: peft.LoraConfig(target_modules=["first"], r=2, use_dora=True),
    lambda: peft.LoHaConfig(target_modules=["first"], r=2),
)
for made, removed in computed:
    for config in configs:
        moved, lost, left = seen(made, lambda layer: None, config())
        assert moved > 0.005 and left < 1e-6 < lost, "the update is merged now"
        moved, lost, left = seen(made, removed, config())
        assert moved > 0.005 and lost < 1e-5
PY
