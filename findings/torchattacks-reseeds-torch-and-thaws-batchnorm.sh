#!/usr/bin/env bash
# torchattacks 3.5.1, torch 2.13.0, Python 3.11, on a CPU
#
# Guess: an attack inside a training loop draws its own numbers and leaves the model as it found it.
# Seen: APGD, APGDT, FAB, Square and AutoAttack call torch.manual_seed(0) each time: whatever the loop draws afterwards (dropout
# masks, noise, augmentation, shuffling) is the same after every batch. After any attack the whole model is put into train mode if its
# root was: BatchNorm or dropout frozen with .eval() inside a training model is thawed, and its statistics move at the next forward.
# PGD and CW do not reseed. Save torch.get_rng_state() and the modes of the modules around the call.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 'numpy<3' 'scipy<2' tqdm requests
"$place/venv/bin/pip" install --quiet --no-deps torchattacks==3.5.1  # it asks for torchvision, and does not import it
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
import torchattacks
from torch import nn

assert version("torchattacks") == "3.5.1" and torch.__version__.startswith("2.13.0")
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 5)).eval()
images = torch.rand(8, 1, 8, 8)
labels = model(images).argmax(1)

attacks = {
    "PGD": torchattacks.PGD(model, eps=0.1, alpha=0.02, steps=3),
    "CW": torchattacks.CW(model, steps=10),
    "APGD": torchattacks.APGD(model, eps=0.1, steps=3),
    "APGDT": torchattacks.APGDT(model, eps=0.1, steps=3, n_classes=5),
    "FAB": torchattacks.FAB(model, eps=0.1, steps=3, n_classes=5),
    "Square": torchattacks.Square(model, eps=0.1, n_queries=5),
    "AutoAttack": torchattacks.AutoAttack(model, eps=0.1, n_classes=5, version="rand"),
}
for name, attack in attacks.items():
    masks = []
    for _ in range(3):
        attack(images, labels)
        masks.append(nn.functional.dropout(torch.ones(64)))
    same = all(torch.equal(mask, masks[0]) for mask in masks)
    print(f"{name}: the dropout masks after three attacks are {'the same' if same else 'different ones'}")
    assert same == (name not in ("PGD", "CW")), "it is seeded otherwise now"

model.train()
model[1].eval()  # frozen, as for fine-tuning
model(images)
frozen = model[1].running_mean.clone()
assert not frozen.any()
attacks["PGD"](images, labels)
print(f"after an attack the frozen BatchNorm has training={model[1].training}")
assert model[1].training, "modes are given back now"
model(images)
moved = float((model[1].running_mean - frozen).abs().max())
print(f"the next forward moves its running mean by {moved:.3f}")
assert moved > 1e-3
PY
