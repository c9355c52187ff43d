#!/usr/bin/env bash
# loralib 0.1.2, torch 2.13.0, Python 3.11
#
# Guess: the state dict of a model of loralib's layers is the same in training and in evaluation mode, and gives a new model the
# same outputs.
# Seen: eval() adds the update to the weight itself, and the state dict then holds that sum beside the factors, with no sign of it.
# A new model starts as unmerged; loaded with this state it adds the update once more, in train() at each pass and in eval() to the
# weight: it counts twice. So it is with each kind of layer. A checkpoint that is written after the validation is the usual case.
# Call train() before state_dict().
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet loralib==0.1.2 torch==2.13.0 numpy
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W error::UserWarning - <<'PY'
import importlib.metadata

import loralib
import torch

assert importlib.metadata.version("loralib") == "0.1.2"
layers = {
    "Linear": (lambda: loralib.Linear(8, 6, r=2), torch.randn(3, 8)),
    "MergedLinear": (lambda: loralib.MergedLinear(8, 12, r=2, enable_lora=[True, False, True]), torch.randn(3, 8)),
    "Conv2d": (lambda: loralib.Conv2d(4, 6, kernel_size=3, r=2), torch.randn(2, 4, 7, 7)),
    "Embedding": (lambda: loralib.Embedding(10, 6, r=2), torch.arange(5)),
}


@torch.no_grad()
def seen(make, x, evaluated):
    """How far a new layer's outputs are from the saved one's, in both modes, and from what twice the update gives."""
    torch.manual_seed(0)
    layer = make()
    plain = make()
    for name, parameter in layer.named_parameters():
        if "lora_" in name:
            parameter.normal_(std=0.5)
        plain.get_parameter(name).copy_(parameter if "lora_" not in name else torch.zeros_like(parameter))
    wanted, base = layer(x), plain(x)
    layer.train(not evaluated)
    loaded, outputs = make(), []
    loaded.load_state_dict(layer.state_dict())
    for mode in (True, False):
        loaded.train(mode)
        outputs.append(loaded(x))
    off = [float((found - wanted).norm() / wanted.norm()) for found in outputs]
    twice = [float((found - (2 * wanted - base)).norm() / wanted.norm()) for found in outputs]
    return off, twice


for name, (make, x) in layers.items():
    off, twice = seen(make, x, False)
    assert max(off) < 1e-5
    off, twice = seen(make, x, True)
    print(f"{name}, saved in eval(): {off[0]:.2f} off in train(), {off[1]:.2f} in eval(); from twice the update {max(twice):.0e}")
    assert min(off) > 0.05 and max(twice) < 1e-5, "a state says what it holds now"
PY
