"""What a step of training at low rank costs: time on LeNet5 beside the same factors trained plainly, and bytes.

    python benchmarks/dlrt_step.py step
    python benchmarks/dlrt_step.py memory

Its accuracy is `rankfold reproduce dlrt-lenet5`.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import statistics
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import rankfold as rf
from rankfold.papers.dlrt.grounds import lenet5


def drawn() -> nn.Module:
    torch.manual_seed(0)
    return lenet5()


def step(rounds: int = 100) -> dict[str, float]:
    """Processor milliseconds of a training step: dense, the same factored network trained plainly, and windows of 20;
    in turns. Medians; of windows one for each place in the window, and their mean."""
    torch.set_num_threads(1)
    x, y = torch.randn(128, 1, 28, 28), torch.randint(0, 10, (128,))
    low = rf.dlrt_(drawn(), 12)
    factored = rf.fold_(copy.deepcopy(low), keep=True)
    ways = {
        "dense": (drawn(), None), "factored": (factored, None),
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
    parser.add_argument("what", choices=("step", "memory"))
    if parser.parse_args().what == "step":
        print(json.dumps(step(), indent=1))
    else:
        print("\n".join(json.dumps(row) for row in memory()))


if __name__ == "__main__":
    main()
