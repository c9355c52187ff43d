"""Latency budgets: what was asked, what the compressed models take at batch 1 and 64, and what their FLOPs promised.

    RANKFOLD_DATA=... python benchmarks/latency.py --weights resnet20.th --threads 2 --out latency.json

Every model is planned for `latency=0.7@1`, `latency=0.7@64` and, for comparison, `flops=0.5`, compressed, and timed
beside its original, in turns, at both batch sizes: fractions of the dense time, medians of the ratios of neighbouring
runs. A budget that nothing meets on this machine is refused, with the best that was measured. ResNet20 has the
published weights and its accuracy is that on the validation split, with BatchNorm statistics corrected; the other
networks have random weights, which do not matter for their times.
"""

import argparse
import copy
import json
import time
from pathlib import Path

import torch

from rankfold import zoo
from rankfold.compress.applying.apply import apply_
from rankfold.compress.planning.planner import plan
from rankfold.compress.ranks.asked import parse_budget
from rankfold.compress.ranks.budget import Latency
from rankfold.compress.ranks.latency import paired
from rankfold.compress.ranks.options import BudgetError
from rankfold.compress.repair.batchnorm import reestimate_
from rankfold.costs import Example
from rankfold.train import evaluate

MODELS = ("resnet20", "digits-cnn", "fcn-6")
BUDGETS = ("latency=0.7@1", "latency=0.7@64", "flops=0.5")
BATCHES = (1, 64)


def measure(name: str, budget: str, weights: Path, method: str) -> dict:
    model, data = zoo.model(name).eval(), zoo.load_data(zoo.default_data(name))
    if name == "resnet20":
        zoo.load_weights(model, weights)
    begun = time.perf_counter()
    try:
        result = plan(model, budget, method, data.train)
    except BudgetError as error:
        return {"model": name, "budget": budget, "refused": str(error), "seconds": time.perf_counter() - begun}
    seconds = time.perf_counter() - begun
    small = apply_(copy.deepcopy(model), result)
    reestimate_(small, model, data.train)
    example = Example.of(next(iter(data.validation.batches(max(BATCHES))))[0])
    row = {
        "model": name,
        "budget": budget,
        "flops": result.after.flops / result.before.flops,
        "params": result.after.params / result.before.params,
        "seconds": seconds,
        "notes": result.notes,
        "ranks": {entry.site: (entry.form.value, entry.rank) for entry in result.changed},
    }
    for batch in BATCHES:
        times = paired({"dense": model, "compressed": small}, example, batch=batch, seconds=5.0)
        row[f"ms dense @{batch}"], row[f"ms @{batch}"] = times["dense"], times["compressed"]
        row[f"latency @{batch}"] = times["compressed"] / times["dense"]
    if name == "resnet20":
        row["accuracy"] = evaluate(small, data.validation).accuracy
    return row


def show(rows: list[dict]) -> None:
    heads = ["flops", "params", *(f"latency @{b}" for b in BATCHES), *(f"ms dense @{b}" for b in BATCHES), "accuracy"]
    print(f"{'model':12}{'budget':16}" + "".join(f"{head:>14}" for head in heads))
    for row in rows:
        if "refused" in row:
            print(f"{row['model']:12}{row['budget']:16}  {row['refused']}")
            continue
        print(
            f"{row['model']:12}{row['budget']:16}" + "".join(f"{row.get(head, float('nan')):14.3f}" for head in heads)
        )


def slower(rows: list[dict]) -> list[str]:
    """Models that are slower than their original at the batch size of their latency budget."""
    found = []
    for row in rows:
        budget = parse_budget(row["budget"])
        if isinstance(budget, Latency) and row.get(f"latency @{budget.batch}", 0.0) > 1:
            found.append(f"{row['model']} at {row['budget']}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="of resnet20")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--budgets", nargs="+", default=list(BUDGETS))
    parser.add_argument("--method", default="truncate")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="processor seconds of one thread: on a busy machine")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    asked = parser.parse_args()
    torch.set_num_threads(1 if asked.cpu_time else asked.threads)
    if asked.cpu_time:
        time.perf_counter = time.thread_time  # the clock that rankfold reads, too
    rows = []
    for name in asked.models:
        for budget in asked.budgets:
            rows.append(measure(name, budget, asked.weights, asked.method))
            print(f"{name}, {budget}: {rows[-1]['seconds']:.0f} s", flush=True)
    show(rows)
    print("slower than dense at the batch asked:", ", ".join(slower(rows)) or "none")
    if asked.out:
        asked.out.write_text(
            json.dumps({"threads": torch.get_num_threads(), "cpu time": asked.cpu_time, "rows": rows}, indent=1)
        )


if __name__ == "__main__":
    main()
