"""LeNet5 on MNIST, trained at low rank from the first step within a budget: accuracy against true parameters.

LeNet5 as in the DLRT paper: 20 and 50 filters of 5 × 5, 500 hidden units, 430,500 weights without biases; the last
layer (5,000 of them) stays dense. Removed is counted over weights, r(m + n) for a layer of rank r. The epoch is
selected on 10,000 validation images that training has not seen; the test split is looked at once, for that epoch.

    python benchmarks/dlrt_lenet5.py                                   # five seeds at −92.9 % and −95 %
    python benchmarks/dlrt_lenet5.py --seeds 0 --removed 0.929 --epochs 1
    python benchmarks/dlrt_lenet5.py --tolerance 0.15
    python benchmarks/dlrt_lenet5.py step                              # a step's time beside the dense network's
    python benchmarks/dlrt_lenet5.py memory                            # bytes in training beside the dense network's

Published (DLRT, five seeds, counted truly): 98.12 ± .34 % at −92.9 %, 98.14 ± .33 % at −88.5 %.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import rankfold as rf
from rankfold import zoo
from rankfold.layers import TuckerConv


def lenet5(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(),
        nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
    )  # fmt: skip


def weights(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.dim() > 1)


def trained(
    seed: int,
    how: dict[str, Any],
    epochs: int,
    asked: float | None,
    convolutions: Any = "matrix",
    rank: int | None = None,
) -> dict[str, object]:
    """``how``: settings of ``Dlrt``. ``asked``: the share of weights to remove, where a budget says how many."""
    data, model = zoo.load_data("mnist"), lenet5(seed)
    dense = weights(model)
    if asked is not None:
        biases = sum(p.numel() for p in model.parameters() if p.dim() == 1)
        how = how | {"budget": ((1 - asked) * dense + biases) / (dense + biases)}
    rf.dlrt_(model, rank, convolutions=convolutions)
    recipe = rf.Recipe(
        epochs=epochs, batch_size=128, learning_rate=0.05, nesterov=False, weight_decay=0.0, schedule="cosine",
        seed=seed,
    )  # fmt: skip
    began = time.process_time()
    history = rf.fit(model, data.train, data.validation, recipe, optimizer=functools.partial(rf.Dlrt, **how))
    small = rf.fold_(model, keep=True)
    return {
        "seed": seed, "asked": asked, "how": how, "start": rank, "convolutions": convolutions,
        "removed": 1 - weights(small) / dense,
        "best_epoch": history.best_epoch, "validation": rf.evaluate(small, data.validation).accuracy,
        "test": rf.evaluate(small, data.test).accuracy,
        "ranks": {name: m.rank for name, m in small.named_modules() if isinstance(m, rf.LowRankLinear)}
        | {name: m.down.out_channels for name, m in small.named_modules() if isinstance(m, rf.LowRankConv)}
        | {name: tuple(m.core.weight.shape[:2]) for name, m in small.named_modules() if isinstance(m, TuckerConv)},
        "cpu_seconds": time.process_time() - began,
    }  # fmt: skip


def step(rounds: int = 100) -> dict[str, float]:
    """Processor milliseconds of a training step: dense, the same factored network trained plainly, and windows of 20;
    in turns. Medians; of windows one for each place in the window, and their mean."""
    torch.set_num_threads(1)
    x, y = torch.randn(128, 1, 28, 28), torch.randint(0, 10, (128,))
    low = rf.dlrt_(lenet5(0), 12)
    factored = rf.fold_(copy.deepcopy(low), keep=True)
    ways = {
        "dense": (lenet5(0), None), "factored": (factored, None),
        "windows of 20": (low, rf.Dlrt(low, torch.optim.SGD, lr=1e-3, most=12, tolerance=0.0)),
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in ways}
    made = {name: how or torch.optim.SGD(model.parameters(), lr=1e-3) for name, (model, how) in ways.items()}
    for turn in range(rounds + 20):
        for name, (model, _) in ways.items():
            began = time.process_time()
            made[name].zero_grad()
            F.cross_entropy(model(x), y).backward()
            made[name].step()
            if turn >= 20:
                times[name].append(1e3 * (time.process_time() - began))
    found = {name: statistics.median(values) for name, values in times.items()}
    places = [times["windows of 20"][place::20] for place in range(20)]
    found["windows of 20"] = statistics.fmean(statistics.median(values) for values in places)
    return found


def held(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of parameters, buffers, gradients, the optimizer's state, and what the bases' steps are taken from."""
    state = [x for moments in optimizer.state.values() for x in moments.values() if torch.is_tensor(x)]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    probes = [probe for module in model.modules() for probe in getattr(module, "_probes", None) or ()]
    thin = [probe.grad for probe in probes if probe.grad is not None]
    return sum(x.nbytes for x in [*model.parameters(), *model.buffers(), *gradients, *state, *probes, *thin])


def memory() -> list[dict[str, object]]:
    """784-512-512-512-10, batches of 128: the most bytes over 45 steps in windows of 20, as a share of the dense
    network's, and parameters of the folded network as a share of the dense one's."""

    def network() -> nn.Module:
        torch.manual_seed(0)
        sizes = (784, 512, 512, 512, 10)
        parts = [part for m, n in itertools.pairwise(sizes) for part in (nn.Linear(m, n), nn.ReLU())]
        return nn.Sequential(*parts[:-1])

    x, y, rows = torch.randn(128, 784), torch.randint(0, 10, (128,)), []
    for kind, settings in ((torch.optim.Adam, {}), (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9})):
        dense = network()
        optimizer: Any = kind(dense.parameters(), **settings)
        F.cross_entropy(dense(x), y).backward()
        optimizer.step()
        whole = held(dense, optimizer)
        for rank in (16, 32, 64, 128):
            model = rf.dlrt_(network(), rank)
            optimizer, most = rf.Dlrt(model, kind, window=20, tolerance=0.0, most=rank, **settings), 0
            for _ in range(45):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                most = max(most, held(model, optimizer))
                optimizer.step()
                most = max(most, held(model, optimizer))
            optimizer.settle()
            del optimizer
            share = sum(p.numel() for p in rf.fold_(model, keep=True).parameters())
            share /= sum(p.numel() for p in dense.parameters())
            rows.append({"optimizer": kind.__name__, "rank": rank, "bytes": most / whole, "parameters": share})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("train", "step", "memory"), default="train")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--removed", default="0.929,0.95", help="shares of the weights")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--tolerance", type=float, help="cut by this, in place of a budget")
    parser.add_argument("--reach", type=int, default=40, help="windows over which the budget is reached")
    parser.add_argument("--grow", type=float, default=1.0, help="share of the rank by which bases grow in a window")
    parser.add_argument("--rank", type=int, help="at the start; half of full rank by default")
    parser.add_argument("--convolutions", choices=("matrix", "tucker"), default="matrix")
    parser.add_argument("--factors", action="store_true", help="train on in factors once the budget holds")
    parser.add_argument("--out", type=Path, help="a JSON file, written after each training")
    given = parser.parse_args()
    if given.what == "step":
        print(json.dumps(step(), indent=1))
        return
    if given.what == "memory":
        print("\n".join(json.dumps(row) for row in memory()))
        return
    rows: list[dict[str, object]] = []
    asked: list[float | None] = [None] if given.tolerance is not None else list(map(float, given.removed.split(",")))
    how: dict[str, Any] = {"grow": given.grow, "factors": given.factors}
    how |= {"reach": given.reach} if given.tolerance is None else {"tolerance": given.tolerance}
    for removed in asked:
        for seed in map(int, given.seeds.split(",")):
            rows.append(trained(seed, how, given.epochs, removed, given.convolutions, given.rank))
            print(json.dumps(rows[-1]), flush=True)
            if given.out is not None:
                given.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        found = [(float(str(row["test"])), float(str(row["removed"]))) for row in rows if row["asked"] == removed]
        tests, sizes = [100 * test for test, _ in found], [100 * size for _, size in found]
        spread = statistics.stdev(tests) if len(tests) > 1 else 0.0
        print(f"−{statistics.fmean(sizes):.1f} %: {statistics.fmean(tests):.2f} ± {spread:.2f} % on test", flush=True)


if __name__ == "__main__":
    main()
