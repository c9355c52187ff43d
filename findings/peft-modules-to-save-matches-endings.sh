#!/usr/bin/env bash
# peft 0.21.2, torch 2.13.0, Python 3.11
#
# Guess: LoraConfig(modules_to_save=["out"]) keeps and trains the module `out`, by its whole name or the last part of its
# path, as target_modules does; a name that no module has is told.
# Seen: any module whose path ends in these letters is meant. ["bout"] takes `about` without a word, and so ["out"] would
# take `about` beside `out`; with a LoRA layer in the model it meets PEFT's own `lora_dropout`, which ends in "out" too, and
# raises a TypeError that names a ModuleDict.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet peft==0.21.2 torch==2.13.0 'transformers<6'
"$place/venv/bin/python" -W ignore - <<'PY'
import peft
import torch
from torch import nn

assert peft.__version__ == "0.21.2", peft.__version__


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.about, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.out(self.about(self.first(x)))


def kept(names):
    config = peft.LoraConfig(target_modules=["first"], r=2, modules_to_save=names)
    model = peft.get_peft_model(Net(), config)
    return [name for name, module in model.named_modules() if type(module).__name__ == "ModulesToSaveWrapper"]


print("bout:", kept(["bout"]))
assert [name.rpartition(".")[2] for name in kept(["bout"])] == ["about"]
try:
    kept(["out"])
except TypeError as error:
    print("out:", error)
    assert "ModuleDict" in str(error)
else:
    raise AssertionError("the module called out was taken alone")
PY
