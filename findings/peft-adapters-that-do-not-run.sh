#!/usr/bin/env bash
# peft 0.21.2, torch 2.13.0, Python 3.11
#
# Guess: an adapter on a module that target_modules names runs wherever that module's weight is used, or PEFT says that it cannot.
# Seen: on out_proj of nn.MultiheadAttention, which reads that layer's weight without calling it, the adapter changes nothing and
# gets no gradient; a trained one that is loaded there changes nothing either until it is merged, and then does. (Named by the
# attention itself, target_modules=["attention"], it runs.) Of a layer that hangs at two places, both named, only the first is adapted;
# merging changes both. No error, no warning in either case.
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


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.attention(x, x, x, need_weights=False)[0])


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.second, self.head = self.first, nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.second(self.first(x).tanh()))


def seen(network, names):
    """What the adapter changes, what merging it changes further, both relative, and how many factors get a gradient."""
    torch.manual_seed(0)
    x, config = torch.randn(3, 5, 16), peft.LoraConfig(target_modules=names, r=2, init_lora_weights=False)
    model = peft.get_peft_model(network(), config).eval()
    used = model(x)
    if used.requires_grad:
        used.square().mean().backward()
    reached = sum(p.grad is not None for p in model.parameters() if p.requires_grad)
    of = sum(p.requires_grad for p in model.parameters())
    with torch.no_grad(), model.disable_adapter():
        base = model(x)
    with torch.no_grad():
        merged = model.merge_and_unload()(x)
    moved, further = (float((a - b).detach().norm() / base.norm()) for a, b in ((used, base), (merged, used)))
    print(f"{network.__name__}, {names}: the adapter moves the outputs by {moved:.2f}, merging it by {further:.2f} more; "
          f"{reached} of {of} factors have a gradient")
    return moved, further, reached


moved, further, reached = seen(Attention, ["head"])
assert moved > 0.1 and further < 1e-4 and reached == 2
moved, further, reached = seen(Attention, ["attention"])
assert moved > 0.1 and further < 1e-4 and reached == 4
moved, further, reached = seen(Attention, ["out_proj"])
assert moved == 0 and reached == 0 and further > 0.1, "the adapter of out_proj runs now"
moved, further, reached = seen(Twice, ["first", "second"])
assert moved > 0.1 and reached == 2 and further > 0.1, "both places are adapted now"
PY
