#!/usr/bin/env bash
# peft 0.21.2, torch 2.13.0, Python 3.11
#
# Guess: an adapter on nn.MultiheadAttention, target_modules=["attention"], changes each of its two matrices by alpha/r · B A, as on any
# linear layer, and get_delta_weight says by what.
# Seen: so it is for in_proj_weight. The matrix of out_proj changes by 2 · alpha/r · B A, when the adapter runs and after
# merge_and_unload alike; get_delta_weight of that layer says alpha/r · B A, and so do the saved matrices to every other reader.
# Switched off, the base is back. No warning. Whoever merges such an adapter without PEFT must count the second matrix twice.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet peft==0.21.2 torch==2.13.0 transformers==5.24.0
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W error::UserWarning - <<'PY'
import copy

import peft
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

assert peft.__version__ == "0.21.2", peft.__version__


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


def update(layer):
    return 2.0 * (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach()


torch.manual_seed(0)
base, x = Attention(), torch.randn(4, 5, 16)
config = LoraConfig(r=4, lora_alpha=8, target_modules=["attention"], init_lora_weights=False)
model = get_peft_model(copy.deepcopy(base), config).eval()
layer = model.base_model.model.attention
inward, outward = update(layer), update(layer.base_layer.out_proj)
assert torch.allclose(layer.base_layer.out_proj.get_delta_weight("default"), outward)


def outputs(times):
    """Of the base with both updates by hand, the second so many times."""
    by_hand = copy.deepcopy(base)
    by_hand.attention.in_proj_weight.data += inward
    by_hand.attention.out_proj.weight.data += times * outward
    return by_hand(x).detach()


ways = {"as it runs": model(x).detach()}
with model.disable_adapter():
    assert torch.allclose(model(x).detach(), base(x).detach(), atol=1e-6)
ways["merged and unloaded"] = model.merge_and_unload()(x).detach()
for name, found in ways.items():
    off = {times: float((found - outputs(times)).norm() / found.norm()) for times in (1, 2)}
    print(f"{name}: off by {off[1]:.2f} from the base with the update once, by {off[2]:.0e} with that of out_proj twice")
    assert off[1] > 0.1, "out_proj changes by its update once now"
    assert off[2] < 1e-5
PY
