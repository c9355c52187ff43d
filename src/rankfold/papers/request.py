"""What a person may ask of an experiment; what is left out is decided by the experiment."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from rankfold.induce import LORITA, LORITA_RELAXED
from rankfold.run.errors import UsageError
from rankfold.train import Recipe
from rankfold.train.recipe import Precision

Setting = Literal["stable", "relaxed", "paper"]
# options: of an experiment that trains nothing or what is fixed; of one that trains small networks; of one with models
FIXED = frozenset({"quick", "jobs"})
GIVEN = FIXED | {"models", "weights", "finetune_epochs"}  # of one that compresses a network at hand
SMALL = FIXED | {"decays", "seeds", "epochs", "train_samples"}
TRAINING = SMALL | {"setting", "models", "depths", "tolerance", "precision"}


@dataclass(frozen=True)
class Request:
    """``quick``: the smallest form, in seconds, on the bundled digits: it shows that the machinery works, no more.

    ``setting``: "stable" starts the product of factors balanced, with a warm-up and a bounded gradient; "relaxed" also
    lets its decay go late in the run; "paper" starts it at random and does none of that. ``depths`` are numbers N of
    composed matrices, ``decays`` the grid of weight decays; ``tolerance`` is the validation accuracy that may be given
    up for a larger one (one standard error of the best). ``finetune_rate``: the peak rate of fine-tuning in every way
    of compression, instead of the rate of each. ``precision`` of the arithmetic, as in a recipe. ``weights``: a trained
    network's state dict, instead of training one. ``data``: a data set by name, or a folder, as `load_data` takes
    it, in place of the experiment's own. ``trials``: of each way over its own settings. ``jobs``: trainings at a time,
    one thread each.
    """

    quick: bool = False
    setting: Setting = "stable"
    models: tuple[str, ...] | None = None
    depths: tuple[int, ...] | None = None
    decays: tuple[float, ...] | None = None
    seeds: tuple[int, ...] | None = None
    tolerance: float | None = None
    epochs: int | None = None
    finetune_epochs: int | None = None
    finetune_rate: float | None = None
    train_samples: int | None = None
    precision: Precision | None = None
    weights: Path | None = None
    trials: int | None = None
    data: str | None = None
    jobs: int = 1

    def __post_init__(self) -> None:
        if self.setting not in get_args(Setting):
            raise UsageError(f"setting must be stable, relaxed or paper, got {self.setting!r}")
        if self.precision not in (None, *get_args(Precision)):
            raise UsageError(f"precision must be one of {', '.join(get_args(Precision))}, got {self.precision!r}")
        for name in ("models", "depths", "decays", "seeds"):
            values = getattr(self, name)
            if values is not None and (not values or len(set(values)) < len(values)):
                raise UsageError(f"{name}: give at least one, and none of them twice")
        if self.depths is not None and min(self.depths) < 1:
            raise UsageError(f"depths: the number of composed matrices is at least 1, got {min(self.depths)}")
        for name in ("epochs", "train_samples", "trials"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}")
        if self.tolerance is not None and not 0 <= self.tolerance < 1:
            raise UsageError(f"tolerance is a difference of accuracies, at least 0 and below 1, got {self.tolerance:g}")
        if self.finetune_epochs is not None and self.finetune_epochs < 0:
            raise UsageError(f"finetune_epochs must be at least 0, got {self.finetune_epochs}")
        if self.finetune_rate is not None and not 0 < self.finetune_rate < float("inf"):
            raise UsageError(f"finetune_rate must be positive, got {self.finetune_rate}")
        if self.quick and self.data is not None:
            raise UsageError(f"quick is on the bundled digits: leave quick or data {self.data!r} out")
        if self.jobs == 0:
            raise UsageError("jobs must be a number of processes, or -1 for one on each core")

    @property
    def start(self) -> Literal["balanced", "random"]:
        """How a product of factors begins."""
        return "random" if self.setting == "paper" else "balanced"

    def one_model(self, experiment: str) -> str:
        """The only model; ``UsageError`` where there are more."""
        if len(self.models or ()) != 1:
            raise UsageError(f"{experiment} compresses one network: give one model")
        return (self.models or ())[0]

    def filled(self, standard: Request) -> Request:
        """This request, with what it leaves open taken from ``standard``."""
        missing = {field.name for field in fields(self) if getattr(self, field.name) is None}
        return replace(self, **{name: getattr(standard, name) for name in missing})

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"weights": None if self.weights is None else str(self.weights)}

    def only(self, experiment: str, options: Set[str] = TRAINING) -> None:
        """``UsageError`` for an option that is given and that the experiment does not have."""
        for field in fields(self):
            if field.name not in options and getattr(self, field.name) != field.default:
                there = ", ".join(sorted(name.replace("_", "-") for name in options))
                raise UsageError(f"{experiment} has no option {field.name.replace('_', '-')}: its options are {there}")


def steadied(base: Recipe, asked: Request) -> Recipe:
    """``base`` as it is in the paper's setting; else with what keeps products of factors from collapse.

    Those are the warm-up, the schedule and the bound of the gradient of ``rankfold.induce.LORITA``; optimizer, rate and
    decay stay those of ``base``. Precision and the number of epochs are those asked for.
    """
    base = replace(base, epochs=asked.epochs or base.epochs, precision=asked.precision or base.precision)
    if asked.setting == "paper":
        return base
    relax = LORITA_RELAXED.relax if asked.setting == "relaxed" else None
    return replace(base, warmup=LORITA.warmup, schedule=LORITA.schedule, clip_norm=LORITA.clip_norm, relax=relax)
