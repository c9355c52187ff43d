"""What a training step costs with N factors in place of every weight, against the ordinary step (N = 1).

Forward, backward and optimizer step, in turns so that a noisy machine treats all alike; medians and ratios. Wall
time by default, `--cpu-time` for the processor time of this process, which other jobs on the machine disturb less.

    python benchmarks/lorita_overhead.py
    python benchmarks/lorita_overhead.py --steps 5 --only resnet20
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from rankfold import overparametrize_
from rankfold.zoo import resolve

# goals of issue 3: ratio of N = 3 to N = 1
CASES = {"resnet20": (128, "sgd", 1.25), "vit-l4-h8": (64, "adam", 1.35)}
WAYS: dict[str, dict] = {
    "N=1": {},
    "N=2": {"depth": 2},
    "N=3": {"depth": 3},
    "N=3, paper shapes": {"depth": 3, "inner": "paper"},
}


def step_of(name: str, batch: int, optimizer: str, way: dict) -> Callable[[], None]:
    """One training step of the built-in model, its weights products as `way` says."""
    model: nn.Module = resolve(name, generator=torch.Generator().manual_seed(0)).model
    if way:
        overparametrize_(model, **way)
    model.train()
    x = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    y = torch.randint(0, 10, (batch,), generator=torch.Generator().manual_seed(2))
    if optimizer == "sgd":
        steps: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    else:
        steps = torch.optim.Adam(model.parameters(), lr=1e-5, weight_decay=1e-4)

    def step() -> None:
        steps.zero_grad(set_to_none=True)
        F.cross_entropy(model(x), y).backward()
        steps.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--cpu-time", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    for name, (batch, optimizer, goal) in CASES.items():
        if arguments.only not in (None, name):
            continue
        steps = {label: step_of(name, batch, optimizer, way) for label, way in WAYS.items()}
        for step in steps.values():
            step()
        times: dict[str, list[float]] = {label: [] for label in steps}
        for _ in range(arguments.steps):
            for label, step in steps.items():
                start = clock()
                step()
                times[label].append(clock() - start)
        what = "processor" if arguments.cpu_time else "wall"
        print(f"{name}, batch {batch}, {optimizer}, {arguments.threads} thread(s), {what} time; goal for N=3: {goal}×")
        base = times["N=1"]
        for label, values in times.items():
            ratio = statistics.median(mine / other for mine, other in zip(values, base, strict=True))
            print(f"  {label:18} {1e3 * statistics.median(values):8.1f} ms   {ratio:.2f}×")


if __name__ == "__main__":
    main()
