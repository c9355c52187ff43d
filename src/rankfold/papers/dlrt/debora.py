"""dEBORA: hypergradients beside finite differences with the lower level solved again, and the nuclear ball."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from rankfold.adapt import Debora, debora_
from rankfold.papers.request import FIXED, Request
from rankfold.papers.writing import Outcome
from rankfold.pipeline import Tell

M, N, ATOMS = 12, 10, 4
PENALTY, STEP, RADIUS = 0.1, 1e-4, 8.0
SEEDS = 3
LEVELS = ("none", "penalty", "oblique", "stiefel")


def reproduce(asked: Request, directory: Path, tell: Tell) -> Outcome:
    """Both tables; nothing is trained but matrices."""
    asked.only("debora-bilevel", FIXED | {"seeds"})
    seeds = asked.seeds or tuple(range(1 if asked.quick else SEEDS))
    slopes: list[dict[str, Any]] = []
    for level in LEVELS:
        for same in (True, False):
            for seed in seeds:
                tell.progress("hypergradients", len(slopes) + 1, len(LEVELS) * 2 * len(seeds))
                slopes.append(hypergradient(level, same, seed))
    ball = [oracle(frame, seed) for frame in ("oblique", "stiefel") for seed in seeds]
    runs, balls = pd.DataFrame(slopes), pd.DataFrame(ball)
    table = summary(runs)
    return Outcome(
        f"The gradient in the gains of dEBORA: ½‖U diag(s) Vᵀ − A‖², {M} × {N}, {ATOMS} atoms, {len(seeds)} seeds",
        {"hypergradients": table, "oracle": balls, "runs": runs},
        {},
        remarks(table, balls),
        {"seeds": list(seeds), "penalty": PENALTY, "step": STEP, "radius": RADIUS},
    )


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Medians over the seeds for each lower level."""
    return runs.drop(columns="seed").groupby(["lower level", "data"], sort=False).median().reset_index()


def remarks(table: pd.DataFrame, balls: pd.DataFrame) -> list[str]:
    """What the tables say."""
    held = table[(table["lower level"] != "none") & (table.data == "same")]
    free = table[table["lower level"] == "none"]
    return [
        "True: central differences of f₁ with the lower level solved again on both sides (L-BFGS, float64).",
        f"With the same data on both levels the partial derivative has cosine {held['cosine ∂f₁'].min():.3f} or more "
        f"with the true hypergradient for every constraint, the printed formula {held['cosine printed'].max():.3f} or "
        "less: it is minus the partial derivative.",
        f"Without a constraint the true hypergradient is at most {free['size'].max():.1e} of the partial derivative's "
        "norm: the lower level takes back whatever a gain does.",
        f"Nuclear ball: largest gap {balls.gap.max():.1e}, rank as soft-thresholded in {int(balls.exact.sum())} of "
        f"{len(balls)} runs.",
    ]


def product(level: str, s: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, V and U diag(s) Vᵀ of free parameters, as the lower level constrains them."""
    u, v = x, y
    if level == "oblique":
        u, v = x / x.norm(dim=0), y / y.norm(dim=0)
    elif level == "stiefel":
        u, v = (_frame(part) for part in (x, y))
    return u, v, (u * s) @ v.T


def _frame(x: Tensor) -> Tensor:
    q, r = torch.linalg.qr(x)
    return q * torch.sign(r.diagonal())


def loss(level: str, target: Tensor, s: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """f of one level."""
    u, v, matrix = product(level, s, x, y)
    value = 0.5 * (matrix - target).square().sum()
    return value + 0.5 * PENALTY * (u.square().sum() + v.square().sum()) if level == "penalty" else value


def solved(level: str, target: Tensor, s: Tensor, start: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The lower level's parameters at ``s``, from ``start``."""
    parts = [part.clone().requires_grad_() for part in start]
    optimizer = torch.optim.LBFGS(
        parts, max_iter=500, tolerance_grad=1e-11, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(level, target, s, *parts)
        value.backward()
        return value

    optimizer.step(closure)
    return parts[0].detach(), parts[1].detach()


def hypergradient(level: str, same: bool, seed: int) -> dict[str, Any]:
    """The true gradient of f₁(s, lower(s)), the partial one, and the printed formula."""
    generator = torch.Generator().manual_seed(seed)
    draw: Callable[..., Tensor] = partial(torch.randn, generator=generator, dtype=torch.float64)
    lower = draw(M, N)
    upper = lower if same else lower + 0.5 * draw(M, N)
    s = 0.5 + torch.rand(ATOMS, generator=generator, dtype=torch.float64)
    start = solved(level, lower, s, (draw(M, ATOMS), draw(N, ATOMS)))
    true = torch.zeros(ATOMS, dtype=torch.float64)
    for i in range(ATOMS):
        ends = []
        for sign in (1, -1):
            there = s.clone()
            there[i] += sign * STEP
            ends.append(float(loss(level, upper, there, *solved(level, lower, there, start))))
        true[i] = (ends[0] - ends[1]) / (2 * STEP)
    u, v, _ = product(level, s, *start)
    gains, left, right = (part.clone().requires_grad_() for part in (s, u, v))
    value = 0.5 * ((left * gains) @ right.T - upper).square().sum()
    slope, by_left, by_right = torch.autograd.grad(value, (gains, left, right))
    printed = slope - ((u * by_left).sum(0) + (v * by_right).sum(0)) / s
    return {
        "lower level": level,
        "data": "same" if same else "two halves",
        "seed": seed,
        "size": float(true.norm() / slope.norm()),
        "cosine ∂f₁": _cosine(slope, true),
        "cosine printed": _cosine(printed, true),
    }


def _cosine(a: Tensor, b: Tensor) -> float:
    return float((a @ b) / (a.norm() * b.norm()).clamp_min(1e-300))


class Two(nn.Module):
    """Two weights that can be read at once."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.first = nn.Linear(N, M, bias=False, dtype=torch.float64)
        self.second = nn.Linear(8, 9, bias=False, dtype=torch.float64)
        with torch.no_grad():
            for layer in (self.first, self.second):
                layer.weight.copy_(0.3 * torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64))

    def forward(self) -> list[Tensor]:
        return [layer(torch.eye(layer.in_features, dtype=torch.float64)).T for layer in (self.first, self.second)]


def oracle(frame: str, seed: int) -> dict[str, Any]:
    """½Σ‖W + ΔW − A‖² over Σ‖ΔW‖_* ≤ radius: the gap, and ranks beside those of soft-thresholded singular values."""
    generator = torch.Generator().manual_seed(seed)
    model = Two(generator)
    sizes = [(1.0, (M, N)), (1.5, (9, 8))]
    targets = [scale * torch.randn(shape, generator=generator, dtype=torch.float64) for scale, shape in sizes]
    with torch.no_grad():
        wanted = thresholded([target - weight for target, weight in zip(targets, model(), strict=True)], RADIUS)
    debora_(model, 6, RADIUS, frame=frame, generator=generator)  # type: ignore[arg-type]
    optimizer = Debora(model, torch.optim.SGD, lr=0.2, scaled=True)

    def closure() -> float:
        optimizer.zero_grad()
        pairs = zip(model(), targets, strict=True)
        value = torch.stack([0.5 * (got - target).square().sum() for got, target in pairs]).sum()
        value.backward()
        return float(value.detach())

    steps, gap, over = 0, float("inf"), 0.0
    while gap > 1e-6 and steps < 4000:
        optimizer.step(closure)
        steps, over = steps + 1, max(over, float(optimizer.gains.sum()) / RADIUS)
        if steps % 20 == 0:
            gap = optimizer.certify(closure, renew=True).gap
    ranks = [int((layer.spectrum().values > 1e-6).sum()) for layer in optimizer.layers.values()]
    right = [int((values > 1e-9).sum()) for values in wanted]
    return {
        "frame": frame, "seed": seed, "gap": gap, "steps": steps, "ranks": " ".join(map(str, ranks)),
        "soft-thresholded": " ".join(map(str, right)), "exact": ranks == right, "largest Σs / τ": over,
    }  # fmt: skip


def thresholded(targets: list[Tensor], radius: float) -> list[Tensor]:
    """Singular values less the one threshold at which all together add up to ``radius``."""
    spectra = [torch.linalg.svdvals(target) for target in targets]
    low, high = 0.0, max(float(values.max()) for values in spectra)
    for _ in range(200):
        middle = (low + high) / 2
        size = sum(float((values - middle).clamp_min(0).sum()) for values in spectra)
        low, high = (middle, high) if size > radius else (low, middle)
    return [(values - high).clamp_min(0) for values in spectra]
