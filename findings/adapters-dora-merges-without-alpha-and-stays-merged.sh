#!/usr/bin/env bash
# adapters 1.3.0 (AdapterHub), transformers 4.57.6, torch 2.13.0, Python 3.11
#
# Guess: merge_adapter gives what the adapter gave while it ran, for every alpha, and reset_adapter the base again; so it is for
# LoRA, to rounding.
# Seen: of DoRA, the merged weights leave alpha / r out (exact only where alpha is r), and where the layer has a bias, the running
# adapter scales the bias too, the merged one does not: merged and running differ by a good part of the adapter's own effect.
# reset_adapter says that nothing is merged and leaves the merged weights in place: without the adapter the model goes on as the
# adapted one, and with it the update comes on top. No error, no warning. Keep a copy of the weights from before the merge.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 adapters==1.3.0 transformers==4.57.6 'numpy<3'
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import adapters
import torch
from adapters import DoRAConfig, LoRAConfig
from transformers import BertConfig, BertModel

assert adapters.__version__ == "1.3.0", adapters.__version__
settings = BertConfig(
    hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=50, max_position_embeddings=16
)
inputs = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(1))


def seen(kind, alpha, bias):
    torch.manual_seed(0)
    model = BertModel(settings).eval()
    adapters.init(model)
    layer = model.encoder.layer[0].attention.self.query
    with torch.no_grad():
        layer.bias.normal_().mul_(bias)
        base = layer(inputs)
        weight = layer.weight.clone()
        model.add_adapter("a", config=kind(r=4, alpha=alpha))
        model.set_active_adapters("a")
        layer.loras["a"].lora_B.normal_().mul_(0.1)
        if hasattr(layer.loras["a"], "m"):
            layer.loras["a"].m.weight.mul_(1.5)
        running = layer(inputs)
        model.merge_adapter("a")
        merged = layer(inputs)
        model.reset_adapter()
        again = layer(inputs)
        model.set_active_adapters(None)
        left = layer(inputs)

    effect = float((running - base).norm())
    apart = [float((one - two).norm()) / effect for one, two in ((merged, running), (left, base), (again, running))]
    changed = float((layer.weight - weight).norm() / weight.norm())
    print(
        f"{kind.__name__}, r=4, alpha={alpha}, {'bias' if bias else 'no bias'}: in units of the adapter's effect, merged is {apart[0]:.1e}"
        f" off, after reset the base {apart[1]:.1e} and the adapter {apart[2]:.1e}; the weight is {changed:.1e} off"
    )
    assert not layer.merged
    return *apart, changed


for alpha in (4, 16):
    for bias in (0, 1):
        assert max(seen(LoRAConfig, alpha, bias)) < 1e-4
        merged, left, again, changed = seen(DoRAConfig, alpha, bias)
        assert (merged < 1e-4) == (alpha == 4 and not bias), "DoRA merges otherwise now"
        assert left > 0.1 and again > 0.1 and changed > 0.1, "DoRA is reset now"
PY
