#!/usr/bin/env bash
# apollo-torch 1.0.3, torch 2.13.0, Python 3.11, on a CPU
#
# Guess: a matrix whose first gradient is zero trains from the second step on, as with Adam: the first factor of a LoRA pair, whose
# second factor starts at zero, or an expert that got no token.
# Seen: APOLLO lets the norm of a step grow by 1 % at most over that of the step before, plus 1e-8 (its default, disable_nl=False).
# After a gradient of zeros, first or later, that norm begins at 1e-8: the layer stands still for 500 steps and comes back after some
# 1,500. Of a LoRA pair only the second factor trains until then; nothing is said. With disable_nl=True both train at once.
# A rank above the smaller side, usual for thin factors, is not cut: the moments of an 8 × 512 matrix are 256 × 512 each.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 'numpy<3' 'transformers<6' bitsandbytes==0.50.2 apollo-torch==1.0.3
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - 2>"$place/log" <<'PY' || { cat "$place/log"; exit 1; }
from importlib.metadata import version

import torch
from apollo_torch import APOLLOAdamW

assert version("apollo-torch") == "1.0.3", version("apollo-torch")
options = {"proj": "random", "scale_type": "channel", "scale": 1.0, "update_proj_gap": 200, "proj_type": "std"}


def apollo(parameters, rank=2, **more):
    return APOLLOAdamW([{"params": parameters, "rank": rank} | options], lr=1e-2, **more)


def first_factor(optimizer, zero=True):
    """How far the first factor of a pair has moved after so many steps, as a share of its norm; the second begins at zero."""
    torch.manual_seed(0)
    first = torch.nn.Parameter(torch.randn(4, 32) / 32**0.5)
    second = torch.nn.Parameter(torch.zeros(64, 4) if zero else 1e-3 * torch.randn(64, 4))
    x, start, found = torch.randn(256, 32), first.detach().clone(), {}
    y = x @ torch.randn(32, 64) / 32**0.5
    optimizer = optimizer([first, second])
    for step in range(1, 1601):
        optimizer.zero_grad()
        (x @ first.T @ second.T - y).square().mean().backward()
        optimizer.step()
        if step in (100, 500, 1600):
            found[step] = float((first - start).norm() / start.norm())
    return found


def told(found):
    return ", ".join(f"{share:.1e} after {step} steps" for step, share in found.items())


held, free = first_factor(apollo), first_factor(lambda parameters: apollo(parameters, disable_nl=True))
adam, small = first_factor(lambda parameters: torch.optim.AdamW(parameters, lr=1e-2)), first_factor(apollo, zero=False)
print("the first factor has moved by (shares of its norm)")
print("APOLLO, second factor begins at zero:    ", told(held))
print("APOLLO, second factor begins at 1e-3:    ", told(small))
print("APOLLO without its limit, begins at zero:", told(free))
print("AdamW, begins at zero:                   ", told(adam))
assert held[100] < 1e-6 and held[500] < 1e-3 and held[1600] > 0.5, "what began with zeros trains now"
assert min(free[100], adam[100], small[100]) > 0.5

torch.manual_seed(0)
expert, moved = torch.nn.Parameter(torch.randn(16, 32)), []
optimizer = apollo([expert])
for step in range(40):
    before, expert.grad = expert.detach().clone(), torch.zeros(16, 32) if step == 20 else torch.randn(16, 32)
    optimizer.step()
    moved.append(float((expert - before).norm()))
print(f"steps of random gradients, zeros once at step 20: {moved[19]:.1e} before, {moved[21]:.1e} after, {moved[39]:.1e} at step 39")
assert moved[19] > 1e-2 and max(moved[21:]) < 1e-7, "one gradient of zeros does no harm now"

thin = torch.nn.Parameter(torch.randn(8, 512))
thin.grad = torch.randn(8, 512)
optimizer = apollo([thin], rank=256)
optimizer.step()
kept = sum(tensor.numel() for name, tensor in optimizer.state[thin].items() if name.startswith("exp_avg"))
print(f"moments of an 8 × 512 matrix at rank 256: {kept:,} numbers, AdamW's {2 * thin.numel():,}")
assert kept == 2 * 256 * 512, "the rank is cut now"
PY
