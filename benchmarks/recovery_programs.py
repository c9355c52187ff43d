"""The convex programs of theorems 4.4 and 4.9: seconds to a relative duality gap of 1e-4, and cvxpy where it can.

    python benchmarks/recovery_programs.py --threads 2 --out recovery_programs.json

Two parts, in one run:

large  2,000 × 128 → 256, planted rank 16, noise 0.3, squares and Tobit, by ADMM; once with the radius and the bound of
       the truth, once with 0.7 and 0.5 of them, so that both constraints bind; Tobit without a bound also by FISTA
small  40 × 6 → 8, squares under both constraints, by ADMM (gaps 1e-4 and 1e-8) and by cvxpy with Clarabel and SCS

Wall and processor seconds: on shared cores the second is what repeats.
"""

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankfold.linalg import ProgramFit, nuclear_max_norm, nuclear_tobit

SIGMA = 0.3


def planted(rows: int, n: int, m: int, rank: int, seed: int = 0) -> tuple[Tensor, Tensor, float, float]:
    """Inputs, noisy outputs, and the nuclear norm and the largest entry of the true ones."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = normal(rows, n)
    truth = x @ normal(n, rank) @ normal(rank, m) / math.sqrt(n * rank)
    y = truth + SIGMA * normal(rows, m)
    return x, y, float(torch.linalg.matrix_norm(truth, "nuc")), float(truth.abs().max())


def timed(what: str, call: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    wall, processor = time.perf_counter(), time.process_time()
    found = call()
    times = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
    row: dict[str, Any] = {"what": what} | times
    said = ""
    if isinstance(found, ProgramFit):
        row |= {"iterations": found.iterations, "gap": found.gap, "rank": found.rank, "objective": found.primal}
        said = f", {found.iterations} iterations, gap {found.gap:.1e}, rank {found.rank}, objective {found.primal:.8g}"
    print(f"{what}: {times['wall']:.2f} s, processor {times['processor']:.2f} s{said}", flush=True)
    return found, row


def large() -> list[dict[str, Any]]:
    x, y, radius, bound = planted(2000, 128, 256, 16)
    seen, rows = y.clamp_min(0), []
    for name, part, share in (("as the truth", 1.0, 1.0), ("both tight", 0.7, 0.5)):
        limits = {"radius": part * radius, "bound": share * bound}
        rows.append(timed(f"squares, {name}", lambda limits=limits: nuclear_max_norm(x, y, **limits))[1])
        rows.append(timed(f"Tobit, {name}", lambda limits=limits: nuclear_max_norm(x, seen, sigma=SIGMA, **limits))[1])
    for name, part in (("as the truth", 1.0), ("tight", 0.7)):
        rows.append(
            timed(
                f"Tobit by FISTA, no bound, {name}",
                lambda part=part: nuclear_tobit(x, seen, radius=part * radius, sigma=SIGMA),
            )[1]
        )
    return rows


def small() -> list[dict[str, Any]]:
    import cvxpy

    x, y, radius, bound = planted(40, 6, 8, 2)
    limits = {"radius": 0.7 * radius, "bound": 0.5 * bound}
    rows = [
        timed(f"small, ADMM, gap {gap:g}", lambda gap=gap: nuclear_max_norm(x, y, tolerance=gap, **limits))[1]
        for gap in (1e-4, 1e-8)
    ]
    z = cvxpy.Variable((6, 8))
    outputs = x.numpy() @ z
    problem = cvxpy.Problem(
        cvxpy.Minimize(0.5 * cvxpy.sum_squares(y.numpy() - outputs)),
        [cvxpy.normNuc(outputs) <= limits["radius"], cvxpy.abs(outputs) <= limits["bound"]],
    )
    for solver, options in ((cvxpy.CLARABEL, {}), (cvxpy.SCS, {"eps": 1e-6})):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "may be inaccurate": the objective is compared below
            _, row = timed(f"small, cvxpy with {solver}", lambda s=solver, o=options: problem.solve(s, **o))
        exact = rows[1]["objective"]
        row |= {"objective": float(problem.value), "status": problem.status}
        print(
            f"  objective {problem.value:.8g} ({problem.status}), relative difference {problem.value / exact - 1:.1e}"
        )
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.linalg.svd(torch.randn(200, 100))  # the library's own start is not what is timed
    rows = large() + small()
    if given.out:
        given.out.write_text(json.dumps({"threads": given.threads, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
