"""Matrix completion against the authors' code and others, in one run, one thread: `python benchmarks/recover.py [part
…]`.

Parts: `completion` (d = 100, r = 10, r̂ = 20, p = 0.3), `ranks` (the bound on the rank from r to 4r), `sizes` (time and
memory against observed entries), `million`. Processor time is printed beside wall time: it means more on a shared
machine. The authors' code (soominkwon/comp-deep-nets, JAX) is timed too where AUTHORS names its folder and JAX can be
imported by the interpreter that AUTHORS_PYTHON names: it runs as it is, compiled beforehand, on the same matrix and
mask.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch

from rankfold.recover import AlternatingMinimization, CompressedDeepLinear, LowRank, NuclearNorm, ScaledGradientDescent

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


def planted(m: int, n: int, r: int, over: float, seed: int = 0) -> tuple[Any, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    left, right = rng.standard_normal((m, r)), rng.standard_normal((r, n))
    cells = np.unique(rng.integers(0, m * n, int(over * r * (m + n - r))))
    rows, columns = cells // n, cells % n
    values = np.einsum("ij,ij->i", left[rows], right.T[columns])
    return scipy.sparse.csr_array((values, (rows, columns)), shape=(m, n)), left, right


def sizes() -> None:
    print("rank 10 of rectangular matrices, four entries for each degree of freedom, bound 20")
    for m, n in ((500, 400), (1000, 800), (2000, 1600), (5000, 4000), (10_000, 8000)):
        one_size(m, n, 4.0)


def one_size(m: int, n: int, over: float) -> None:
    x, left, right = planted(m, n, 10, over)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = LowRank(20)
    wall, processor = timed(found, x, 1)
    rng = np.random.default_rng(1)
    rows, columns = rng.integers(0, m, 20_000), rng.integers(0, n, 20_000)
    truth = np.einsum("ij,ij->i", left[rows], right.T[columns])
    error = np.linalg.norm(found.at(rows, columns) - truth) / np.linalg.norm(truth)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"  {m} × {n}, {x.nnz:,} entries: {wall:.1f} s ({processor:.1f} s of processor), "
        f"{1e6 * processor / x.nnz:.0f} µs each, rank {found.rank_}, error {error:.0e}, "
        f"peak {peak // 1024} MB ({(peak - before) // 1024} more)",
        flush=True,
    )


def million() -> None:
    print("a million observed entries")
    one_size(14_000, 11_000, 4.05)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for part in sys.argv[1:] or ("completion", "ranks", "sizes", "million"):
        {"completion": completion, "ranks": ranks, "sizes": sizes, "million": million}[part]()
