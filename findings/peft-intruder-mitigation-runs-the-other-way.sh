#!/usr/bin/env bash
# peft 0.21.2, torch 2.13.0, Python 3.11
#
# Guess: mitigation_lambda of reduce_intruder_dimension is "the relative portion of the intruder dimensions that is subtracted", and
# "the higher the value the more": 0 leaves the adapter as it is, 1 takes intruders away.
# Seen: it is the portion that stays. 1 leaves the adapter as it was, to rounding; 0 takes the intruders away, here an update of two strong
# directions whole; the default .75 takes a quarter of it. To forget less, lower it.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet peft==0.21.2 torch==2.13.0 transformers==5.24.0
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W error::UserWarning - <<'PY'
import peft
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.intruders import reduce_intruder_dimension
from torch import nn

assert peft.__version__ == "0.21.2", peft.__version__
assert "more of the intruder dimension is subtracted" in " ".join(reduce_intruder_dimension.__doc__.split())


def left(portion):
    """What is left of the update of an adapter with two strong directions that the base does not have: by length, and moved by."""
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["0"], init_lora_weights=False)
    model = get_peft_model(nn.Sequential(nn.Linear(64, 64)), config)
    layer = model.base_model.model[0]
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(torch.randn(2, 64) / 8)
        layer.lora_B["default"].weight.copy_(3 * torch.randn(64, 2) / 8)
    before = layer.get_delta_weight("default").detach()
    reduce_intruder_dimension(model, mitigation_lambda=portion, logging_sink=None)
    after = layer.get_delta_weight("intruder_reduced").detach()
    return float((after * before).sum() / before.square().sum()), float((after - before).norm() / before.norm())


found = {portion: left(portion) for portion in (0.0, 0.25, 0.75, 1.0)}
for portion, (along, moved) in found.items():
    print(f"mitigation_lambda={portion}: {along:.2f} of the update left, moved by {moved:.2g} of its length")
assert found[1.0][1] < 1e-4 and found[0.0][0] < 0.1, "a higher value subtracts more now"
assert abs(found[0.75][0] - 0.75) < 0.05 and abs(found[0.25][0] - 0.25) < 0.1
PY
