#!/usr/bin/env bash
# galore-torch 1.0, torch 2.13.0, Python 3.11, on a CPU
#
# Guess: every update_proj_gap steps GaLore computes the basis of its subspace anew, and carries Adam's moments over into the new
# basis or begins them again; where the gradients span the same subspace as before, nothing changes. Its state is saved like Adam's.
# Seen: the moments keep their numbers and get new directions. Singular vectors that change places, or signs, in between turn
# the momentum: the step after a refresh is nearly at right angles to a gradient that has barely moved (cosine .06 for .74), and
# takes some ten steps to come back. Without a refresh nothing happens. The projector is a Python object in the optimizer's state,
# so that torch.load refuses a checkpoint of it by default (weights_only=True).
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 'numpy<3' 'transformers<6' bitsandbytes==0.50.2 'tensorly<1'
"$place/venv/bin/pip" install --quiet --no-deps galore-torch==1.0
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import io
from importlib.metadata import version

import torch
from galore_torch import GaLoreAdamW

assert version("galore-torch") == "1.0", version("galore-torch")
torch.manual_seed(0)
left, right = torch.linalg.qr(torch.randn(30, 3))[0], torch.linalg.qr(torch.randn(20, 3))[0]


def gradient(step):
    """Of rank 3, always in the same two subspaces; after ten steps the first two singular values have changed places."""
    return left @ torch.diag(torch.tensor([3.0, 2.9, 1.0] if step < 10 else [2.9, 3.0, 1.0])) @ right.T


def cosines(gap):
    weight = torch.nn.Parameter(torch.zeros(30, 20))
    group = {"params": [weight], "rank": 3, "update_proj_gap": gap, "scale": 1.0, "proj_type": "std"}
    optimizer, found = GaLoreAdamW([group], lr=0.01), []
    for step in range(25):
        before, weight.grad = weight.detach().clone(), gradient(step)
        optimizer.step()
        found.append(float(torch.cosine_similarity((before - weight.detach()).flatten(), weight.grad.flatten(), dim=0)))
    return found, optimizer


never, _ = cosines(1000)
tenth, optimizer = cosines(10)
moved = torch.cosine_similarity(gradient(9).flatten(), gradient(10).flatten(), dim=0)
print(f"the gradient of step 10 has cosine {moved:.3f} with that of step 9")
print("cosine of step and gradient, basis kept:     ", *(f"{value:.2f}" for value in never[8:20]))
print("cosine of step and gradient, new at step 10:", *(f"{value:.2f}" for value in tenth[8:20]))
assert min(never) > 0.7 and tenth[9] > 0.7 and tenth[10] < 0.2 < 0.7 < tenth[16], "moments are carried over now"

file = io.BytesIO()
torch.save(optimizer.state_dict(), file)
file.seek(0)
try:
    torch.load(file)
    raise AssertionError("the state is made of tensors now")
except Exception as error:
    assert "weights" in str(error).lower(), error
    print(f"torch.load of its state: {type(error).__name__}")
PY
