#!/usr/bin/env bash
# adapters 1.3.0 (AdapterHub), transformers 4.57.6, torch 2.13.0, Python 3.11
#
# Guess: Average("a", "b", weights=...) of LoRA adapters is the weighted mean of their updates, so that the average of one with
# itself is that one, and Stack("a", "b") applies both.
# Seen: the weights are made to sum to one and then the MEAN of the weighted updates is taken: an average of n adapters is n times
# too weak, whatever the weights; normalize_weights=False with weights of 1 gives the true mean. Stack feeds the OUTPUT of the
# first update into the second one and adds that alone, B2 A2 B1 A1 x: a trained adapter under a fresh one, or over it, has no
# effect. No warning. PEFT adds the updates of several active adapters up.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 adapters==1.3.0 transformers==4.57.6 'numpy<3'
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import adapters
import torch
from adapters import LoRAConfig
from adapters.composition import Average, Stack
from transformers import BertConfig, BertModel

assert adapters.__version__ == "1.3.0", adapters.__version__
torch.manual_seed(0)
model = BertModel(
    BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=50)
).eval()
adapters.init(model)
layer = model.encoder.layer[0].attention.self.query
for name in ("a", "b", "c", "fresh"):
    model.add_adapter(name, config=LoRAConfig(r=4, alpha=8))
    if name != "fresh":
        torch.nn.init.normal_(layer.loras[name].lora_B, std=0.1)
inputs = torch.randn(3, 5, 32)


@torch.no_grad()
def update(setup):
    model.set_active_adapters(setup)
    return layer(inputs) - torch.nn.functional.linear(inputs, layer.weight, layer.bias)


a, b, c = (update(name) for name in "abc")
for what, setup, wanted, times in (
    ("Average(a, a)", Average("a", "a"), a, 2),
    ("Average(a, b)", Average("a", "b"), (a + b) / 2, 2),
    ("Average(a, b, weights 3 and 1)", Average("a", "b", weights=[3, 1]), 0.75 * a + 0.25 * b, 2),
    ("Average(a, b, c)", Average("a", "b", "c"), (a + b + c) / 3, 3),
    ("Average(a, b, weights of 1, not normalised)", Average("a", "b", weights=[1, 1], normalize_weights=False), (a + b) / 2, 1),
):
    found = update(setup)
    print(f"{what}: {float((found * wanted).sum() / wanted.pow(2).sum()):.4f} times the mean")
    assert torch.allclose(found * times, wanted, atol=1e-5), "averages are means now"

first, second = layer.loras["a"], layer.loras["b"]
chained = inputs @ first.delta_w.T * first.scaling @ second.delta_w.T * second.scaling
found = update(Stack("a", "b"))
print(f"Stack(a, b): {float((found - a - b).norm() / (a + b).norm()):.2f} off the sum, {float((found - chained).norm() / chained.norm()):.0e} off the chain")
assert torch.allclose(found, chained, atol=1e-5), "stacks are otherwise now"
for setup in (Stack("a", "fresh"), Stack("fresh", "a")):
    size = float(update(setup).norm() / a.norm())
    print(f"{setup}: {size:.2f} of the trained update is left")
    assert size < 1e-6, "a fresh adapter leaves the other one alone now"
PY
