"""C-DLN's ablations: the discrepancy α (figure 15), the best rate of each network (16), small random starts (18), depth
(19), and the price of the SVD (table 3)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure

from rankfold.papers.cdln.trainings import (
    COMPLETION,
    FACTORIZATION_TEXT,
    Case,
    Problem,
    Trained,
    measure,
    small,
    target,
    train_all,
    train_named,
)
from rankfold.papers.request import FIXED, Request
from rankfold.papers.writing import COLOURS, Outcome, colour, panels
from rankfold.pipeline import Tell
from rankfold.recover import compressed_start
from rankfold.recover.measurements.threads import elements, threads_for

ALPHA = Problem("completion", 100, 5, 10.0, 1.0, observed=0.2, steps=30_000, every=100)
ALPHAS = tuple(np.arange(0.5, 10, 0.25).tolist())
LOSS = 1e-12  # figure 16's tolerance
RATES = tuple(np.linspace(10, 100, 20).tolist())  # of figure 16, for both networks
DEPTH = Problem("completion", 100, 10, 50.0, 2.0, observed=0.3)
SVD_TIMES = {100: (0.009, 109.7, 184.3), 300: (0.082, 381.3, 511.2)}  # table 3: SVD, compressed, wide, in seconds
REACHED = 1e-2  # relative error at which networks are compared


def alpha(request: Request, directory: Path, tell: Tell) -> Outcome:
    """Figure 15: iterations and seconds to an error, against α, beside the wide network."""
    request.only("cdln-alpha", FIXED)
    problem = small(ALPHA) if request.quick else ALPHA
    alphas = ALPHAS[::8] if request.quick else ALPHAS
    cases = [Case(problem, True), *(Case(replace(problem, alpha=value), False) for value in alphas)]
    wide, *compressed = train_all(cases, directory, request.jobs, tell)
    runs = dict(zip(alphas, compressed, strict=True))
    rows = [_reached("wide", None, wide)] + [_reached("compressed", value, run) for value, run in runs.items()]
    table = pd.DataFrame(rows)
    faster = [value for value, run in runs.items() if _sooner(run, wide)]
    cheaper = [value for value, run in runs.items() if run.seconds_each < wide.seconds_each]
    remarks = [
        f"In fewer iterations than the wide network at {_range(faster, alphas)} (paper: above 1); an iteration is "
        f"cheaper at {_range(cheaper, alphas)}."
    ]
    with panels(1, 2) as (figure, axes):
        for column, what in enumerate(("iterations", "seconds")):
            axes[0, column].plot(table["α"][1:], table[what][1:], "o-", color=colour(1), label="compressed")
            if pd.notna(table[what][0]):
                axes[0, column].axhline(table[what][0], color=colour(0), label="wide")
            axes[0, column].set_xlabel("α")
            axes[0, column].set_ylabel(f"{what} to error {REACHED:g}")
        axes[0, 0].legend()
    return Outcome(
        "C-DLN, figure 15: the discrepancy α of learning rates", {"alpha": table}, {"alpha": figure}, remarks
    )


def rate(request: Request, directory: Path, tell: Tell) -> Outcome:
    """Figure 16: α = 1, each network at the rate that takes the fewest iterations to a loss of 1e-12."""
    request.only("cdln-rate", FIXED)
    problem = replace(small(ALPHA), steps=2000, every=20) if request.quick else replace(ALPHA, every=20)
    rates = (1.0, 2.0, 4.0) if request.quick else RATES
    cases = [Case(replace(problem, rate=each), wide) for wide in (True, False) for each in rates]
    found = train_all(cases, directory, request.jobs, tell)
    at = [run.first_loss(LOSS) for run in found]
    table = pd.DataFrame(
        {
            "network": "wide" if case.wide else "compressed",
            "η": case.problem.rate,
            "iterations": None if look is None else run.iterations[look],
            "seconds": None if look is None else run.seconds[look],
            "final error": run.errors[-1],
        }
        for case, run, look in zip(cases, found, at, strict=True)
    )
    best, remarks = {}, []
    for number, name in enumerate(("wide", "compressed")):
        part = table[number * len(rates) : (number + 1) * len(rates)]
        met = part["iterations"].dropna().astype(float)
        if met.empty:
            remarks.append(f"The {name} network is at a loss of {LOSS:g} at no rate within {problem.steps} iterations.")
            continue
        best[name] = list(table.index).index(met.idxmin())
        row = table.loc[best[name]]
        edge = ", the largest tried" if row["η"] == max(rates) else ""
        remarks.append(
            f"{name}: soonest at a loss of {LOSS:g} with η = {row['η']:.3g}{edge}: {met.min():.0f} iterations, "
            f"{row['seconds']:.2f} s of processor; {len(part) - len(met)} of {len(part)} rates do not reach it."
        )
    if len(best) == 2:
        ratio = table["iterations"][best["wide"]] / table["iterations"][best["compressed"]]
        remarks.append(f"At its best rate the wide network needs {ratio:.2f} times the iterations (paper: above 1).")
    figures = {"rate": curves({name: found[index] for name, index in best.items()})} if best else {}
    return Outcome("C-DLN, figure 16: α = 1, each network at its best rate", {"rate": table}, figures, remarks)


def depth(request: Request, directory: Path, tell: Tell) -> Outcome:
    """Figure 19: two and three factors with few measurements."""
    request.only("cdln-depth", FIXED)
    problem = small(DEPTH) if request.quick else DEPTH
    cases = {
        f"{'wide' if wide else 'compressed'}, L={factors}": Case(replace(problem, depth=factors), wide)
        for factors in (2, 3)
        for wide in (True, False)
    }
    runs = train_named(cases, directory, request.jobs, tell)
    rows = [
        {"network": name, "final error": run.errors[-1], "iterations": run.iterations[-1]} for name, run in runs.items()
    ]
    deeper = runs["compressed, L=3"].errors[-1] < runs["compressed, L=2"].errors[-1]
    remarks = [f"Three factors recover {'better' if deeper else 'no better'} than two (paper: better)."]
    tables = {"depth": pd.DataFrame(rows)}
    return Outcome("C-DLN, figure 19: the effect of depth", tables, {"depth": curves(runs)}, remarks)


def start(request: Request, directory: Path, tell: Tell) -> Outcome:
    """Figure 18: the wide network from small random weights instead of orthogonal ones."""
    request.only("cdln-start", FIXED)
    rows: list[dict[str, object]] = []
    figures: dict[str, Figure] = {}
    remarks = []
    for problem in (FACTORIZATION_TEXT, COMPLETION):
        problem = small(problem) if request.quick else problem
        cases = {
            "wide, orthogonal": Case(problem, True),
            "wide, random": Case(problem, True, start="random"),
            "compressed": Case(problem, False),
        }
        runs = train_named(cases, directory, request.jobs, tell)
        rows += [{"problem": problem.kind} | _reached(name, None, run) for name, run in runs.items()]
        figures[problem.kind] = curves(runs)
        remarks.append(
            f"{problem.kind}: the compressed network is "
            f"{'' if _sooner(runs['compressed'], runs['wide, random']) else 'not '}sooner at the error than the wide "
            "one from small random weights (paper: it is)."
        )
    return Outcome("C-DLN, figure 18: small random start", {"start": pd.DataFrame(rows)}, figures, remarks)


def svd(request: Request, directory: Path, tell: Tell) -> Outcome:
    """Table 3: seconds of the spectral start beside those of training, to an error of 0.01."""
    request.only("cdln-svd", FIXED)
    rows: list[dict[str, object]] = []
    for size in (24,) if request.quick else tuple(SVD_TIMES):
        # the rate grows with the size as gradients of the mean fall, so that both sizes take as many iterations
        rate = COMPLETION.rate * (size / COMPLETION.size) ** 1.5
        problem = replace(COMPLETION, size=size, rank=max(2, size // 20), rate=rate, every=100)
        problem = replace(problem, steps=500) if request.quick else problem
        u, s, vt = target(problem, 0)
        operator, y = measure(problem, u * s @ vt, 0)
        with threads_for(elements(operator)):
            begun = time.process_time()
            compressed_start(operator, y, problem.width, problem.depth, problem.scale)
            spent = time.process_time() - begun
        runs = train_named({"wide": Case(problem, True), "compressed": Case(problem, False)}, directory, 1, tell)
        for name, run in runs.items():
            own, theirs = (spent, SVD_TIMES.get(size, (None,))[0]) if name == "compressed" else (None, None)
            published = SVD_TIMES.get(size, (None, None, None))[1 if name == "compressed" else 2]
            reached = _reached(name, None, run)
            rows.append(
                {
                    "network": name,
                    "d": size,
                    "SVD (s)": own,
                    "training (s)": reached["seconds"],
                    "iterations": reached["iterations"],
                    "final error": reached["final error"],
                    "paper, SVD (s)": theirs,
                    "paper, training (s)": published,
                }
            )
    remarks = [
        f"Seconds of processor to a relative error of {REACHED:g}, looks left out; one matrix of each size, one "
        "thread. The paper trains to convergence, on other hardware; its rank, rate and tolerance are not told: "
        "ours are rank d/20, twice that as width, and a rate of 10 at d = 100."
    ]
    return Outcome(
        "C-DLN, table 3: the price of the singular value decomposition", {"svd": pd.DataFrame(rows)}, {}, remarks
    )


def _range(found: Sequence[float], tried: Sequence[float]) -> str:
    ends = f", the least α = {min(found):g}, the largest {max(found):g}" if found else ""
    return f"{len(found)} of {len(tried)} values{ends}"


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


def curves(runs: dict[str, Trained], label: str = "relative error", log: bool = True) -> Figure:
    """Errors against iterations; what diverges is cut off."""
    with panels(1, 1, size=(4.5, 3.0)) as (figure, axes):
        for number, (name, run) in enumerate(runs.items()):
            few = len(runs) <= len(COLOURS)  # else values of one number: shades
            shade = colour(number) if few else colormaps["viridis"](0.9 * number / (len(runs) - 1))
            most = 10.0 if log else 1.2 * run.errors[0]
            errors = np.minimum(np.nan_to_num(run.errors, nan=most), most)
            axes[0, 0].plot(run.iterations, errors, color=shade, label=name)
        axes[0, 0].set_yscale("log" if log else "linear")
        axes[0, 0].set_xlabel("iteration")
        axes[0, 0].set_ylabel(label)
        axes[0, 0].legend(fontsize=8)
    return figure
