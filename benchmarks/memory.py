"""A wide network whose Gram matrices together exceed a memory limit, compressed within it.

    python benchmarks/memory.py [--width 2048] [--inner 256] [--layers 62] [--memory 2GB] [--samples 512]

Random weights and inputs; layers of ``width`` inputs and ``inner`` outputs with those that widen again between them.
Prints what is needed before the work starts, then the resident memory above that of the network and its copies, which
one process measures while it plans.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from pathlib import Path

import torch
from torch import nn

import rankfold as rf
from rankfold.compress.methods.sequential import Sequential
from rankfold.pipeline import memory_sentence
from rankfold.report.quantities import bytes_of


def resident() -> int:
    """Bytes of this process in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Watch(threading.Thread):
    """The largest resident memory until it is told to stop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.on = 0, True

    def run(self) -> None:
        while self.on:
            self.peak = max(self.peak, resident())
            time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--inner", type=int, default=256)
    parser.add_argument("--layers", type=int, default=62, help="of ``width`` inputs")
    parser.add_argument("--memory", default="2GB")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    limit = bytes_of(given.memory)
    layers = [
        part
        for _ in range(given.layers)
        for part in (nn.Linear(given.width, given.inner), nn.ReLU(), nn.Linear(given.inner, given.width), nn.ReLU())
    ]
    model = nn.Sequential(*layers, nn.Linear(given.width, 10)).eval()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    data = list(torch.randn(given.samples, given.width).split(64))
    print(f"network: {weights / 1e9:.2f} GB; Gram matrices: {8 * given.width**2 * given.layers / 1e9:.2f} GB")
    print(memory_sentence(model, limit), flush=True)
    before, watch, told = resident(), Watch(), {"at": time.monotonic()}

    def progress(what: str, done: int, total: int) -> None:
        if time.monotonic() - told["at"] > 15:
            told["at"] = time.monotonic()
            print(f"{what}: {done} of {total}, {(resident() - before) / 1e9:.2f} GB above the start", flush=True)

    watch.start()
    began = time.process_time()
    plan = rf.plan(
        model, "params=0.5", Sequential(rounds=1, kept=False), data,
        calibration=rf.Calibration(samples=given.samples, batch_size=64, memory=limit), progress=progress,
    )  # fmt: skip
    watch.on = False
    # layers are fitted on a copy of the network, in which they shrink, and the plan holds the new factors in float64
    factors = sum(p.numel() * p.element_size() for f in plan.factors.values() for p in f.factors.parts)
    rest = watch.peak - before - weights - factors
    print(
        json.dumps(
            {
                "processor_seconds": round(time.process_time() - began),
                "peak_above_start_GB": round((watch.peak - before) / 1e9, 2),
                "copy_of_the_network_GB": round(weights / 1e9, 2),
                "factors_GB": round(factors / 1e9, 2),
                "moments_and_fits_GB": round(rest / 1e9, 2),
                "changed": len(plan.changed),
                "notes": plan.notes,
            }
        )
    )


if __name__ == "__main__":
    main()
