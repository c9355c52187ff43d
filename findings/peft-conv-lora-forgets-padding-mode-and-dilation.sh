#!/usr/bin/env bash
# peft 0.21.2, torch 2.13.0, Python 3.11
#
# Guess: LoRA of a convolution is a convolution of the same kind: it has the layer's stride, padding, padding_mode and
# dilation, and merging it changes nothing but rounding.
# Seen: stride and padding alone are taken over. Over a layer with padding_mode="reflect" (or "circular", "replicate") the
# adapter pads with zeros: so it is trained, and merging it moves the outputs at the border by more than their size, without
# a word. Over a dilated layer its output has another size, and the first forward pass raises.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet peft==0.21.2 torch==2.13.0 'transformers<6'
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import peft
import torch
from torch import nn

assert peft.__version__ == "0.21.2", peft.__version__


@torch.no_grad()
def merged(**options):
    """How far merging moves the outputs: at the border, and inside."""
    torch.manual_seed(0)
    x = torch.randn(2, 8, 12, 12)
    config = peft.LoraConfig(target_modules=["0"], r=4, init_lora_weights=False)
    model = peft.get_peft_model(nn.Sequential(nn.Conv2d(8, 12, 3, **options)), config).eval()
    before = model(x)
    off = (model.merge_and_unload()(x) - before).abs() / before.abs().mean()
    inside = float(off[..., 1:-1, 1:-1].max())
    off[..., 1:-1, 1:-1] = 0
    print(f"{options}: merging moves the outputs by {float(off.max()):.2g} of their mean size at the border, {inside:.2g} inside")
    return float(off.max()), inside


assert max(merged(padding=1)) < 1e-3
assert max(merged(padding=1, stride=2)) < 1e-3
for mode in ("reflect", "circular", "replicate"):
    border, inside = merged(padding=1, padding_mode=mode)
    assert inside < 1e-3 < 0.1 < border, "the padding mode is taken over now"
try:
    merged(padding=2, dilation=2)
except RuntimeError as error:
    print("dilation=2:", error)
else:
    raise AssertionError("dilated layers can be adapted now")
PY
