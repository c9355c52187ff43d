"""C-DLN on matrices: figures 2 to 16 and 19, wide and compressed deep linear networks on the authors' problems."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rankfold.papers.request import Request
from rankfold.papers.writing import COLOURS, Outcome, panels
from rankfold.pipeline import Tell
from rankfold.recover import (
    AlternatingMinimization,
    Descent,
    Gaussian,
    Identity,
    LowRank,
    Rules,
    Watch,
    compressed_start,
    cosines,
    descend,
    entries,
    incremental,
    wide_start,
)
from rankfold.recover.deep_linear import Start

Kind = Literal["factorization", "completion", "sensing"]


@dataclass(frozen=True)
class Problem:
    """As in the authors' notebooks; ``width`` r̂ = 2r, ε = 0.01 (their text has 0.001 and, where ``text`` says so, η,
    α)."""

    kind: Kind
    size: int
    rank: int
    rate: float
    alpha: float
    observed: float = 1.0
    depth: int = 3
    scale: float = 1e-2
    steps: int = 25_000
    every: int = 50

    @property
    def width(self) -> int:
        return 2 * self.rank


FACTORIZATION = Problem("factorization", 100, 10, 1.0, 1.0, steps=100_000, every=500)
FACTORIZATION_TEXT = replace(FACTORIZATION, rate=10.0, alpha=5.0, steps=25_000, every=100)
COMPLETION = Problem("completion", 100, 5, 10.0, 5.0, observed=0.3)
COMPLETION_10 = replace(COMPLETION, rank=10)
SENSING = Problem("sensing", 200, 5, 20.0, 1.0, observed=4000 / 200**2, steps=2000, every=20)
INCREMENTAL_WITHIN = 0.1


@dataclass
class Trained:
    """Of one network: what was seen at every look."""

    iterations: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)
    left: list[np.ndarray] = field(default_factory=list)
    right: list[np.ndarray] = field(default_factory=list)
    outer: list[tuple[float, float]] = field(default_factory=list)

    @property
    def seconds_each(self) -> float:
        """Of one iteration, without looking."""
        return self.seconds[-1] / max(1, self.iterations[-1])

    def first(self, error: float) -> int | None:
        """The look at which the error was first below ``error``."""
        below = np.flatnonzero(np.array(self.errors) < error)
        return int(below[0]) if len(below) else None


def small(problem: Problem) -> Problem:
    """The quick form: a fifth of the size, to see that it runs."""
    size, rank = max(16, problem.size // 6), max(1, problem.rank // 5)
    rate = problem.rate * (0.05 if problem.kind == "sensing" else 1.0)
    return replace(problem, size=size, rank=rank, rate=rate, observed=max(problem.observed, 0.5), steps=400, every=20)


def target(problem: Problem, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(U, σ, V): r singular values spread over the upper half of a Gaussian matrix's, as the authors draw them."""
    rng = np.random.default_rng(seed)
    u, s, vt = np.linalg.svd(rng.standard_normal((problem.size, problem.size)))
    which = np.arange(problem.rank) * (problem.size // (2 * problem.rank))
    return u[:, which], s[which], vt[which]


def measure(problem: Problem, matrix: np.ndarray, seed: int) -> tuple[Any, np.ndarray]:
    """(operator, measurements). The mean over sensing matrices of deviation 1 / √m has the gradient of the authors' sum
    over ones of deviation 1 / m."""
    rng = np.random.default_rng(seed + 1)
    kind = np.empty(0)
    if problem.kind == "factorization":
        return Identity(matrix.shape, kind), matrix
    count = int(problem.observed * matrix.size)
    if problem.kind == "completion":
        cells = rng.choice(matrix.size, count, replace=False)
        rows, columns = cells // problem.size, cells % problem.size
        return entries(matrix.shape, rows, columns, matrix[rows, columns])
    gaussian = Gaussian((problem.size, problem.size), count, seed, kind, keep=count * matrix.size <= 2**28)
    u, s, vt = np.linalg.svd(matrix)
    r = problem.rank
    return gaussian, gaussian.push(u[:, :r] * s[:r], vt[:r])


def train(problem: Problem, wide: bool, seed: int, tell: Tell, start: Start = "orthogonal") -> Trained:
    """One network by gradient descent as in the paper, looked at every ``problem.every`` iterations."""
    u, s, vt = target(problem, seed)
    matrix = u * s @ vt
    operator, y = measure(problem, matrix, seed)
    if wide:
        weights = wide_start(operator.shape, problem.depth, problem.scale, start, seed, matrix)
    else:
        weights = compressed_start(operator, y, problem.width, problem.depth, problem.scale)
    found, size, begun, watching = Trained(), float(np.linalg.norm(matrix)), time.process_time(), 0.0

    def observe(iteration: int, factors: Sequence[np.ndarray]) -> None:
        nonlocal watching
        before = time.process_time()
        product = factors[0]
        for one in factors[1:]:
            product = one @ product
        found.iterations.append(iteration)
        found.seconds.append(before - begun - watching)
        found.errors.append(float(np.linalg.norm(product - matrix)) / size)
        if len(found.errors) <= 400 and np.isfinite(product).all():
            a, values, b = np.linalg.svd(product)
            found.values.append(values[: problem.rank + 1])
            found.left.append(a[:, : problem.rank])
            found.right.append(b[: problem.rank].T)
            last, first = np.linalg.svd(factors[-1])[0][:, 0], np.linalg.svd(factors[0])[2][0]
            found.outer.append((abs(float(last @ u[:, 0])), abs(float(first @ vt[0]))))
        watching += time.process_time() - before

    tol = 1e-6  # of the residual: beyond it only the width's spare values change
    watch = Watch("", operator, y, Rules(tol=tol, max_iter=problem.steps, every=problem.every), None, None)
    alpha = 1.0 if wide else problem.alpha
    descend(operator, y, weights, Descent(problem.rate, alpha), watch, observe)
    name = "wide" if wide else "compressed"
    tell.say(f"{problem.kind}, {name}, L={problem.depth}, α={alpha:g}: {watch.reason}")
    return found


def reproduce(kind: Kind, request: Request, directory: Path, tell: Tell) -> Outcome:
    """Wide against compressed on one kind of problem: error, values one after another, alignment of the outer
    factors."""
    name = f"cdln-{kind}"
    request.only(name)
    problems = {
        "factorization": {"notebook": FACTORIZATION, "text": FACTORIZATION_TEXT},
        "completion": {"r=5": COMPLETION, "r=10": COMPLETION_10},
        "sensing": {"notebook": SENSING},
    }[kind]
    if request.quick:
        problems = {key: small(problem) for key, problem in problems.items()}
    rows, figures, remarks, times = [], {}, [], []
    for key, problem in problems.items():
        runs = {
            "wide": train(problem, True, 0, tell),
            "compressed": train(problem, False, 0, tell),
        }
        for network, run in runs.items():
            rows.append({"setting": key, "network": network, **_row(run)})
            times += _times(problem, key, network, run)
        figures[f"errors-{key.replace('=', '')}"] = errors_figure(runs)
        figures[f"incremental-{key.replace('=', '')}"] = incremental_figure(runs)
        remarks += _compared(key, problem, runs)
    if kind == "completion":
        rows += _others(next(reversed(problems.values())))
    tables = {"errors": pd.DataFrame(rows), "incremental": pd.DataFrame(times)}
    title = f"C-DLN, matrix {kind}: wide and compressed deep linear networks, L = 3, ε = 0.01"
    return Outcome(title, tables, figures, remarks, {"problems": {key: vars(one) for key, one in problems.items()}})


def _row(run: Trained) -> dict[str, Any]:
    row: dict[str, Any] = {"final error": run.errors[-1], "iterations": run.iterations[-1], "seconds": run.seconds[-1]}
    for error in (1e-1, 1e-3):
        at = run.first(error)
        row[f"iterations to {error:g}"] = None if at is None else run.iterations[at]
        row[f"seconds to {error:g}"] = None if at is None else run.seconds[at]
    return row


def _times(problem: Problem, key: str, network: str, run: Trained) -> list[dict[str, Any]]:
    u, s, vt = target(problem, 0)
    left, right = cosines(run.left, u), cosines(run.right, vt.T)
    found = incremental(np.stack(run.values)[:, : problem.rank], left, right, s, within=INCREMENTAL_WITHIN)
    return [
        {
            "setting": key,
            "network": network,
            "component": one.index + 1,
            "value": s[one.index],
            "fitted at": None if one.at is None else run.iterations[one.at],
            "before the next": one.alone,
            "c_val": one.c_val,
            "c_vec": one.c_vec,
        }
        for one in found
    ]


def _compared(key: str, problem: Problem, runs: dict[str, Trained]) -> list[str]:
    wide, narrow = runs["wide"], runs["compressed"]
    shared = min(len(wide.errors), len(narrow.errors))
    worse = sum(a > b * (1 + 1e-9) for a, b in zip(narrow.errors[:shared], wide.errors[:shared], strict=True))
    text = f"{key}: the compressed network is no worse at {shared - worse} of {shared} looks (paper: all)"
    at_wide, at_narrow = wide.first(1e-2), narrow.first(1e-2)
    if at_wide is None or at_narrow is None:
        reached = "the compressed one" if at_narrow is not None else "neither"
        return [f"{text}; of the two, {reached} reaches error 0.01."]
    its = wide.iterations[at_wide] / max(1, narrow.iterations[at_narrow])
    seconds = wide.seconds[at_wide] / max(1e-9, narrow.seconds[at_narrow])
    return [f"{text}; error 0.01 in {its:.1f} times fewer iterations and {seconds:.1f} times less time (paper: > 2)."]


def _others(problem: Problem) -> list[dict[str, Any]]:
    """Alternating minimisation at the same over-estimated rank (it fails, as in figure 6), and our default."""
    u, s, vt = target(problem, 0)
    matrix = u * s @ vt
    operator, y = measure(problem, matrix, 0)
    rows = []
    for name, found in {
        "alternating": AlternatingMinimization(problem.width, max_iter=50),
        "our default": LowRank(problem.width),
    }.items():
        begun = time.process_time()
        found.fit(operator, y)
        spent = time.process_time() - begun
        error = float(np.linalg.norm(found.reconstruct() - matrix) / np.linalg.norm(matrix))
        setting = f"r={problem.rank}"
        rows.append(
            {"setting": setting, "network": name, "final error": error, "iterations": found.n_iter_, "seconds": spent}
        )
    return rows


def errors_figure(runs: dict[str, Trained]) -> Figure:
    """Figures 2, 5, 6 and 14: relative error against iterations and against seconds."""
    with panels(1, 2, sharey=True) as (figure, axes):
        for number, (name, run) in enumerate(runs.items()):
            axes[0, 0].semilogy(run.iterations, run.errors, color=COLOURS[number], label=name)
            axes[0, 1].semilogy(run.seconds, run.errors, color=COLOURS[number], label=name)
        axes[0, 0].set_xlabel("iteration")
        axes[0, 1].set_xlabel("seconds of processor")
        axes[0, 0].set_ylabel("relative error")
        axes[0, 0].legend()
    return figure


def incremental_figure(runs: dict[str, Trained]) -> Figure:
    """Figures 3, 4 and 7 to 13: singular values as they are learned; the outer factors' alignment with the target."""
    with panels(1, 3) as (figure, axes):
        for column, (name, run) in enumerate(runs.items()):
            shown = run.iterations[: len(run.values)]
            axes[0, column].plot(shown, np.stack(run.values))
            axes[0, column].set_title(f"singular values, {name}", fontsize=9)
            axes[0, column].set_xlabel("iteration")
        wide = runs["wide"]
        for side, label in enumerate(("W_L with u_1", "W_1 with v_1")):
            axes[0, 2].plot(
                wide.iterations[: len(wide.outer)],
                [pair[side] for pair in wide.outer],
                color=COLOURS[side],
                label=label,
            )
        axes[0, 2].set_title("|cosine|, wide", fontsize=9)
        axes[0, 2].set_xlabel("iteration")
        axes[0, 2].legend(fontsize=8)
    return figure


def factorization(request: Request, directory: Path, tell: Tell) -> Outcome:
    return reproduce("factorization", request, directory, tell)


def completion(request: Request, directory: Path, tell: Tell) -> Outcome:
    return reproduce("completion", request, directory, tell)


def sensing(request: Request, directory: Path, tell: Tell) -> Outcome:
    return reproduce("sensing", request, directory, tell)
