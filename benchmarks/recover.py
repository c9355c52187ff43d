"""Matrix completion against the authors' code and others, in one run: `python benchmarks/recover.py [part …]`.

Parts: `completion` (d = 100, r = 10, r̂ = 20, p = 0.3), `ranks` (the bound on the rank from r to 4r), `sizes` (time and
memory against observed entries, and a plot of them), `million`. Processor time is printed beside wall time: it means
more on a shared machine. Threads: OMP_NUM_THREADS, by default one. The authors' code (soominkwon/comp-deep-nets, JAX)
is timed too where AUTHORS names its folder and JAX can be imported by the interpreter that AUTHORS_PYTHON names: it
runs as it is, compiled beforehand, on the same matrix and mask.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from matplotlib.figure import Figure

from rankfold.papers.writing import look, panels, svg
from rankfold.recover import AlternatingMinimization, CompressedDeepLinear, LowRank, NuclearNorm, ScaledGradientDescent
from rankfold.run.disk.files import write_atomically

THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))
PLOT = Path(__file__).parents[1] / "docs" / "img" / "recover-sizes.svg"
_AUTHORS = """
import sys, time
sys.path.insert(0, {folder!r})
import numpy as np, jax, jax.numpy as jnp
jax.config.update("jax_enable_x64", True)
from loss import create_loss
from network import compute_end_to_end, kwon_compress_network
from solver import train
data = np.load({problem!r})
target, mask = jnp.asarray(data["target"]), jnp.asarray(data["mask"])
comp, _ = kwon_compress_network(target=target * mask / mask.mean(), grad_rank=20, init_scale=1e-2, depth=3)
start = [comp[1] @ comp[0], comp[2], comp[4] @ comp[3]]
losses = {{
    "train": create_loss(target, mask=mask),
    "test": lambda w: jnp.linalg.norm(w - target) / jnp.linalg.norm(target),
}}
def run(loops):
    return train(start, compute_end_to_end, losses, loops, 10.0, dlr=5.0, tol=1e-21, n_inner_loops=50)
run(2)
before = time.process_time()
found = run(400)
spent, total = time.process_time() - before, float(found["time"][-1])
error, loss, seconds = (np.asarray(found[key]) for key in ("test_loss", "train_loss", "time"))
def told(what, reached):
    at = int(np.argmax(reached)) if reached.any() else None
    text = "never"
    if at is not None:
        text = f"{{seconds[at]:.2f}} s ({{spent * at / (len(error) - 1):.2f}} s of processor), {{50 * at}} its"
    print(f"  authors' code: {{what}}: {{text}}")
told("its own tolerance, loss 1e-10", loss < 1e-10)
told("relative error 1e-4", error < 1e-4)
told("relative error 1e-5", error < 1e-5)
told("relative error 1e-10", error < 1e-10)
print(f"  authors' code: least error {{error.min():.1e}}, 20,000 its, {{total:.2f}} s ({{spent:.2f}} s of processor)")
"""


def problem(d1: int, d2: int, r: int, p: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(M, mask) as the authors draw them: r singular values spread over the upper half of a Gaussian matrix's."""
    rng = np.random.default_rng(seed)
    u, s, vt = np.linalg.svd(rng.standard_normal((d1, d2)), full_matrices=False)
    which = np.arange(r) * (min(d1, d2) // (2 * r))
    mask = np.zeros(d1 * d2)
    mask[rng.choice(d1 * d2, int(p * d1 * d2), replace=False)] = 1
    return u[:, which] * s[which] @ vt[which], mask.reshape(d1, d2)


def timed(estimator: Any, x: Any, repeats: int = 3) -> tuple[float, float]:
    """The least (wall, processor) seconds of ``repeats`` fits."""
    found = []
    for _ in range(repeats):
        wall, processor = time.perf_counter(), time.process_time()
        estimator.fit(x)
        found.append((time.perf_counter() - wall, time.process_time() - processor))
    return min(one[0] for one in found), min(one[1] for one in found)


def line(name: str, estimator: Any, x: Any, matrix: np.ndarray, repeats: int = 3) -> None:
    with np.errstate(all="ignore"):
        wall, processor = timed(estimator, x, repeats)
        error = np.linalg.norm(estimator.reconstruct() - matrix) / np.linalg.norm(matrix)
    kept = "" if estimator.converged_ else "  not converged"
    print(
        f"  {name}: {1e3 * wall:.0f} ms ({1e3 * processor:.0f} ms of processor), rank {estimator.rank_}, "
        f"error {error:.1e}, {estimator.n_iter_} its{kept}",
        flush=True,
    )


def completion() -> None:
    print("completion, d = 100, r = 10, p = 0.3, bound 20")
    matrix, mask = problem(100, 100, 10, 0.3)
    x = np.where(mask > 0, matrix, np.nan)
    authors(matrix, mask)
    line("compressed, paper's descent (η = 10, α = 5)", _paper(20_000), x, matrix, 1)
    line("compressed, ours", CompressedDeepLinear(20), x, matrix)
    line("low-rank (default)", LowRank(20, tol=4e-11), x, matrix, 10)
    line("scaled gradient descent, rank 10 known", ScaledGradientDescent(10), x, matrix)
    line("alternating minimisation, rank 10 known", AlternatingMinimization(10), x, matrix)
    line("nuclear norm", NuclearNorm(), x, matrix, 1)
    authors(matrix, mask)
    line("low-rank (default), again", LowRank(20, tol=4e-11), x, matrix, 10)


def _paper(steps: int) -> CompressedDeepLinear:
    return CompressedDeepLinear(20, rate=10.0, alpha=5.0, momentum=0.0, prune=0.0, max_iter=steps, every=50, tol=1e-12)


def authors(matrix: np.ndarray, mask: np.ndarray) -> None:
    folder, python = os.environ.get("AUTHORS"), os.environ.get("AUTHORS_PYTHON", sys.executable)
    if folder is None:
        print("  authors' code: not timed, AUTHORS does not name its folder")
        return
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "problem.npz"
        np.savez(file, target=matrix, mask=mask)
        script = _AUTHORS.format(folder=folder, problem=str(file))
        one_thread = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "OMP_NUM_THREADS": "1"}
        done = subprocess.run([python, "-c", script], env=os.environ | one_thread, capture_output=True, text=True)
        print(done.stdout or done.stderr[-800:], end="", flush=True)


def ranks() -> None:
    print("the bound on the rank, d = 100, r = 10, p = 0.3, two matrices each")
    for bound in (10, 15, 20, 30, 40):
        for name, make in {
            "low-rank": lambda: LowRank(bound),  # noqa: B023
            "scaled gd": lambda: ScaledGradientDescent(bound, max_iter=2000),  # noqa: B023
            "alternating": lambda: AlternatingMinimization(bound, max_iter=20),  # noqa: B023
            "compressed": lambda: CompressedDeepLinear(bound, max_iter=6000),  # noqa: B023
        }.items():
            errors, seconds = [], []
            for seed in range(2):
                matrix, mask = problem(100, 100, 10, 0.3, seed)
                with np.errstate(all="ignore"):
                    found = make()
                    seconds.append(timed(found, np.where(mask > 0, matrix, np.nan), 1)[1])
                    error = np.linalg.norm(found.reconstruct() - matrix) / np.linalg.norm(matrix)
                errors.append(error)
            print(
                f"  r̂ = {bound}, {name}: errors {min(errors):.0e} … {max(errors):.0e}, "
                f"{1e3 * np.median(seconds):.0f} ms of processor",
                flush=True,
            )


def planted(m: int, n: int, r: int, over: float, noise: float = 0.0) -> tuple[Any, np.ndarray, np.ndarray]:
    """(entries, left, right): a matrix of nearly equal singular values, ``over`` entries for each degree of freedom."""
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((m, r)), rng.standard_normal((r, n))
    cells = np.unique(rng.integers(0, m * n, int(over * r * (m + n - r))))
    rows, columns = cells // n, cells % n
    values = np.einsum("ij,ij->i", left[rows], right.T[columns]) + noise * rng.standard_normal(len(rows))
    return scipy.sparse.csr_array((values, (rows, columns)), shape=(m, n)), left, right


@dataclass(frozen=True)
class Size:
    """One completion, in a process of its own: seconds, and the most memory (MB) that the process had."""

    m: int
    n: int
    entries: int
    wall: float
    processor: float
    peak: float
    more: float  # than before the fit
    rank: int
    error: float
    best: float  # of least squares, were one factor known

    def __str__(self) -> str:
        best = f" (noise allows {self.best:.3f})" if self.best else ""
        return (
            f"  {self.m:,} × {self.n:,}, {self.entries:,} entries: {self.wall:.1f} s ({self.processor:.1f} s of "
            f"processor, {1e6 * self.processor / self.entries:.1f} µs each), rank {self.rank}, error {self.error:.2g}"
            f"{best}, peak {self.peak:.0f} MB ({self.more:.0f} more than before the fit)"
        )


def one_size(m: int, n: int, over: float, noise: float = 0.0, bound: int | None = 20) -> Size:
    """Rank 10. Entries have variance 10 and ``noise`` a deviation of its own; the error is relative, on other
    entries."""
    with get_context("spawn").Pool(1) as pool:
        found = pool.apply(_one_size, (m, n, over, noise, bound))
    print(found, flush=True)
    return found


def memory(what: str) -> float:
    """MB of this process, as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(one.split()[1]) / 1024 for one in lines if one.startswith(what))


def _one_size(m: int, n: int, over: float, noise: float, bound: int | None) -> Size:
    torch.set_num_threads(THREADS)
    x, left, right = planted(m, n, 10, over, noise)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak begins anew
    before = memory("VmRSS")
    found = LowRank(bound)
    wall, processor = timed(found, x, 1)
    peak = memory("VmHWM")
    rng = np.random.default_rng(1)
    rows, columns = rng.integers(0, m, 20_000), rng.integers(0, n, 20_000)
    truth = np.einsum("ij,ij->i", left[rows], right.T[columns])
    error = np.linalg.norm(found.at(rows, columns) - truth) / np.linalg.norm(truth)
    best = noise * (10 * (m + n - 10) / x.nnz) ** 0.5 / 10**0.5
    return Size(m, n, x.nnz, wall, processor, peak, peak - before, found.rank_, float(error), best)


def sizes() -> None:
    print("rank 10 of rectangular matrices, bound 20; four entries for each degree of freedom")
    shapes = ((500, 400), (1000, 800), (2000, 1600), (5000, 4000), (10_000, 8000), (14_000, 11_000), (28_000, 22_000))
    grown = [one_size(m, n, 4.05) for m, n in shapes]
    print("two shapes, more and more entries")
    narrow = [one_size(1000, 800, over) for over in (2, 4, 8, 16)]
    wide = [one_size(5000, 4000, over) for over in (2, 4, 8, 16)]
    noisy = [one_size(m, n, 6.7, 1.0) for m, n in ((1000, 500), (2000, 1000), (5000, 2500), (10_000, 5000))]
    series = {"four a degree of freedom": grown, "1,000 × 800": narrow, "5,000 × 4,000": wide, "with noise": noisy}
    for what in ("processor", "more"):
        exponent = np.polyfit(*(np.log([getattr(one, key) for one in grown[1:]]) for key in ("entries", what)), 1)[0]
        print(f"  {what} grows as entries to the power {exponent:.2f} (four a degree of freedom, from 1,000 × 800 on)")
    write_atomically(PLOT, svg(_drawn(series)))
    print(f"wrote {PLOT}")


def _drawn(series: dict[str, list[Size]]) -> Figure:
    """Time and memory against observed entries; a slope of one beside them."""
    with panels(1, 2, size=(3.6, 2.8)) as (figure, axes):
        for number, (name, found) in enumerate(series.items()):
            x = [one.entries for one in found]
            style: Any = look(number) | {"label": name}
            axes[0, 0].loglog(x, [one.processor for one in found], **style)
            axes[0, 1].loglog(x, [max(one.more, 1.0) for one in found], **style)
        first = series["four a degree of freedom"]
        for axis, value in ((axes[0, 0], first[-1].processor), (axes[0, 1], first[-1].more)):
            ends = np.array([first[0].entries, first[-1].entries])
            axis.loglog(ends, value * ends / ends[-1], color="#888888", linestyle=":", label="proportional")
            axis.set_xlabel("observed entries")
        axes[0, 0].set_title("seconds of processor", fontsize=9)
        axes[0, 1].set_title("memory of the fit, MB", fontsize=9)
        axes[0, 0].legend(fontsize=7)
    return figure


def million() -> None:
    print("a million observed entries, rank 10")
    one_size(14_000, 11_000, 4.05)
    print(
        "the same with noise, no bound given (10,000 × 5,000; entries have a deviation of 3.2, noise of 1, then of 3)"
    )
    one_size(10_000, 5000, 6.75, 1.0, None)
    one_size(10_000, 5000, 6.75, 3.0, None)


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    for part in sys.argv[1:] or ("completion", "ranks", "sizes", "million"):
        {"completion": completion, "ranks": ranks, "sizes": sizes, "million": million}[part]()
