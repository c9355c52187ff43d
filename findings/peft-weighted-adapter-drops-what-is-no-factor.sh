#!/usr/bin/env bash
# peft 0.21.2, torch 2.13.0, Python 3.11
#
# Guess: add_weighted_adapter of ONE adapter with weight 1 is that adapter, and what it cannot combine is refused, as
# target_parameters are.
# Seen: the two factors alone are combined. DoRA's magnitudes are those of a fresh adapter, the trained bias of lora_bias=True is
# zero, the trained copy in modules_to_save is the base's; the outputs are off by a fifth of their size and more, with "cat",
# "svd" and "linear" alike. No error, no warning. Plain LoRA is exact. Merge such an adapter into the weights instead.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet peft==0.21.2 torch==2.13.0 'transformers<6'
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W error::UserWarning - <<'PY'
import peft
import torch
from torch import nn

assert peft.__version__ == "0.21.2", peft.__version__


def seen(kind, **options):
    """How far the copy by add_weighted_adapter, and the merged model, are from the adapter."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4)).eval()
    model = peft.get_peft_model(network, peft.LoraConfig(target_modules=["0"], r=2, lora_alpha=2, **options)).eval()
    x = torch.randn(5, 16)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter) * 0.3
        used = model(x)
        more = {"svd_rank": 2} if kind == "svd" else {}
        model.add_weighted_adapter(["default"], [1.0], "copy", combination_type=kind, **more)
        model.set_adapter("copy")
        copied = model(x)
        model.set_adapter("default")
        merged = model.merge_and_unload()(x)
    off, apart = (float((seen - used).norm() / used.norm()) for seen in (copied, merged))
    print(f"{kind}, {options or 'plain'}: the copy is {off:.1e} off, the merged model {apart:.1e}")
    assert apart < 1e-5
    return off


for kind in ("cat", "svd", "linear"):
    assert seen(kind) < 1e-5
    for options in ({"use_dora": True}, {"lora_bias": True}, {"modules_to_save": ["2"]}):
        assert seen(kind, **options) > 0.1, "it is copied now"
PY
