#!/usr/bin/env bash
# peft 0.21.2, torch 2.13.0, Python 3.11
#
# Guess: with two OFT adapters active at once, which turn the inputs one after the other, merging gives the same outputs.
# Seen: a pass turns the inputs by the first and then by the second, merging turns the weight by the first and then by the second,
# which is the other order seen from the inputs; rotations do not commute, and the merged model differs by a tenth of the outputs.
# It equals the unmerged model with the adapters activated in the other order. Merged one at a time, last one first, it is exact.
# BOFT, HRA and RoAd, which multiply as well, are exact in the given order.
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


@torch.no_grad()
def seen(name, make):
    """The outputs merged against those of both adapters in the given and in the other order, and merged one at a time."""
    torch.manual_seed(0)
    model = peft.get_peft_model(nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4)), make()).eval()
    model.add_adapter("second", make())
    for key, parameter in model.named_parameters():
        if "default" in key or "second" in key:
            parameter += torch.randn_like(parameter) * 0.1
    x = torch.randn(5, 16)
    model.base_model.set_adapter(["second", "default"])
    turned = model(x)
    model.base_model.set_adapter(["default", "second"])
    used = model(x)
    merged = copy.deepcopy(model).merge_and_unload()(x)
    model.merge_adapter(["second"])
    model.merge_adapter(["default"])
    singly = model(x)
    off, other, one = (float((a - b).norm() / used.norm()) for a, b in ((merged, used), (merged, turned), (singly, used)))
    print(f"{name}: merged, {off:.1e} from the given order, {other:.1e} from the other; merged last one first, {one:.1e}")
    return off, other, one


shape = {"target_modules": ["0"]}
off, other, one = seen("OFT", lambda: peft.OFTConfig(r=0, oft_block_size=4, **shape))
assert off > 0.05 and other < 1e-5 and one < 1e-5, "the order is kept now"
for name, make in (
    ("BOFT", lambda: peft.BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=1, **shape)),
    ("HRA", lambda: peft.HRAConfig(r=2, **shape)),
    ("RoAd", lambda: peft.RoadConfig(group_size=4, **shape)),
    ("LoRA", lambda: peft.LoraConfig(r=2, **shape)),
):
    assert seen(name, make)[0] < 1e-5
PY
