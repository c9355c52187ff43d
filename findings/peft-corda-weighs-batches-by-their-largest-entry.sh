#!/usr/bin/env bash
# peft 0.21.2, torch 2.13.0, Python 3.11
#
# Guess: CorDA's covariance of a layer's inputs is the sum of x xᵀ over all tokens that run_model shows it, however they come in
# batches; it comes with PEFT.
# Seen: each batch is divided by its largest entry first, sign included. A batch a thousand times as large counts the same; one whose
# entries are negative but for a small positive one counts nine thousand times as much as the same batch with the other sign, and
# decides all directions. Batches of several sequences raise: show one sequence at a time, or tokens as rows. The module also
# imports attrs, which PEFT does not ask for: ModuleNotFoundError after a plain install.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet peft==0.21.2 torch==2.13.0 transformers==5.24.0
if "$place/venv/bin/python" -W ignore -c 'import peft.tuners.lora.corda' 2>"$place/log"; then echo "attrs comes along now"; exit 1; fi
grep "ModuleNotFoundError: No module named 'attr'" "$place/log"
"$place/venv/bin/pip" install --quiet 'attrs<27'
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W error::UserWarning - <<'PY'
import peft
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from torch import nn

assert peft.__version__ == "0.21.2", peft.__version__


def directions(batches):
    """Of a layer that is the identity: its inputs' covariance as CorDA has it, and A of rank 1 after it."""
    layer = nn.Linear(8, 8, bias=False)
    nn.init.eye_(layer.weight)
    model = nn.Sequential(layer)
    corda = CordaConfig(corda_method="ipm", prune_temporary_fields=False)
    config = LoraConfig(r=1, target_modules=["0"], init_lora_weights="corda", corda_config=corda)
    preprocess_corda(model, config, run_model=lambda: [model(batch) for batch in batches])
    covariance = layer.covariance_matrix.clone()
    first = get_peft_model(model, config).base_model.model[0].lora_A["default"].weight.detach()[0]
    return covariance, (first / first.norm()).abs()


generator = torch.Generator().manual_seed(1)
wide = torch.ones(8) / 10
one, two = wide.clone(), wide.clone()
one[0], two[1] = 1.0, 1.0
first, second = (torch.randn(64, 8, generator=generator) * scales for scales in (one, two))
alike, large = directions([first, second])[0], directions([first, 1000 * second])[0]
print(f"second batch times 1000: the covariance moves by {float((large - alike).norm() / alike.norm()):.0e} of itself")
assert torch.allclose(alike, large, rtol=1e-3), "the size of a batch counts now"

negative = -second.abs()
negative[0, 0] = 0.03
heavy = float(directions([negative])[0].trace() / directions([-negative])[0].trace())
start = directions([first, first, first, negative])[1]
print(f"negative entries but one of .03: {heavy:.0f} times the covariance of the same batch with the other sign")
print(f"beside three batches along another direction, A of rank 1 has cosine {float(start[1]):.2f} with the negative batch's")
assert heavy > 1000 and start[1] > 0.95, "the sign of the largest entry does not matter now"

try:
    directions([torch.randn(2, 32, 8)])
    raise AssertionError("batches of several sequences run now")
except RuntimeError as error:
    print(f"a batch of two sequences: {error}")
    assert "2 dimensions" in str(error), error
PY
