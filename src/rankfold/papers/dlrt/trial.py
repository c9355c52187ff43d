"""One trial of one way to low rank: its own settings, its training, and what it holds while training."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.compress.applying.apply import apply_
from rankfold.compress.planning.planner import plan
from rankfold.compress.ranks.budget import Params, Ranks
from rankfold.induce import Dlrt, cdln_, dlrt_, dlrt_choice, fold_, overparametrize_
from rankfold.induce.ways import way_named
from rankfold.papers.dlrt.grounds import GROUNDS
from rankfold.papers.runs import device, one_thread, restricted
from rankfold.run.progress import Progress
from rankfold.train import Progress as Step
from rankfold.train import Recipe, evaluate, fit
from rankfold.zoo import Data

Make = Callable[..., torch.optim.Optimizer]
# what a trial may choose, beside the learning rate; the first of each is the default of trial 0
CHOICES: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "dense": {"weight_decay": (0.0, 1e-4, 5e-4)},
    "dense + compress": {"weight_decay": (0.0, 1e-4, 5e-4), "after": (0.5, 0.7, 0.35)},
    "LoRITa + projection": {"weight_decay": (1e-4, 3e-4, 1e-3), "depth": (2, 3), "after": (0.5, 0.7, 0.35)},
    "C-DLN": {"weight_decay": (0.0, 1e-4), "depth": (3, 2), "rate_scale": (1.0, 2.0, 5.0)},
    "DLRT": {"window": (20, 40, 10), "reach": (0.15, 0.3, 0.5), "grow": (1.0, 0.5), "factors": (False, True)},
    "cuttlefish": {"decay": (1e-4, 0.0, 5e-4), "threshold": (0.33, 0.1, 1.0), "latest": (0.34, 0.2, 0.5)},
    "lcnn": {"pull": (0.01, 1e-3, 0.1), "growth": (1.2, 1.1, 1.4)},
    "pufferfish": {"warmup": (0.34, 0.2, 0.5), "weight_decay": (0.0, 1e-4, 5e-4)},
    "frobenius": {"decay": (1e-4, 0.0, 5e-4, 1e-3)},
    "sparse": {
        "penalty": ("hoyer", "nuclear"), "weight": (1e-3, 1e-4, 1e-2), "orthogonality": (1.0, 0.1),
        "reach": (0.5, 0.7, 0.3),
    },
    "maestro": {
        "rank": (0.5, 1.0, 0.25), "lasso": (0.0, 1e-5, 1e-4), "reach": (0.5, 0.7, 0.3), "weight_decay": (0.0, 1e-4),
    },
}  # fmt: skip
LOOKS = 20  # periods of a training, in which a way may act; shares of it become whole numbers of them


@dataclass(frozen=True)
class Case:
    """Trial ``number`` of ``way`` on ``network`` within ``share`` of its parameters."""

    way: str
    number: int
    network: str
    share: float
    seed: int
    epochs: int
    data: str = "mnist"
    train_samples: int | None = None

    @property
    def title(self) -> str:
        short = self.way.replace(" + ", "-").replace(" ", "-").lower()
        return f"ways-{self.network}-{self.share:g}-{short}-{self.number}-seed{self.seed}"

    @property
    def settings(self) -> dict[str, Any]:
        """Those of trial 0 are the defaults; of others drawn from the way's own choices, by its name and number."""
        ground = GROUNDS[self.network]
        chosen: dict[str, Any] = {"learning_rate": ground.recipe.learning_rate}
        choices = CHOICES[self.way]
        if self.number == 0:
            return chosen | {key: values[0] for key, values in choices.items()}
        draw = random.Random(f"{self.way} {self.number}")
        chosen = {"learning_rate": draw.choice(ground.rates)}
        return chosen | {key: draw.choice(values) for key, values in choices.items()}


def drawn(case: Case) -> nn.Module:
    """The network before training, a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed)
        return GROUNDS[case.network].network()


@one_thread()
def measure(case: Case, place: Path, progress: Progress) -> dict[str, Any]:
    """Train, fold, count and judge; the test figure is looked at by whoever chose this trial."""
    data = restricted(GROUNDS[case.network].load(), case.train_samples, case.seed)
    model, held = drawn(case).to(device()), Held()
    dense = _params(model)
    small = trained(case, model, data, held)
    small.eval()
    return {
        "settings": case.settings,
        "validation": evaluate(small, data.validation, role="validation", objective=data.objective).accuracy,
        "test": evaluate(small, data.test, role="test", objective=data.objective).accuracy,
        "params": _params(small),
        "share": _params(small) / dense,
        "bytes": held.most,
    }


def trained(case: Case, model: nn.Module, data: Data, held: Held) -> nn.Module:
    """The network of this trial, small, in factored layers; within the share, but for the dense reference."""
    known = dict(case.settings)
    recipe = replace(
        GROUNDS[case.network].recipe, epochs=case.epochs, learning_rate=known.pop("learning_rate"),
        weight_decay=known.pop("weight_decay", 0.0), seed=case.seed,
    )  # fmt: skip
    part = functools.partial(_fit, data=data, held=held)
    if case.way == "dense":
        part(model, recipe)
        return model
    if case.way in ("dense + compress", "LoRITa + projection"):
        return _compressed(case, model, data, recipe, known, part)
    if case.way == "C-DLN":
        return _cdln(case, model, data, recipe, known, part)
    steps = case.epochs * max(1, len(data.train) // recipe.batch_size)
    every = max(1, steps // LOOKS)
    for key in ("reach", "latest", "warmup"):
        if key in known:
            known[key] = max(1, round(known[key] * LOOKS))
    if case.way == "DLRT":
        known["reach"] = max(1, known["reach"] * every // known["window"])
        dlrt_(model)
        make: Make = functools.partial(Dlrt, budget=case.share, **known)
    else:
        own = {"seed": case.seed} if case.way == "maestro" else {}
        way = way_named(case.way, budget=case.share, every=every, **known, **own)
        way.prepare_(model)
        make = way.optimizer
    part(model, recipe, make=make)
    return fold_(model, keep=True)


def _compressed(
    case: Case, model: nn.Module, data: Data, recipe: Recipe, known: dict[str, Any], part: Callable[..., None]
) -> nn.Module:
    """Trained at full size for a share of the epochs, compressed by projection, and trained on in factors."""
    first = max(1, min(recipe.epochs - 1, round(known["after"] * recipe.epochs)))
    if "depth" in known:
        overparametrize_(model, known["depth"])
    part(model, replace(recipe, epochs=first))
    fold_(model)
    model.eval()
    sample = data.train.take(min(1024, len(data.train)), torch.Generator().manual_seed(case.seed))
    small = apply_(model, plan(model, Params(case.share), "project", sample))
    if recipe.epochs > first:
        rest = replace(recipe, epochs=recipe.epochs - first, weight_decay=0.0, learning_rate=0.5 * recipe.learning_rate)
        part(small.train(), rest)
    return small


def _cdln(
    case: Case, model: nn.Module, data: Data, recipe: Recipe, known: dict[str, Any], part: Callable[..., None]
) -> nn.Module:
    """Compressed products in place of the linear layers, of one share of full rank; convolutions stay dense."""
    sites = [site for site in dlrt_choice(model)[0] if site.kind == "Linear"]
    rest = _params(model) - sum(site.shape[0] * site.shape[1] for site in sites)
    room = case.share * _params(model) - rest
    ranks = {site.name: 1 for site in sites}
    for share in sorted({r / min(site.shape) for site in sites for r in range(1, min(site.shape) + 1)}):
        wider = {site.name: max(1, int(share * min(site.shape) + 1e-9)) for site in sites}
        if sum(wider[site.name] * sum(site.shape) for site in sites) > room:
            break
        ranks = wider
    sample = data.train.take(min(1024, len(data.train)), torch.Generator().manual_seed(case.seed))
    how = {"depth": known["depth"], "rate_scale": known["rate_scale"], "start": "gradient"}
    cdln_(model, list(ranks), ranks, data=sample, generator=torch.Generator().manual_seed(case.seed), **how)
    part(model, recipe)
    fold_(model)
    model.eval()
    return apply_(model, plan(model, Ranks(ranks), "truncate", example=_inputs(data)))


class Held:
    """The most bytes that parameters, gradients and state of the optimizer took, looked at throughout a training."""

    def __init__(self) -> None:
        self.most = 0
        self.forget()

    def forget(self) -> None:
        """The optimizer has done its work: what it trained may leave the model."""
        self.optimizer: torch.optim.Optimizer = torch.optim.SGD([torch.zeros(1)])

    def make(self, inner: Make | None, *args: Any, **settings: Any) -> Any:
        """An optimizer that is remembered; with ``inner`` made by it."""
        if inner is None:
            _, kind, *_ = args
            self.optimizer = kind(settings.pop("groups"), **settings)
        else:
            self.optimizer = inner(*args, **settings)
        return self.optimizer

    def look(self, model: nn.Module, now: Step) -> None:
        if now.finished is None and (now.batch % 50 == 1 or now.batch == 2):
            state: list[Any] = [x for moments in self.optimizer.state.values() for x in moments.values()]
            gradients = [p for p in model.parameters() if p.grad is not None]
            probes = [g for m in model.modules() for g in getattr(m, "gradients", None) or ()]
            everything = [*model.parameters(), *model.buffers(), *gradients, *state, *probes]
            self.most = max(self.most, sum(x.nbytes for x in everything if isinstance(x, Tensor)))


def _fit(model: nn.Module, recipe: Recipe, *, data: Data, held: Held, make: Any = None) -> None:
    fit(
        model, data.train, data.validation, recipe, progress=functools.partial(held.look, model),
        optimizer=functools.partial(held.make, make), objective=data.objective,
    )  # fmt: skip
    held.forget()


def _inputs(data: Data) -> Any:
    """One sample, as the network takes it."""
    batch = next(iter(data.train.batches(1)))
    return batch if isinstance(batch, Mapping) else batch[0]


def _params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
