"""C-DLN's ablations: the discrepancy α (figure 15), small random starts (18), depth (19), and the price of the SVD
(table 3)."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rankfold.papers.recover_matrices import COMPLETION, Problem, Trained, measure, small, target, train
from rankfold.papers.request import Request
from rankfold.papers.writing import COLOURS, Outcome, panels
from rankfold.pipeline import Tell
from rankfold.recover import compressed_start

ALPHA = Problem("completion", 100, 5, 10.0, 1.0, observed=0.2, steps=30_000, every=100)
ALPHAS = (0.5, 1.0, 2.0, 5.0, 9.75)  # the authors take every quarter from 0.5 to 9.75
DEPTH = Problem("completion", 100, 10, 50.0, 2.0, observed=0.3)
SVD_TIMES = {100: (0.009, 109.7, 184.3), 300: (0.082, 381.3, 511.2)}  # table 3: SVD, compressed, wide, in seconds
REACHED = 1e-2  # relative error at which networks are compared


def alpha(request: Request, directory: Path, tell: Tell) -> Outcome:
    """Figure 15: iterations and seconds to an error, against α, beside the wide network."""
    request.only("cdln-alpha")
    problem = small(ALPHA) if request.quick else ALPHA
    wide = train(problem, True, 0, tell)
    runs = {value: train(replace(problem, alpha=value), False, 0, tell) for value in ALPHAS}
    rows = [_reached("wide", None, wide)] + [_reached("compressed", value, run) for value, run in runs.items()]
    table = pd.DataFrame(rows)
    faster = [value for value, run in runs.items() if _sooner(run, wide)]
    cheaper = [value for value, run in runs.items() if run.seconds_each < wide.seconds_each]
    remarks = [
        f"In fewer iterations than the wide network at α = {', '.join(f'{value:g}' for value in faster) or 'none'} "
        f"(paper: above 1); an iteration is cheaper at α = {', '.join(f'{value:g}' for value in cheaper) or 'none'}."
    ]
    with panels(1, 2) as (figure, axes):
        for column, what in enumerate(("iterations", "seconds")):
            axes[0, column].plot(table["α"][1:], table[what][1:], "o-", color=COLOURS[1], label="compressed")
            if pd.notna(table[what][0]):
                axes[0, column].axhline(table[what][0], color=COLOURS[0], label="wide")
            axes[0, column].set_xlabel("α")
            axes[0, column].set_ylabel(f"{what} to error {REACHED:g}")
        axes[0, 0].legend()
    return Outcome(
        "C-DLN, figure 15: the discrepancy α of learning rates", {"alpha": table}, {"alpha": figure}, remarks
    )


def depth(request: Request, directory: Path, tell: Tell) -> Outcome:
    """Figure 19: two and three factors with few measurements."""
    request.only("cdln-depth")
    problem = small(DEPTH) if request.quick else DEPTH
    rows, runs = [], {}
    for factors in (2, 3):
        for wide in (True, False):
            name = f"{'wide' if wide else 'compressed'}, L={factors}"
            runs[name] = train(replace(problem, depth=factors), wide, 0, tell)
            rows.append(
                {"network": name, "final error": runs[name].errors[-1], "iterations": runs[name].iterations[-1]}
            )
    deeper = runs["compressed, L=3"].errors[-1] < runs["compressed, L=2"].errors[-1]
    remarks = [f"Three factors recover {'better' if deeper else 'no better'} than two (paper: better)."]
    tables = {"depth": pd.DataFrame(rows)}
    return Outcome("C-DLN, figure 19: the effect of depth", tables, {"depth": curves(runs)}, remarks)


def start(request: Request, directory: Path, tell: Tell) -> Outcome:
    """Figure 18: the wide network from small random weights instead of orthogonal ones."""
    request.only("cdln-start")
    problem = small(COMPLETION) if request.quick else COMPLETION
    runs = {
        "wide, orthogonal": train(problem, True, 0, tell),
        "wide, random": train(problem, True, 0, tell, start="random"),
        "compressed": train(problem, False, 0, tell),
    }
    table = pd.DataFrame([_reached(name, None, run) for name, run in runs.items()])
    remarks = [
        f"The compressed network is {'' if _sooner(runs['compressed'], runs['wide, random']) else 'not '}"
        "sooner at the error than the wide one from small random weights (paper: it is)."
    ]
    return Outcome("C-DLN, figure 18: small random start", {"start": table}, {"start": curves(runs)}, remarks)


def svd(request: Request, directory: Path, tell: Tell) -> Outcome:
    """Table 3: seconds of the spectral start beside those of training."""
    request.only("cdln-svd")
    rows = []
    for size in (24,) if request.quick else (100, 300):
        problem = replace(COMPLETION, size=size, rank=max(2, size // 20), steps=500 if request.quick else 4000)
        u, s, vt = target(problem, 0)
        operator, y = measure(problem, u * s @ vt, 0)
        begun = time.process_time()
        compressed_start(operator, y, problem.width, problem.depth, problem.scale)
        spent = time.process_time() - begun
        runs = {
            "wide": train(replace(problem, steps=problem.steps // 4), True, 0, tell),
            "compressed": train(problem, False, 0, tell),
        }
        published = SVD_TIMES.get(size, (None, None, None))
        for name, run in runs.items():
            row = {
                "network": name,
                "d": size,
                "SVD (s)": spent if name == "compressed" else None,
                "1,000 its (s)": 1000 * run.seconds_each,
            }
            paper = published[1] if name == "compressed" else published[2]
            rows.append(
                row | {"paper, SVD (s)": published[0] if name == "compressed" else None, "paper, all its (s)": paper}
            )
    remarks = ["Seconds of processor; the paper trains to convergence on other hardware, and counts all iterations."]
    return Outcome(
        "C-DLN, table 3: the price of the singular value decomposition", {"svd": pd.DataFrame(rows)}, {}, remarks
    )


def _reached(name: str, alpha: float | None, run: Trained) -> dict[str, object]:
    at = run.first(REACHED)
    return {
        "network": name,
        "α": alpha,
        "iterations": None if at is None else run.iterations[at],
        "seconds": None if at is None else run.seconds[at],
        "final error": run.errors[-1],
    }


def _sooner(run: Trained, other: Trained) -> bool:
    mine, theirs = run.first(REACHED), other.first(REACHED)
    return mine is not None and (theirs is None or run.iterations[mine] < other.iterations[theirs])


def curves(runs: dict[str, Trained]) -> Figure:
    """Relative error against iterations."""
    with panels(1, 1, size=(4.5, 3.0)) as (figure, axes):
        for number, (name, run) in enumerate(runs.items()):
            errors = np.minimum(np.nan_to_num(run.errors, nan=10.0), 10.0)
            axes[0, 0].semilogy(run.iterations, errors, color=COLOURS[number], label=name)
        axes[0, 0].set_xlabel("iteration")
        axes[0, 0].set_ylabel("relative error")
        axes[0, 0].legend()
    return figure
