#!/usr/bin/env bash
# peft 0.21.2, torch 2.13.0, Python 3.11
#
# Guess: add_weighted_adapter with combination_type="cat" gives the weighted sum of the updates exactly, and "svd" does where
# its rank suffices, whatever scaling the adapters have.
# Seen: so it is for plain adapters, with patterns of ranks and alphas too. Where the adapter that is named first has
# use_rslora=True, the result is the sum times the root of the new rank (2.8 at rank 8, 4.5 at rank 20): alpha is set to the
# new rank, so that alpha / rank is 1, and rsLoRA's alpha / √rank is not. The same two adapters, one of them plain, give the
# right sum if that one is named first.
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


def combined(first, second, way, **options):
    """How many times the weighted sum the combination is, and what of it is something else."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32))
    for name, rslora in (("a", first), ("b", second)):
        config = peft.LoraConfig(target_modules=["0"], r=4, lora_alpha=8, use_rslora=rslora, init_lora_weights=False)
        if name == "a":
            model = peft.get_peft_model(model, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    model.add_weighted_adapter(["a", "b"], [0.7, 0.3], "sum", combination_type=way, **options)
    a, b, total = (model.base_model.model[0].get_delta_weight(name).detach() for name in ("a", "b", "sum"))
    wanted = 0.7 * a + 0.3 * b
    times = float((total * wanted).sum() / wanted.square().sum())
    assert float((total - times * wanted).norm() / total.norm()) < 1e-4
    print(f"rsLoRA {first} and {second}, {way} {options}: {times:.3f} times the weighted sum")
    return times


for way, options, rank in (("cat", {}, 8), ("svd", {"svd_rank": 20}, 20)):
    assert abs(combined(False, False, way, **options) - 1) < 1e-4
    assert abs(combined(False, True, way, **options) - 1) < 1e-4
    for second in (True, False):
        assert abs(combined(True, second, way, **options) - rank**0.5) < 1e-3, "the sum is right now"
PY
