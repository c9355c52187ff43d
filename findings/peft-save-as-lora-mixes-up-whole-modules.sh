#!/usr/bin/env bash
# peft 0.21.2, torch 2.13.0, Python 3.11
#
# Guess: save_as_lora, which turns another kind of adapter into LoRA, takes the modules of modules_to_save along as they are: those
# of the adapter that is converted, whatever their inside.
# Seen: of a module with layers inside, a head of two for one, all tensors get the same two names, so that one layer's alone are
# saved, and the folder does not load (KeyError). Of a plain module the tensors are those of the adapter that was added last,
# not of the one that is converted: its outputs are off by a third of what the adapter does, without a word. LoRA that is saved with
# save_pretrained keeps both.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet peft==0.21.2 torch==2.13.0 transformers==5.24.0
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W error::UserWarning - "$place" <<'PY'
import copy
import sys

import peft
import torch
from peft import LoKrConfig, LoraConfig, PeftModel, get_peft_model, save_as_lora
from safetensors.torch import load_file
from torch import nn

assert peft.__version__ == "0.21.2", peft.__version__


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.norm = nn.Linear(24, 30), nn.LayerNorm(30)
        self.head = nn.Sequential(nn.Linear(30, 30), nn.Tanh(), nn.Linear(30, 5))

    def forward(self, x):
        return self.head(self.norm(torch.tanh(self.body(x))))


torch.manual_seed(0)
base, x = Network(), torch.randn(64, 24)


@torch.no_grad()
def trained(model, seed):
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def converted(kept, second, as_lora=True):
    """How far the converted adapter is off, as a share of what the adapter does, and the names of what is no factor in it."""
    kind = LoKrConfig if as_lora else LoraConfig
    config = kind(r=2, target_modules=["body"], modules_to_save=[kept])
    model = trained(get_peft_model(copy.deepcopy(base), config), 1)
    if second:
        model.add_adapter("second", kind(r=2, target_modules=["body"], modules_to_save=[kept]))
        model.set_adapter("second")
        trained(model, 2)
        model.set_adapter("default")
    used, folder = model(x).detach(), f"{sys.argv[1]}/{kept}-{second}-{as_lora}"
    if as_lora:
        save_as_lora(folder, model, rank=1.0)
    else:
        model.save_pretrained(folder, selected_adapters=["default"])
    names = [name for name in load_file(f"{folder}/adapter_model.safetensors") if "lora" not in name]
    try:
        loaded = PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()
    except KeyError as error:
        return error, names
    with torch.no_grad():
        return float((loaded(x) - used).norm() / (used - base(x)).norm()), names


alone, _ = converted("norm", False)
beside, _ = converted("norm", True)
print(f"a norm that was trained along: off by {alone:.0e}; with a second adapter in the model by {beside:.2f}")
assert alone < 1e-4 and beside > 0.1, "the adapter's own modules are saved now"
error, names = converted("head", False)
print(f"a head of two layers: {names}; {type(error).__name__} at loading: {error}")
assert isinstance(error, KeyError) and len(names) == 2, "heads of several layers are saved now"
for kept in ("norm", "head"):
    off, names = converted(kept, True, as_lora=False)
    print(f"{kept}, LoRA from the start, save_pretrained: {len(names)} tensors, off by {off:.0e}")
    assert off < 1e-4 and len(names) == (2 if kept == "norm" else 4)
PY
