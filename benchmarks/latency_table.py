"""Latency budgets of transformers with the machine's table: what was asked, measured, and how often a layer was timed.

    rankfold doctor --latency --threads 1
    python benchmarks/latency_table.py --models vit-l4-h4 FOLDER --budgets latency=0.7 latency=0.7@64 --out out.json

Every network is planned by truncation with each budget, compressed, and timed beside its original once more, in turns:
fractions of the dense time, medians of the ratios of neighbouring runs. A budget that nothing meets on this machine is
refused with the best that was measured. `--without` leaves the table out, so that every layer is timed.
"""

import argparse
import copy
import json
import os
import time
from pathlib import Path

import torch
from torch import nn

import rankfold as rf
from rankfold import zoo
from rankfold.compress.ranks import timing
from rankfold.compress.ranks.asked import parse_budget
from rankfold.compress.ranks.latency import paired
from rankfold.costs import Example


class Counted:
    """The clock of layers, and how often it was read."""

    def __init__(self) -> None:
        self.calls, self.real = 0, timing.site_timing.__kwdefaults__["timer"]

    def __call__(self, *given):
        self.calls += 1
        return self.real(*given)


def opened(name: str, length: int, dtype: torch.dtype) -> tuple[nn.Module, Example]:
    if not Path(name).is_dir():
        torch.manual_seed(0)
        return zoo.model(name).eval(), Example.of(torch.randn(1, 3, 32, 32))
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype).eval()
    ids = torch.randint(0, model.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    return model, Example.of({"input_ids": ids})


def measure(name: str, model: nn.Module, example: Example, known: rf.Profile, text: str) -> dict:
    counted = Counted()
    timing.site_timing.__kwdefaults__["timer"] = counted
    begun = time.perf_counter()
    row = {"model": name, "budget": text}
    try:
        plan = known.plan(text)
    except rf.BudgetError as error:
        return row | {"refused": str(error), "timed": counted.calls, "seconds": time.perf_counter() - begun}
    finally:
        timing.site_timing.__kwdefaults__["timer"] = counted.real
    seconds, asked = time.perf_counter() - begun, parse_budget(text)
    small = rf.apply_(copy.deepcopy(model), plan, known)
    times = paired({"dense": model, "small": small}, example, batch=asked.batch, phase=asked.phase, seconds=8.0)
    return row | {
        "params": plan.after.params / plan.before.params, "flops": plan.after.flops / plan.before.flops,
        "dense_ms": times["dense"], "ms": times["small"], "fraction": times["small"] / times["dense"],
        "timed": counted.calls, "seconds": seconds, "notes": plan.notes,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, help="names of the zoo, or folders of transformers")
    parser.add_argument("--budgets", nargs="+", required=True)
    parser.add_argument("--length", type=int, default=64, help="tokens of a prompt, the last one decoded")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--without", action="store_true", help="without the table of this machine")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.without:
        os.environ["RANKFOLD_LATENCY"] = os.devnull
    rows = []
    for name in asked.models:
        model, example = opened(name, asked.length, getattr(torch, asked.dtype))
        known = rf.profile(model, method="truncate", example=example)
        for budget in asked.budgets:
            rows.append(measure(name, model, example, known, budget))
            print(json.dumps(rows[-1], indent=1), flush=True)
            if asked.out:
                asked.out.write_text(
                    json.dumps({"threads": asked.threads, "dtype": asked.dtype, "rows": rows}, indent=1)
                )


if __name__ == "__main__":
    main()
