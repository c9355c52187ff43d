"""Accuracy under attack, and what the matrices of a network amplify, as one value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import evaluating, labels_of
from rankfold.linalg.brief import brief
from rankfold.objectives import Classification, Objective, infer, objective_named
from rankfold.objectives.answer import main_tensor
from rankfold.pipeline.compression.outcome.measure import calibration_part
from rankfold.pipeline.robustness.attack import Ball, Norm, Space, answered, held
from rankfold.pipeline.robustness.inputs import OWN, check_finite, held_whole, space_of, taken
from rankfold.pipeline.robustness.layers import Amplification, amplified
from rankfold.run.ordinary import ordinarily
from rankfold.run.progress import Progress, showing
from rankfold.train import feed
from rankfold.train.evaluation import materialised, named
from rankfold.train.targets import known_targets

SHOWN = 20  # names in a note
FEWEST_STEPS = 15  # fewer find too little, and flatter the network
_MOST = 709.0  # e to more is no floating-point number
LINF, L2 = (0.03, 0.06), (0.5, 1.0)


@dataclass(frozen=True)
class Attacked:
    """The share of right answers, in [0, 1], that stands every change found within ``radius``; an upper bound of what
    stands every change there is."""

    norm: Norm
    radius: float
    accuracy: float


@dataclass(frozen=True)
class Robustness:
    """What ``rankfold.robustness`` measured of one network; no adversarial training is part of it.

    Attributes:
        clean: accuracy without attack, in [0, 1].
        attacks: accuracy at each norm and radius.
        layers: what each matrix amplifies.
        samples: that were attacked.
        params: of the network.
        steps: of the attack.
        restarts: from random points.
        unit: of the radii.
        blind: of the samples that are answered rightly, the share whose gradient is zero before the first step: the
            attack does not see where to go there, and what it does not find proves nothing.
        left_out: what else the network may multiply by that is not among ``layers``, each with the reason.
        narrow: inputs stay between the extremes of the samples attacked, as the other data are not in memory.

    Example:
        >>> rf.Robustness(0.9, (), (), 100, 1000, 20, 1, "pixels", 0.0).clean
        0.9
    """

    clean: float
    attacks: tuple[Attacked, ...]
    layers: tuple[Amplification, ...]
    samples: int
    params: int
    steps: int
    restarts: int
    unit: str
    blind: float
    left_out: tuple[str, ...] = ()
    narrow: bool = False

    __repr__ = brief

    def accuracy(self, norm: Norm, radius: float) -> float:
        """That under one attack; ``KeyError`` for one that was not measured."""
        for attack in self.attacks:
            if attack.norm == norm and math.isclose(attack.radius, radius):
                return attack.accuracy
        raise KeyError(f"no attack in the norm {norm} with radius {radius:g} was measured")

    @property
    def gain(self) -> float:
        """∏ σ₁ over the layers: with activations that do not stretch, a bound on the network's gain if all follow one
        another and none is a convolution."""
        return _product([layer.largest for layer in self.layers])

    @property
    def condition(self) -> float:
        """∏ κ over the layers, a bound on how much more a relative change of the input can become. It says nothing of
        the gain itself."""
        return _product([layer.condition for layer in self.layers])

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know, in sentences."""
        found = []
        if self.blind > 0.01:
            found.append(
                f"for {self.blind:.1%} of the attacked samples the gradient is zero, so that the attack cannot find "
                "a change: accuracy under attack says little about this network"
            )
        if self.narrow:
            found.append(
                f"inputs stay between the extremes of the {self.samples} samples attacked, as the other data are not "
                "in memory: give bounds= where inputs may lie further out"
            )
        if self.left_out:
            names = ", ".join(self.left_out[:SHOWN]) + ", …" * (len(self.left_out) > SHOWN)
            found.append(f"∏σ₁ and ∏κ leave out {names}: they bound what stands in the table, not the whole network")
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; ``condition`` of a singular layer is null, as are products beyond any number."""
        values = asdict(self) | {"layers": [layer.to_dict() for layer in self.layers]}
        values["attacks"] = [asdict(attack) for attack in self.attacks]
        values |= {"gain": self.gain, "condition": self.condition, "notes": list(self.notes)}
        for part in (values, *values["layers"]):
            part |= {key: None for key in ("gain", "condition") if part.get(key) == math.inf}
        return values


def _product(factors: Sequence[float]) -> float:
    """Infinity where it is beyond any number."""
    logs = -math.inf if 0 in factors else math.fsum(map(math.log, factors))
    return math.exp(logs) if logs < _MOST else math.inf


@showing
@ordinarily
def robustness(
    model: nn.Module,
    data: Any,
    *,
    linf: Sequence[float] = LINF,
    l2: Sequence[float] = L2,
    steps: int = 20,
    restarts: int = 1,
    samples: int | None = 1000,
    objective: Objective | str | None = None,
    pixels: tuple[Tensor, Tensor] | None = None,
    bounds: tuple[float, float] | None = None,
    batch_size: int = 128,
    seed: int = 0,
    progress: Progress | None = None,
) -> Robustness:
    """How many answers of a classifier stand small changes of its inputs, and what its matrices amplify.

    For each radius the loss is climbed by projected gradient steps from each sample, and from random points; a sample
    is held only if it is answered rightly at every point passed. Samples lost to a smaller radius of a norm are lost to
    a larger one. Modes and gradients stay as they are.

    Args:
        model: with floating inputs, dense or compressed; taken in eval mode.
        data: as in ``rankfold.evaluate``.
        linf: radii, of the largest change of an entry.
        l2: radii, of the Euclidean norm of the change.
        steps: of the attack, at least 15.
        restarts: further attacks from random points.
        samples: of the data, drawn with ``seed`` where it is in memory, else the first.
        objective: told from the data by default.
        pixels: the (mean, std), each (C,), by which images were normalised. Radii are in units of pixels between 0 and
            1 where data are images of bytes, or where this is given; elsewhere in units of the inputs.
        bounds: in which inputs stay where they are no pixels; by default the extremes that the data have, or
            where they are not in memory those of the samples attacked, which a note says.
        batch_size: of the attack.
        seed: of samples and random points.
        progress: called as ``progress(what, done, total)`` as the work goes on.

    Returns:
        A ``Robustness``.

    Raises:
        ValueError: an objective that is no classification, inputs that are whole numbers, fewer than 15 steps, no
            radius or one that is not positive, bounds that exclude a sample, an input or a weight that is NaN or
            infinite.

    Cost: (1 + restarts)·(steps + 1) forward and backward passes over ``samples`` for each radius, fewer where samples
    are lost; one SVD of each matrix.

    Source: Madry, Makelov, Schmidt, Tsipras, Vladu 2018.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2, bias=False)).eval()
        >>> _ = net[0].weight.data.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        >>> x = torch.tensor([[0.1, 0.5], [-0.5, 0.5]])
        >>> found = rf.robustness(net, (x, torch.tensor([0, 1])), linf=[0.2], l2=[], bounds=(-1, 1))
        >>> found.clean, found.accuracy("linf", 0.2)
        (1.0, 0.5)
    """
    balls = _balls(linf, l2, steps, restarts)
    if samples is not None and not _is_count(samples, 1):
        raise ValueError(f"samples must be a whole number of at least 1, or None for all, got {samples!r}")
    feed.check(data, "evaluation")
    materialised(model)
    with feed.undrawn(data):
        part = data if samples is None else calibration_part(data, samples, seed)
        batches = taken(model, part, batch_size, samples)
        check_finite(batches, data, batch_size)
        chosen = _chosen(model, batches[0], objective, data)
        space, unit = space_of(data, batches, pixels, bounds)
    if not isinstance(chosen, Classification) or chosen.by_token:
        raise ValueError(
            "robustness is measured only for classifiers, whose answers are right or wrong, and the objective "
            f"is {chosen}: {_remedy(model, batches[0])}"
        )
    layers, left_out = amplified(model)  # before the attacks, which take long: a layer may not be finite
    tell = progress or (lambda what, done, total: None)
    generator = torch.Generator().manual_seed(seed)
    with evaluating(model), named("evaluation"):
        counts = _counts(model, chosen, batches, balls, space, steps, restarts, generator, tell)
    right, counted, under, blind, attacked, seen = counts
    return Robustness(
        clean=right / counted,
        attacks=tuple(Attacked(b.norm, b.radius, found / counted) for b, found in zip(balls, under, strict=True)),
        layers=layers,
        samples=seen,
        params=sum(p.numel() for p in model.parameters()),
        steps=steps,
        restarts=restarts,
        unit=unit,
        blind=blind / max(attacked, 1),
        left_out=left_out,
        narrow=unit == OWN and bounds is None and seen == samples and held_whole(data) is None,
    )


def _chosen(model: nn.Module, batch: Any, objective: Objective | str | None, data: Any) -> Objective:
    if objective is not None:
        return objective_named(objective)
    with evaluating(model), named("evaluation"):
        return infer(answered(model, batch), batch, known_targets(data)).objective


def _remedy(model: nn.Module, batch: Any) -> str:
    """What may make a classifier of it, which a single score for each sample does not."""
    if labels_of(batch) is None:
        return "give data with a class for each sample as target"
    with evaluating(model), named("evaluation"):
        scores = main_tensor(answered(model, batch))
    if scores.dim() > 1 and scores.shape[1] > 1:
        return "give objective='classification' if the targets are classes"
    return (
        "the network gives one number for each sample: if that is the score z of yes, let it give the scores of both "
        "classes, such as torch.cat([-z, z], 1), with 0 and 1 as whole numbers for targets"
    )


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _balls(linf: Sequence[float], l2: Sequence[float], steps: int, restarts: int) -> list[Ball]:
    if not _is_count(steps, FEWEST_STEPS):
        raise ValueError(
            f"steps must be a whole number of at least {FEWEST_STEPS}, as a weaker attack makes the network look "
            f"better than it is; got {steps!r}"
        )
    if not _is_count(restarts, 0):
        raise ValueError(f"restarts must be a whole number of at least 0, got {restarts!r}")
    norms: tuple[tuple[Norm, Sequence[float]], ...] = (("linf", linf), ("l2", l2))
    balls = [Ball(norm, float(radius)) for norm, radii in norms for radius in sorted(radii)]
    if not balls:
        raise ValueError("no radius was given: give linf=[0.03, 0.06], l2=[0.5, 1.0], or one of the two")
    for ball in balls:
        if not (math.isfinite(ball.radius) and ball.radius > 0):
            raise ValueError(f"the radius of an attack must be positive and finite, got {ball.norm} {ball.radius:g}")
    return balls


def _counts(
    model: nn.Module,
    chosen: Classification,
    batches: list[Any],
    balls: list[Ball],
    space: Space,
    steps: int,
    restarts: int,
    generator: torch.Generator,
    tell: Progress,
) -> tuple[int, int, list[int], int, int, int]:
    """Positions right, counted, right under each attack; samples without a gradient, attacked, and in all."""
    right = counted = blind = attacked = seen = done = 0
    under = [0] * len(balls)
    for batch in batches:
        hits, counts = chosen.hits(answered(model, batch), batch)
        right, counted, seen = right + int(hits.sum()), counted + int(counts.sum()), seen + len(hits)
        flat = torch.zeros_like(hits, dtype=torch.bool)
        least: dict[Norm, Tensor] = {}
        for place, ball in enumerate(balls):
            found, zero = held(
                model, chosen, batch, ball, space, steps=steps, restarts=restarts, generator=generator,
                least=least.get(ball.norm),
            )  # fmt: skip
            least[ball.norm], flat = found, flat | zero
            under[place] += int(found.sum())
            done += 1
            tell("attacking", done, len(batches) * len(balls))
        blind, attacked = blind + int(flat.sum()), attacked + int((hits > 0).sum())
    if not counted:
        raise ValueError("there is nothing to count: every target is marked as left out")
    return right, counted, under, blind, attacked, seen
