"""ViT rows of tables 1a (no augmentation) and 1b (with it), figure 5: attention over-parametrised, then truncated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rankfold.papers import quick
from rankfold.papers.lorita import retention
from rankfold.papers.lorita.truncation import FRACTIONS, by_kind
from rankfold.papers.published import TABLE_1A, TABLE_1B, VIT_DECAYS, VIT_RETAINED
from rankfold.papers.request import Request, steadied
from rankfold.papers.selection import images, tuned
from rankfold.papers.writing import Outcome
from rankfold.pipeline import Tell
from rankfold.train import Augment, Recipe
from rankfold.zoo import load_data

ATTENTION = "*attention.*"
QUICK = Request(models=(quick.TRANSFORMER,), depths=(1, 3), decays=(1e-4,), seeds=(0,), epochs=2)
PLAIN = Request(models=("vit-l8-h1", "vit-l8-h4", "vit-l8-h8"), depths=(1, 2, 3), decays=VIT_DECAYS, seeds=(0,))
AUGMENTED = Request(models=("vit-l4-h8", "vit-l8-h8", "vit-l16-h8"), depths=(1, 2), decays=VIT_DECAYS, seeds=(0,))
RECIPE = Recipe(
    epochs=100, batch_size=128, optimizer="adam", learning_rate=3e-4, schedule="cosine", warmup=0.0
)  # rate and optimizer are the paper's


def plain(request: Request, directory: Path, tell: Tell) -> Outcome:
    """Without augmentation: 8 layers with 1, 4 and 8 heads."""
    return _reproduce("lorita-vit", request, PLAIN, None, directory, tell)


def augmented(request: Request, directory: Path, tell: Tell) -> Outcome:
    """With augmentation (shifts and mirror images): 4, 8 and 16 layers with 8 heads."""
    return _reproduce("lorita-vit-augmented", request, AUGMENTED, Augment(), directory, tell)


def _reproduce(
    name: str, request: Request, full: Request, augment: Augment | None, directory: Path, tell: Tell
) -> Outcome:
    request.only(name)
    asked = request.filled(QUICK if request.quick else full)
    data = load_data(quick.DATA if asked.quick else "cifar10")
    recipe = steadied(replace(RECIPE, augment=None if asked.quick else augment), asked)
    if asked.quick:
        recipe = replace(recipe, learning_rate=3e-3, batch_size=32)
    runs, grid = tuned(asked, recipe, data, directory / "runs", tell, ATTENTION)
    fractions = FRACTIONS[::8] if asked.quick else FRACTIONS[3::3]
    published = {} if asked.quick else TABLE_1A if augment is None else TABLE_1B
    stated = {"vit-l8-h8": VIT_RETAINED} if augment is None else {}
    scope = retention.Scope(ATTENTION, fractions=fractions, measures=("matrices",))
    found = retention.measure(runs, data, scope, published, stated, tell)
    every = retention.measure(runs, data, replace(scope, where=None, group=by_kind), published, {}, tell)
    models = asked.models or ()
    return Outcome(
        f"LoRITa: vision transformers on {data.name} {'without' if recipe.augment is None else 'with'} augmentation, "
        f"{asked.setting} setting, {recipe.epochs} epochs",
        retention.tables("table-1-vit", found, grid)
        | {"all-layers": retention.table(every), "points-all-layers": retention.points(every)},
        {
            "figure-5": retention.retention_figure(found, models, ("global",)),
            "figure-5-all-layers": retention.retention_figure(every, models, ("global",)),
        },
        [
            "Truncated are the matrices of attention, which are the over-parametrised ones; all-layers.csv has every "
            "matrix truncated, attention, fully connected layers and patches each ranked by itself.",
            *retention.remarks(found, grid),
        ],
        {"asked": asked.to_dict(), "recipe": recipe.to_dict(), "train_images": images(runs, data)},
    )
