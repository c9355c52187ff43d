"""CNN rows of table 1b on CIFAR-10, figure 4 (with CIFAR-100): VGG13 and ResNet18, convolutions and fully connected
layers truncated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rankfold.papers import quick
from rankfold.papers.lorita import retention
from rankfold.papers.lorita.truncation import FRACTIONS, by_kind
from rankfold.papers.published import CNN_DECAYS, TABLE_1B
from rankfold.papers.request import TRAINING, Request, steadied
from rankfold.papers.selection import images, tuned
from rankfold.papers.writing import Outcome
from rankfold.pipeline import Tell
from rankfold.train import Augment, Recipe
from rankfold.zoo import load_data

NAME = "lorita-cnn"
QUICK = Request(models=(quick.CONVOLUTIONAL,), depths=(1, 2), decays=(1e-3,), seeds=(0,), epochs=2)
FULL = Request(models=("vgg13-bn", "resnet18"), depths=(1, 2), seeds=(0,), data="cifar10")
RECIPE = Recipe(
    epochs=100, batch_size=128, optimizer="adam", learning_rate=3e-4, schedule="cosine", warmup=0.0, augment=Augment()
)  # rate and grid of decays are the paper's; the optimizer of these rows is not named


def reproduce(request: Request, directory: Path, tell: Tell) -> Outcome:
    """Train, select weight decay on validation, truncate convolutions and fully connected layers side by side."""
    request.only(NAME, TRAINING | {"data"})
    asked = request.filled(QUICK if request.quick else FULL)
    data = load_data(quick.DATA if asked.quick else asked.data or "")
    asked = replace(asked, decays=asked.decays or CNN_DECAYS.get(data.name, CNN_DECAYS["cifar10"]))
    recipe = steadied(RECIPE, asked)
    if asked.quick:
        recipe = replace(recipe, augment=None, learning_rate=3e-3, batch_size=64)
    runs, grid = tuned(asked, recipe, data, directory / "runs", tell)
    fractions = FRACTIONS[::8] if asked.quick else FRACTIONS[3::3]
    scope = retention.Scope(group=by_kind, fractions=fractions, measures=("matrices",))
    published = TABLE_1B if data.name == "cifar10" else {}  # of CIFAR-100 the paper prints no accuracies
    found = retention.measure(runs, data, scope, published, {}, tell)
    return Outcome(
        f"LoRITa, table 1b: convolutional networks on {data.name}, {asked.setting} setting, {recipe.epochs} epochs",
        retention.tables("table-1b-cnn", found, grid),
        {"figure-4": retention.retention_figure(found, asked.models or ())},
        retention.remarks(found, grid),
        {"asked": asked.to_dict(), "recipe": recipe.to_dict(), "train_images": images(runs, data)},
    )
