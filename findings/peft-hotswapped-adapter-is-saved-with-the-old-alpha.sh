#!/usr/bin/env bash
# peft 0.21.2, torch 2.13.0, Python 3.11
#
# Guess: hotswap_adapter, which puts another adapter's factors and scaling in the place of a loaded one, leaves a model like
# one that loaded that adapter: what save_pretrained writes is that adapter.
# Seen: the outputs are those of the new adapter, rank and alpha of the configuration stay those of the old one. The file that
# is saved has the new factors beside the old numbers: loaded again, the update is a fraction of itself (alpha 8 for 32: a
# quarter; rank 2 for 4 and alpha 16 for 8: a quarter too), without a word. Of a larger rank than the old one, loading raises.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet peft==0.21.2 torch==2.13.0 'transformers<6'
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W error::UserWarning - "$place" <<'PY'
import sys

import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from torch import nn

assert peft.__version__ == "0.21.2", peft.__version__
x = torch.randn(5, 32)


def base():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 32))


@torch.no_grad()
def update(model):
    return model(x) - base()(x)


wanted = {}
for rank, alpha in ((4, 8), (4, 32), (2, 16), (8, 8)):
    model = get_peft_model(base(), LoraConfig(target_modules=["0"], r=rank, lora_alpha=alpha, init_lora_weights=False))
    model.save_pretrained(f"{sys.argv[1]}/{rank}-{alpha}")
    wanted[rank, alpha] = update(model)

for rank, alpha in ((4, 32), (2, 16), (8, 8)):
    model = PeftModel.from_pretrained(base(), f"{sys.argv[1]}/4-8")
    hotswap_adapter(model, f"{sys.argv[1]}/{rank}-{alpha}", adapter_name="default")
    assert torch.allclose(update(model), wanted[rank, alpha], rtol=1e-4, atol=1e-4)
    config, again = model.peft_config["default"], f"{sys.argv[1]}/{rank}-{alpha}-again"
    print(f"rank {rank}, alpha {alpha} in place of 4, 8: outputs right; the configuration says {config.r}, {config.lora_alpha}")
    assert (config.r, config.lora_alpha) == (4, 8), "the configuration is that of the new adapter now"
    model.save_pretrained(again)
    try:
        seen = update(PeftModel.from_pretrained(base(), again))
    except RuntimeError as error:
        print("    saved and loaded:", str(error).splitlines()[1].strip())
        assert rank == 8
        continue
    times = float((seen * wanted[rank, alpha]).sum() / wanted[rank, alpha].square().sum())
    print(f"    saved and loaded: {times:.2f} times the update")
    assert rank < 8 and abs(times - 0.25) < 1e-3
PY
