#!/usr/bin/env bash
# torch 2.13.0, Python 3.11, on a CPU
#
# Guess: a training loop that enters `torch.autocast` anew for every forward pass computes with the weights of that step, also
# where a caller has begun an autocast of its own around the whole loop.
# Seen: rounded copies of weights are kept until the outermost context ends. Inner contexts, `no_grad`, optimizer steps and writes into
# `.data` do not renew them: every forward pass gives the first one's output, gradients stay the first ones, and the weights run away
# along them, without a word. An inner context with `enabled=False` sees the new weights, which hides it from whoever looks in single
# precision. An inner `cache_enabled=False` sees them, too, as does `torch.set_autocast_cache_enabled(False)` for the whole loop.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 'numpy<3'
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import copy
from contextlib import nullcontext

import torch
from torch import nn

assert torch.__version__.startswith("2.13.0")
torch.manual_seed(0)
X = torch.randn(256, 16)
Y = X @ torch.randn(16, 4) / 4
START = nn.Linear(16, 4)


def half(**how):
    return torch.autocast("cpu", torch.bfloat16, **how)


def trained(around, renew=False):
    """Losses as the loop sees them, and at last that of the weights themselves."""
    model, seen = copy.deepcopy(START), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with around:
        if renew:
            torch.clear_autocast_cache()
            torch.set_autocast_cache_enabled(False)
        for _ in range(40):
            with half():
                output = model(X)
            loss = nn.functional.mse_loss(output.float(), Y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append(float(loss))
        torch.set_autocast_cache_enabled(True)
    return seen[0], seen[-1], float(nn.functional.mse_loss(model(X), Y))


found = {
    "a context for each step": trained(nullcontext()),
    "and another one around": trained(half()),
    "and the cache off": trained(half(), renew=True),
}
for name, (first, last, true) in found.items():
    print(f"{name}: loss {first:.3f} at first, {last:.5f} at last as seen, {true:.5f} of the weights")
first, last, true = found["a context for each step"]
assert last < 0.01 * first and true < 0.01 * first
first, last, true = found["and another one around"]
assert last == first and true > 10 * first, "an inner context renews the copies now"
first, last, true = found["and the cache off"]
assert last < 0.01 * first and true < 0.01 * first

layer = copy.deepcopy(START)
with half():
    before = layer(X)
    layer.weight.data.zero_(), layer.bias.data.zero_()
    with torch.no_grad(), half():
        kept = layer(X)
    with half(cache_enabled=False):
        anew = layer(X)
    with half(enabled=False):
        off = layer(X)
print("after zeros were written into .data: as before", bool((kept == before).all()), "- without a cache", float(anew.abs().max()))
assert (kept == before).all() and not anew.any() and not off.any()
PY
