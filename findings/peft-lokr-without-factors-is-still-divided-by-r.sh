#!/usr/bin/env bash
# peft 0.21.2, lycoris-lora 4.1.3, torch 2.13.0, Python 3.11
#
# Guess: a rank that is too large for LoKr to factor its second block, the way to ask for whole blocks, means no more than that: rank and
# alpha have no effect from there on, as in LyCORIS, where the method comes from.
# Seen: PEFT goes on multiplying with alpha / r, of an r that no tensor has. At alpha 8 the same two blocks make an update of 2 times
# their product at r=4, of .08 at r=100 and .0008 at r=10,000; LyCORIS gives them once at any of these, and says that it takes
# whole blocks. PEFT says nothing: pass alpha=r there.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet peft==0.21.2 torch==2.13.0 transformers==5.24.0 lycoris-lora==4.1.3
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - 2>"$place/log" <<'PY' || { cat "$place/log"; exit 1; }
import importlib.metadata

import peft
import torch
from lycoris.modules.lokr import LokrModule
from peft import LoKrConfig, get_peft_model
from torch import nn

assert peft.__version__ == "0.21.2" and importlib.metadata.version("lycoris-lora") == "4.1.3"


def times(rank):
    """The update as a multiple of the Kronecker product of the two blocks: PEFT's, and LyCORIS's."""
    torch.manual_seed(0)
    config = LoKrConfig(r=rank, alpha=8, target_modules=["0"], init_weights=False)
    layer = get_peft_model(nn.Sequential(nn.Linear(40, 30)), config).base_model.model[0]
    names = sorted(name for name, _ in layer.named_parameters() if "lokr" in name)
    assert names == ["lokr_w1.default", "lokr_w2.default"], names
    product = torch.kron(layer.lokr_w1["default"], layer.lokr_w2["default"])
    update = layer.get_delta_weight("default")

    other = LokrModule("one", nn.Linear(40, 30), multiplier=1.0, lora_dim=rank, alpha=8)
    assert {"lokr_w1", "lokr_w2"} <= {name for name, _ in other.named_parameters()}
    nn.init.normal_(other.lokr_w2)
    theirs = torch.kron(other.lokr_w1, other.lokr_w2)
    return [float((made * of).sum() / of.square().sum()) for made, of in ((update, product), (other.get_weight((30, 40)), theirs))]


for rank in (4, 100, 10_000):
    ours, theirs = times(rank)
    print(f"rank {rank}, alpha 8, whole blocks: the update is {ours:.4g} times their product; LyCORIS {theirs:.4g} times")
    assert abs(ours * rank / 8 - 1) < 1e-3, "the rank has no effect now"
    assert abs(theirs - 1) < 1e-3
PY
