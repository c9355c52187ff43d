"""Table 1a (MNIST rows) with figures 3 and 6: fully connected networks, N = 1, 2, 3, truncated without training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from rankfold.induce import LORITA, LORITA_RELAXED, PAPER_FCN
from rankfold.papers import quick
from rankfold.papers.lorita import retention
from rankfold.papers.lorita.truncation import FRACTIONS
from rankfold.papers.published import FCN10_RETAINED, FCN_DECAYS, TABLE_1A
from rankfold.papers.request import Request
from rankfold.papers.runs import short
from rankfold.papers.selection import images, tuned
from rankfold.papers.writing import Outcome, band, panels
from rankfold.pipeline import Tell
from rankfold.train import Recipe
from rankfold.zoo import load_data

NAME = "lorita-table-1a"
STABLE_DECAYS = (*FCN_DECAYS, 5e-4, 1e-3, 2e-3, 5e-3)  # the paper's grid ends before decay shapes a product of three
RECIPES = {"stable": LORITA, "relaxed": LORITA_RELAXED, "paper": PAPER_FCN}
DECAYS = {"paper": FCN_DECAYS, "relaxed": (1e-3, 2e-3, 4e-3)}  # of the stable setting: those of FULL
QUICK = Request(models=(quick.FULLY_CONNECTED,), depths=(1, 3), decays=(1e-4, 1e-3), seeds=(0,), epochs=6)
FULL = Request(models=("fcn-6", "fcn-8", "fcn-10"), depths=(1, 2, 3), decays=STABLE_DECAYS, seeds=(0, 1, 2, 3, 4))
_LAYERS = 2  # that figure 6 shows
FAINTEST = 1e-5  # of the largest: smaller values are drawn there


def reproduce(request: Request, directory: Path, tell: Tell) -> Outcome:
    """Train, select weight decay on validation, truncate; the test split is seen once, by the final networks."""
    request.only(NAME)
    asked = request.filled(QUICK if request.quick else FULL)
    if request.setting in DECAYS and request.decays is None and not request.quick:
        asked = replace(asked, decays=DECAYS[request.setting])
    data = load_data(quick.DATA if asked.quick else "mnist")
    recipe = _recipe(asked)
    runs, grid = tuned(asked, recipe, data, directory / "runs", tell)
    scope = retention.Scope(fractions=FRACTIONS[::4] if asked.quick else FRACTIONS)
    found = retention.measure(runs, data, scope, _both(TABLE_1A), _both({"fcn-10": FCN10_RETAINED}), tell)
    models = asked.models or ()
    return Outcome(
        f"LoRITa, table 1a: fully connected networks on {data.name}, {asked.setting} setting, {recipe.epochs} epochs",
        retention.tables("table-1a", found, grid),
        {"figure-3": retention.retention_figure(found, models), "figure-6": spectra_figure(found, models)},
        retention.remarks(found, grid),
        {"asked": asked.to_dict(), "recipe": recipe.to_dict(), "train_images": images(runs, data)},
    )


def _both(published: retention.Published) -> retention.Published:
    """The same numbers for the networks with and without BatchNorm: the paper does not say which it means."""
    return {**published, **{f"{network}-plain": values for network, values in published.items()}}


def _recipe(asked: Request) -> Recipe:
    base = RECIPES[asked.setting]
    recipe = replace(base, epochs=asked.epochs or base.epochs, precision=asked.precision or base.precision)
    return replace(recipe, batch_size=32) if asked.quick else recipe


def spectra_figure(found: retention.Measured, models: tuple[str, ...]) -> Figure:
    """Figure 6: singular values over the largest, of the first two layers; the paper draws FCN-8."""
    model = "fcn-8" if "fcn-8" in models else models[-1]
    spectra = {key[1:]: values for key, values in found.spectra.items() if key[0] == model}
    with panels(1, _LAYERS, sharey=True) as (figure, axes):
        for column, layer in enumerate(list(next(iter(spectra.values())))[:_LAYERS]):
            panel = axes[0, column]
            for number, depth in enumerate(dict.fromkeys(depth for depth, _ in spectra)):
                lines = [
                    list(enumerate((s[layer].values / s[layer].spectral_norm).clamp_min(FAINTEST).tolist(), start=1))
                    for (n, _), s in spectra.items()
                    if n == depth and s[layer].spectral_norm > 0
                ]
                band(panel, lines, number, f"N={depth}", markevery=8)
            panel.set_yscale("log")
            panel.set_ylim(FAINTEST / 2, 2)
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            panel.set_title(f"{short(model)}, layer {column} ({layer})", fontsize=9)
            panel.set_xlabel("index")
            panel.legend(fontsize=8)
        axes[0, 0].set_ylabel("singular value / largest")
    return figure
