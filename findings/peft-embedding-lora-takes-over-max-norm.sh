#!/usr/bin/env bash
# peft 0.21.2, torch 2.13.0, Python 3.11
#
# Guess: LoRA of an nn.Embedding with max_norm adds the product of its factors to the rows that the base looks up, each kept below
# that norm; looking up is no training, and merging gives the same outputs, or is refused.
# Seen: max_norm is applied to the rows of the adapter's own factor A as well, r numbers each and before alpha / r, and in place: a
# pass in eval mode without gradients shortens the stored factor for good, here a row of norm 8 to 1. Merged, the sum is kept below
# max_norm instead, at the next pass: the outputs move by as much as their size. Nothing is said.
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


@torch.no_grad()
def seen(max_norm):
    """The norms of the rows of A before and after one pass, and how far merging moves the outputs."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Embedding(10, 8, max_norm=max_norm))
    model = peft.get_peft_model(base, peft.LoraConfig(target_modules=["0"], r=4, init_lora_weights=False)).eval()
    factor, tokens = model.base_model.model[0].lora_embedding_A["default"], torch.arange(10)
    factor *= 8 / factor.norm(dim=0)
    before = factor.norm(dim=0)
    used = model(tokens)
    after = factor.norm(dim=0)
    merged = model.merge_and_unload()(tokens)
    off = float((merged - used).norm() / used.norm())
    print(f"max_norm={max_norm}: rows of A have norm {float(before.max()):.2f}, after a pass {float(after.max()):.2f}; "
          f"merging moves the outputs by {off:.1e}")
    return float(after.max() / before.max()), off


kept, off = seen(None)
assert kept == 1 and off < 1e-6
kept, off = seen(1.0)
assert kept < 0.2 and off > 0.3, "the adapter is left alone now"
PY
