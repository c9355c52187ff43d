#!/usr/bin/env bash
# peft 0.21.2, torch 2.13.0, transformers 5, Python 3.11
#
# Guess: layer_replication makes a deeper model of which each layer has an adapter of its own over shared weights; merging
# gives each layer its own weights, or is refused, and the outputs stay.
# Seen: merge_and_unload and merge_adapter add the updates of all replicas to the one shared weight, which all of them go on
# sharing: each layer then has the sum. The outputs change, in proportion to the adapters; no error, no warning, safe_merge=True
# included. unmerge_adapter takes it back. Serve such an adapter unmerged, or copy the shared layers first.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet peft==0.21.2 torch==2.13.0 transformers==5.24.0
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W error::UserWarning - <<'PY'
import copy

import peft
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

assert peft.__version__ == "0.21.2", peft.__version__
torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 60}
base = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
tokens = torch.randint(0, 60, (2, 7))
options = {"target_modules": ["down_proj"], "r": 4, "init_lora_weights": False}


@torch.no_grad()
def logits(model):
    return model(input_ids=tokens, use_cache=False).logits


def moved(replication):
    """How far merging moves the outputs, against what the adapter does to them; and the weights after it."""
    torch.manual_seed(1)
    model = get_peft_model(copy.deepcopy(base), LoraConfig(layer_replication=replication, **options)).eval()
    used, layers = logits(model), model.base_model.model.model.layers
    own = [layer.mlp.down_proj.get_delta_weight("default").detach().clone() for layer in layers]
    with model.disable_adapter():
        effect = (used - logits(model)).norm()
    with_merged = copy.deepcopy(model)
    with_merged.merge_adapter()
    merged = model.merge_and_unload(safe_merge=True)
    off = float((logits(merged) - used).norm() / effect)
    assert abs(float((logits(with_merged) - used).norm() / effect) - off) < 1e-3
    with_merged.unmerge_adapter()
    assert float((logits(with_merged) - used).norm() / effect) < 1e-3
    return off, own, [layer.mlp.down_proj.weight.detach() for layer in merged.model.layers]


off, _, _ = moved(None)
print(f"without replication merging moves the outputs by {off:.0e} of what the adapter does")
assert off < 1e-3
off, own, weights = moved([[0, 2], [0, 2]])
print(f"two layers twice each: by {off:.2f}; layers 0 and 2 share a weight: {weights[0].data_ptr() == weights[2].data_ptr()}")
assert off > 0.3, "merging keeps the outputs now"
assert weights[0].data_ptr() == weights[2].data_ptr()
assert torch.allclose(weights[0] - base.model.layers[0].mlp.down_proj.weight, own[0] + own[2], atol=1e-4)
PY
