"""C-DLN on matrices: figures 2 to 14, wide and compressed deep linear networks on the authors' problems."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rankfold.papers.cdln.trainings import (
    COMPLETION,
    COMPLETION_10,
    COMPLETION_FIFTH,
    FACTORIZATION,
    FACTORIZATION_3,
    FACTORIZATION_TEXT,
    SENSING,
    SENSING_2000,
    TEXT,
    Case,
    Problem,
    Trained,
    measure,
    small,
    target,
    train_all,
)
from rankfold.papers.request import FIXED, Request
from rankfold.papers.writing import Outcome, colour, panels
from rankfold.pipeline import Tell
from rankfold.recover import AlternatingMinimization, LowRank, incremental

INCREMENTAL_WITHIN = 0.1
PROBLEMS = {
    "factorization": {"notebook": FACTORIZATION, "text": FACTORIZATION_TEXT},
    "completion": {"r=5": COMPLETION, "r=10": COMPLETION_10},
    "sensing": {"notebook": SENSING},
    "sensing-sizes": {
        f"d={d}, r={r}, m={m}": replace(SENSING_2000, size=d, rank=r, observed=m / d**2)
        for d, r, m in ((50, 3, 1000), (50, 5, 1500), (100, 5, 2000))
    },
    "incremental": {
        "factorization, r=3": FACTORIZATION_3,
        "factorization, r=5": replace(TEXT, rank=5),
        "factorization, r=10": TEXT,
        "completion, r=5": COMPLETION_FIFTH,
        "completion, r=10": replace(COMPLETION_FIFTH, rank=10),
    },
    "incremental-sensing": {
        "sensing, r=5": SENSING_2000,
        "sensing, r=10": replace(SENSING_2000, rank=10),
    },
}
TITLES = {
    "factorization": "matrix factorization",
    "completion": "matrix completion",
    "sensing": "matrix sensing",
    "sensing-sizes": "figure 14: matrix sensing of several sizes",
    "incremental": "figures 4, 7, 9, 11 to 13: values learned one after another, the text's settings",
    "incremental-sensing": "figures 8 and 10: values learned one after another in matrix sensing",
}


def reproduce(kind: str, request: Request, directory: Path, tell: Tell) -> Outcome:
    """Wide against compressed on the problems of one kind: error, values one after another, alignment of the outer
    factors."""
    name = f"cdln-{kind}"
    request.only(name, FIXED)
    problems = dict(PROBLEMS[kind])
    if request.quick:
        problems = {key: small(problem) for key, problem in problems.items()}
    cases = [Case(problem, wide) for problem in problems.values() for wide in (True, False)]
    trained = train_all(cases, directory, request.jobs, tell)
    rows, figures, remarks, times = [], {}, [], []
    for number, (key, problem) in enumerate(problems.items()):
        runs = dict(zip(("wide", "compressed"), trained[2 * number : 2 * number + 2], strict=True))
        for network, run in runs.items():
            rows.append({"setting": key, "network": network, **_row(run)})
            times += _times(problem, key, network, run)
        label = key.replace("=", "").replace(", ", "-")
        figures[f"errors-{label}"] = errors_figure(runs)
        figures[f"incremental-{label}"] = incremental_figure(runs)
        remarks += _compared(key, problem, runs)
    if kind == "completion":
        rows += _others(next(reversed(problems.values())))
    tables = {"errors": pd.DataFrame(rows), "incremental": pd.DataFrame(times)}
    if kind.startswith("incremental"):
        remarks += _constants(tables["incremental"])
    scales = " and ".join(f"{scale:g}" for scale in dict.fromkeys(one.scale for one in problems.values()))
    title = f"C-DLN, {TITLES[kind]}: wide and compressed deep linear networks, L = 3, ε = {scales}"
    return Outcome(title, tables, figures, remarks, {"problems": {key: vars(one) for key, one in problems.items()}})


def _row(run: Trained) -> dict[str, Any]:
    row: dict[str, Any] = {"final error": run.errors[-1], "iterations": run.iterations[-1], "seconds": run.seconds[-1]}
    for error in (1e-1, 1e-3):
        at = run.first(error)
        row[f"iterations to {error:g}"] = None if at is None else run.iterations[at]
        row[f"seconds to {error:g}"] = None if at is None else run.seconds[at]
    return row


def _times(problem: Problem, key: str, network: str, run: Trained) -> list[dict[str, Any]]:
    s = target(problem, 0)[1]
    found = incremental(run.values[:, : problem.rank], run.left, run.right, s, within=INCREMENTAL_WITHIN)
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


def _constants(table: pd.DataFrame) -> list[str]:
    """Of each setting and network, in a sentence: how many components were fitted, and the constants from then on."""
    told = []
    for (setting, network), part in table.groupby(["setting", "network"], sort=False):
        fitted = part.dropna(subset=["fitted at"])
        text = f"{setting}, {network}: {len(fitted)} of {len(part)} components fitted"
        if len(fitted):
            text += (
                f", {int(fitted['before the next'].sum())} of them before the next began; from then on c_val is at "
                f"most {fitted['c_val'].max():.1e} and c_vec {fitted['c_vec'].max():.1e} (within "
                f"{INCREMENTAL_WITHIN:g} at the time of fitting; paper, figure 13: near 1e-15 at the end)"
            )
        told.append(text + ".")
    return told


def _compared(key: str, problem: Problem, runs: dict[str, Trained]) -> list[str]:
    wide, narrow = runs["wide"], runs["compressed"]
    shared = min(len(wide.errors), len(narrow.errors))
    ratios = np.array(narrow.errors[:shared]) / np.array(wide.errors[:shared])
    worse = int((~(ratios <= 1 + 1e-9)).sum())  # NaN where one diverged
    text = f"{key}: the compressed network is no worse at {shared - worse} of {shared} looks (paper: all)"
    for network, run in runs.items():
        text += "" if np.isfinite(run.errors).all() else f"; the {network} one diverged"
    if worse and np.isfinite(ratios).all():
        text += f", by {ratios.max() - 1:.1%} at the worst of the others"
    at_wide, at_narrow = wide.first(1e-2), narrow.first(1e-2)
    if at_wide is None or at_narrow is None:
        reached = "neither" if at_wide is at_narrow else "the wide one" if at_narrow is None else "the compressed one"
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
            axes[0, 0].semilogy(run.iterations, run.errors, color=colour(number), label=name)
            axes[0, 1].semilogy(run.seconds, run.errors, color=colour(number), label=name)
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
            axes[0, column].plot(shown, run.values)
            axes[0, column].set_title(f"singular values, {name}", fontsize=9)
            axes[0, column].set_xlabel("iteration")
        wide = runs["wide"]
        for side, label in enumerate(("W_L with u_1", "W_1 with v_1")):
            axes[0, 2].plot(
                wide.iterations[: len(wide.outer)],
                wide.outer[:, side],
                color=colour(side),
                label=label,
            )
        axes[0, 2].set_title("|cosine|, wide", fontsize=9)
        axes[0, 2].set_xlabel("iteration")
        axes[0, 2].legend(fontsize=8)
    return figure


factorization = partial(reproduce, "factorization")
completion = partial(reproduce, "completion")
sensing = partial(reproduce, "sensing")
sensing_sizes = partial(reproduce, "sensing-sizes")
learned_in_turn = partial(reproduce, "incremental")
sensed_in_turn = partial(reproduce, "incremental-sensing")
