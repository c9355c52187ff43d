"""Speed and accuracy of data-driven factoring: output projection against whitening, on a GPT-2-small-shaped network.

    python benchmarks/factor_speed.py --blocks 12 --threads 2 --out factor_speed.json

Every Linear layer of `--blocks` transformer blocks of width 768 gets random weights and given statistics. Three ways
of factoring it at the rank that halves its parameters are timed one after the other on the same layer:

plain     Cholesky of the input Gram (damped and tried again when singular), SVD of W L, triangular solve
inputs    rankfold, given the same input Gram
smaller   rankfold, given the second moment of the layer's smaller side, which is what it collects

Errors ‖X(W − Z)ᵀ‖ are evaluated in float64 from the rows X themselves, at four ranks of every layer. "worst" is the
largest ratio of our error to the plain one, of errors above 1024 machine epsilons of ‖XWᵀ‖ (below is rounding);
"excess" is the largest (ours − plain)/‖XWᵀ‖ with nothing left out. Peak memory is the growth of the resident set of a
fresh process.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from scipy.fft import dct
from torch import Tensor

from rankfold.linalg import gram, project
from rankfold.run.processes.process import ends_with

SHAPES = {"attn.qkv": (2304, 768), "attn.out": (768, 768), "mlp.up": (3072, 768), "mlp.down": (768, 3072)}
LARGEST = ("mlp.up", "mlp.down")
WAYS = ("plain", "inputs", "smaller")
DTYPES = {"float32": torch.float32, "float64": torch.float64}
# factors of one layer at any rank
Factoring = Callable[[int], tuple[Tensor, Tensor]]


def plain(weight: Tensor, inputs: Tensor) -> Factoring:
    """Whitening as usually written: W ≈ (U_r S_r)(V_rᵀ L⁻¹), inputs = L Lᵀ."""
    root, failed = torch.linalg.cholesky_ex(inputs)
    damping = 10 * torch.finfo(inputs.dtype).eps * inputs.diagonal().mean()
    while failed:
        root, failed = torch.linalg.cholesky_ex(inputs + damping * torch.eye(len(inputs), dtype=inputs.dtype))
        damping = 10 * damping
    u, s, vh = torch.linalg.svd(weight @ root, full_matrices=False)

    def factors(rank: int) -> tuple[Tensor, Tensor]:
        right = torch.linalg.solve_triangular(root, vh[:rank], upper=False, left=False)
        return u[:, :rank] * s[:rank], right

    return factors


def factoring(way: str, weight: Tensor, inputs: Tensor, outputs: Tensor) -> Factoring:
    if way == "plain":
        return plain(weight, inputs)
    if way == "smaller" and weight.shape[0] <= weight.shape[1]:
        return project(weight, outputs=outputs).factors
    return project(weight, inputs=inputs).factors


def data(case: str, n: int, generator: torch.Generator) -> Tensor:
    """Rows X (float64) whose Gram is the statistic of a layer with n inputs.

    decaying: singular values over a range of 1e3, as activations have them (the Gram: 1e6); ill: 1e6 (1e12);
    deficient: rank n/2.
    """
    rows = n // 2 if case == "deficient" else n + n // 2
    scale = torch.logspace(0, -6 if case == "ill" else -3, n, dtype=torch.float64)
    x = torch.randn(rows, n, dtype=torch.float64, generator=generator) * scale
    for _ in range(2):  # an orthogonal mixing of all coordinates: a graded Gram would be easier
        signs = torch.randint(0, 2, (n,), generator=generator) * 2 - 1
        x = torch.from_numpy(dct(x.numpy(), axis=1, norm="ortho")) * signs
    return x


def summary(seconds: dict[str, dict], errors: dict[str, list[dict]], epsilon: float) -> dict[str, dict[str, float]]:
    """By layer, and for all: seconds of each way, how many times faster, how much worse at worst."""
    # what rounding alone leaves of an exact factorisation says nothing about the method
    floor = 1024 * epsilon
    table = {}
    for name in (*SHAPES, "all"):
        every = list(SHAPES) if name == "all" else [name]
        row = {f"{way} s": sum(seconds[layer][way] for layer in every) for way in WAYS}
        found = [error for layer in every for error in errors[layer]]
        told = [error for error in found if error["plain"] > floor * error["norm"]]
        row |= {f"× {way}": row["plain s"] / row[f"{way} s"] for way in WAYS[1:]}
        row |= {f"worst {way}": max(error[way] / error["plain"] for error in told) for way in WAYS[1:]}
        row["excess"] = max((error[way] - error["plain"]) / error["norm"] for error in found for way in WAYS[1:])
        table[name] = row
    return table


def measure(
    case: str, blocks: int, dtype: torch.dtype, seed: int, clock: Callable[[], float]
) -> dict[str, dict[str, float]]:
    generator = torch.Generator().manual_seed(seed)
    seconds = {name: dict.fromkeys(WAYS, 0.0) for name in SHAPES}
    errors: dict[str, list[dict]] = {name: [] for name in SHAPES}
    bases = {n: data(case, n, generator) for n in sorted({n for _, n in SHAPES.values()})}
    for block in range(-1, blocks):  # block −1 warms up and counts for nothing
        for name, (m, n) in SHAPES.items():
            x = bases[n] * (0.5 + torch.rand(n, dtype=torch.float64, generator=generator))
            exact = torch.randn(m, n, dtype=torch.float64, generator=generator) / n**0.5
            weight = exact.to(dtype)
            inputs, y = gram(x), x @ weight.double().mT
            outputs = (y.mT @ y).to(dtype) if m <= n else torch.empty(0)
            inputs = inputs.to(dtype)
            rank, ways = m * n // (2 * (m + n)), {}
            for way in WAYS:
                start = clock()
                ways[way] = factoring(way, weight, inputs, outputs)
                ways[way](rank)
                if block >= 0:
                    seconds[name][way] += clock() - start
            if block >= 0:
                k = min(m, n)
                for r in sorted({k // 8, rank, k // 2, 7 * k // 8}):
                    found = {
                        way: (y - (x @ right.double().mT) @ left.double().mT).norm().item()
                        for way in WAYS
                        for left, right in [ways[way](r)]
                    }
                    errors[name].append({"block": block, "rank": r, "norm": y.norm().item(), **found})
    return summary(seconds, errors, torch.finfo(dtype).eps)


def memory(way: str, dtype: torch.dtype, m: int, n: int) -> float:
    """MiB by which factoring one layer raises the peak of the resident set. For a fresh process, on Linux."""

    def peak() -> float:
        status = Path("/proc/self/status").read_text()
        return float(status.split("VmHWM:")[1].split()[0]) / 1024

    warm = torch.eye(64, dtype=dtype)
    factoring(way, warm, warm, warm)(4)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(m, n, dtype=dtype, generator=generator)
    thin = torch.randn(n, 16, dtype=dtype, generator=generator)
    inputs = torch.eye(n, dtype=dtype).addmm_(thin, thin.mT)
    outputs = torch.eye(m, dtype=dtype) if m <= n else torch.empty(0)
    before = peak()
    factoring(way, weight, inputs, outputs)(m * n // (2 * (m + n)))
    return peak() - before


def memories(threads: int) -> dict[str, dict[str, dict[str, float]]]:
    def one(way: str, dtype: str, name: str) -> float:
        command = [
            sys.executable,
            __file__,
            "--memory-of",
            way,
            dtype,
            name,
            str(os.getpid()),
            "--threads",
            str(threads),
        ]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    return {name: {dtype: {way: one(way, dtype, name) for way in WAYS} for dtype in DTYPES} for name in LARGEST}


def style(head: str) -> str:
    return {"s": ".3f", "×": ".2f", "worst": ".9f", "excess": ".1e"}[head.split()[0] if head[0] in "×we" else "s"]


def show(result: dict) -> None:
    print(f"\n{result['case']}, {result['dtype']}, {result['blocks']} blocks")
    for name, row in result["layers"].items():
        if name == next(iter(SHAPES)):
            print(f"{'layer':10}{'m × n':>12}" + "".join(f"{head:>15}" for head in row))
        shape = " × ".join(map(str, SHAPES.get(name, ())))
        print(f"{name:10}{shape:>12}" + "".join(f"{value:15{style(head)}}" for head, value in row.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument(
        "--hard-blocks", type=int, default=1, help="blocks for the ill-conditioned and rank-deficient cases"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--cpu-time", action="store_true", help="count processor seconds: for one thread on a busy machine"
    )
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--memory-of", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        way, dtype, name, parent = options.memory_of
        ends_with(int(parent))  # a run that is ended from outside leaves nothing behind
        print(memory(way, DTYPES[dtype], *SHAPES[name]))
        return
    clock = time.process_time if options.cpu_time else time.perf_counter
    results = []
    for case, blocks in [
        ("decaying", options.blocks),
        ("ill", options.hard_blocks),
        ("deficient", options.hard_blocks),
    ]:
        for dtype in options.dtypes:
            if blocks:
                layers = measure(case, blocks, DTYPES[dtype], options.seed, clock)
                results.append({"case": case, "dtype": dtype, "blocks": blocks, "layers": layers})
                show(results[-1])
    peaks = memories(options.threads)
    print("\npeak extra memory of one layer, MiB")
    for name, dtypes in peaks.items():
        for dtype, ways in dtypes.items():
            print(f"{name:10}{dtype:10}" + "".join(f"{way:>10} {ways[way]:7.1f}" for way in WAYS))
    if options.out:
        options.out.write_text(
            json.dumps(
                {"threads": options.threads, "clock": clock.__name__, "results": results, "memory_mib": peaks}, indent=1
            )
        )


if __name__ == "__main__":
    main()
