#!/usr/bin/env bash
# adapters 1.3.0 (AdapterHub), transformers 4.57.6, torch 2.13.0, Python 3.11
#
# Guess: VeraConfig trains what VeRA trains, two VECTORS for each adapted layer: r numbers for d and as many as there are outputs for
# b, which makes it smaller than LoRA of the same rank.
# Seen: d and b are diagonal matrices that are stored, saved and trained WHOLE: r x r and outputs x outputs. A square layer so
# adapted trains more numbers than its own weight has (1088 against 1024 here, LoRA of rank 8 has 512), and after some steps
# most of what was learnt lies off the diagonals, which VeRA does not have. No error, no warning. PEFT's VeRA has the vectors.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 adapters==1.3.0 transformers==4.57.6 'numpy<3'
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import adapters
import torch
from adapters import LoRAConfig, VeraConfig
from transformers import BertConfig, BertModel

assert adapters.__version__ == "1.3.0", adapters.__version__
settings = BertConfig(
    hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=50, max_position_embeddings=16
)
tokens = torch.arange(12).reshape(2, 6)


def adapted(config):
    torch.manual_seed(0)
    model = BertModel(settings)
    adapters.init(model)
    model.add_adapter("a", config=config)
    model.train_adapter("a")
    return model, {name: value for name, value in model.named_parameters() if value.requires_grad and ".query." in name}


weight = settings.hidden_size**2
counts = {}
for name, config in (("LoRA", LoRAConfig(r=8)), ("VeRA", VeraConfig(r=8))):
    model, trained = adapted(config)
    counts[name] = sum(value.numel() for value in trained.values())
    shapes = {key.rsplit(".", 1)[1]: tuple(value.shape) for key, value in trained.items()}
    print(f"{name} of rank 8 trains {counts[name]} numbers beside a weight of {weight}: {shapes}")
assert counts == {"LoRA": 2 * 8 * 32, "VeRA": 8 * 8 + 32 * 32}, "the vectors are stored now"
assert counts["VeRA"] > weight

model.eval()  # without dropout
optimizer = torch.optim.SGD(trained.values(), lr=5.0)
wanted = torch.randn(2, 6, 32)
losses = []
before = {key: value.detach().clone() for key, value in trained.items()}
for _ in range(20):
    loss = (model(tokens).last_hidden_state - wanted).pow(2).sum()
    losses.append(float(loss))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"the loss went from {losses[0]:.1f} to {losses[-1]:.1f}")
assert losses[-1] < losses[0]
for key, value in trained.items():
    moved = value.detach() - before[key]
    share = float((moved - moved.diag().diag()).pow(2).sum() / moved.pow(2).sum())
    print(f"{key.rsplit('.', 1)[1]}: {share:.0%} of the (squared) change is off the diagonal")
    assert share > (0.5 if key.endswith("B") else 0.0), "the diagonal alone is trained now"
PY
