#!/usr/bin/env bash
# pytorch-optimizer 4.1.0, apollo-torch 1.0.3, torch 2.13.0, Python 3.11, on a CPU
#
# Guess: APOLLO of pytorch-optimizer steps as its authors' does: along the gradient itself, every channel (or the whole) times one
# number that is found in a random subspace of small rank; the projection decides on lengths alone.
# Seen: it scales the projected gradient and projects that back, so that the step has the rank of the projection and lies in random
# directions. At rank 8 for 256 × 384 its cosine with the gradient is .17 (the authors' 1.00, .96 by channel) and it is five times as
# long, most of it at right angles to the gradient. Within one projection (200 steps by default) a random target of full rank stays at
# .98 of its distance, which the authors' package makes 0.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 'numpy<3' 'transformers<6' bitsandbytes==0.50.2 apollo-torch==1.0.3 \
  pytorch-optimizer==4.1.0
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - 2>"$place/log" <<'PY' || { cat "$place/log"; exit 1; }
from importlib.metadata import version

import torch
from apollo_torch import APOLLOAdamW
from pytorch_optimizer import APOLLO

assert version("pytorch-optimizer") == "4.1.0" and version("apollo-torch") == "1.0.3"


def of_authors(parameter, kind, lr=1.0):
    group = {"params": [parameter], "rank": 8, "update_proj_gap": 200, "scale": 1.0, "proj_type": "std"}
    return APOLLOAdamW([group | {"proj": "random", "scale_type": kind}], lr=lr, disable_nl=True)


def of_collection(parameter, kind, lr=1.0):
    group = {"params": [parameter], "rank": 8, "update_proj_gap": 200, "scale": 1.0, "projection_type": "std"}
    return APOLLO([group], lr=lr, scale_type=kind)


def first_step(make, kind):
    torch.manual_seed(0)
    gradient = torch.randn(256, 384)
    weight = torch.nn.Parameter(torch.zeros(256, 384))
    weight.grad = gradient.clone()
    make(weight, kind).step()
    step = -weight.detach()
    values = torch.linalg.svdvals(step)
    cosine = float(torch.nn.functional.cosine_similarity(step.flatten(), gradient.flatten(), dim=0))
    return cosine, int((values > 1e-4 * values[0]).sum()), float(step.norm())


def left(make, kind):
    """What is left of the distance to a random matrix after 150 steps, by the best of three rates."""
    best = 1.0
    for lr in (0.3, 0.1, 0.03):
        torch.manual_seed(0)
        target, weight = torch.randn(256, 384), torch.nn.Parameter(torch.zeros(256, 384))
        optimizer = make(weight, kind, lr)
        for _ in range(150):
            optimizer.zero_grad()
            (weight - target).square().mean().backward()
            optimizer.step()
        best = min(best, float((weight - target).norm() / target.norm()))
    return best


for kind in ("tensor", "channel"):
    (cosine, rank, length), (reference, full, usual) = first_step(of_collection, kind), first_step(of_authors, kind)
    print(f"{kind}: cosine with the gradient {cosine:.2f}, rank {rank}, length {length:.0f}; the authors' {reference:.2f}, {full}, {usual:.0f}")
    assert cosine < 0.3 and rank == 8 and length > 4 * usual and reference > 0.9 and full == 256, "both step alike now"
far, near = left(of_collection, "channel"), left(of_authors, "channel")
print(f"distance left after 150 steps within one projection: {far:.2f}, the authors' {near:.2f}")
assert far > 0.9 and near < 0.3
PY
