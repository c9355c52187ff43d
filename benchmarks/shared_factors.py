"""What factors that layers share are worth: perplexity of one plan with and without them, at equal parameters.

    RANKFOLD_DATA=... python benchmarks/shared_factors.py                    # stories260k, three seeds

Both plans weigh the forms of every layer alone (--forms); one also groups of layers that read one tensor. The budget
counts the linear layers of the decoder.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from language import BATCH, judged, matrices, windows

import rankfold as rf


def measured(model: Any, data: Any, test: Any, kept: list[float], alone: list[str]) -> list[dict[str, Any]]:
    inside = sum(layer.weight.numel() for layer in matrices(model).values())
    whole, rows = sum(p.numel() for p in model.parameters()), []
    for title, forms in (("alone", alone), ("shared", [*alone, "shared"])):
        how = rf.Calibration(samples=10**6, batch_size=BATCH)
        known = rf.profile(model, data, forms=forms, calibration=how)
        for keep in kept:
            plan = known.plan(f"params={(whole - inside + keep * inside) / whole}")
            small = rf.apply_(copy.deepcopy(model), plan, known)
            forms_taken = Counter(entry.form.value for entry in plan.entries)
            groups = len({entry.members for entry in plan.entries if entry.members})
            rows.append({
                "forms": title, "kept": keep, "params": plan.after.params, "forecast": plan.forecast,
                "metric": plan.calibration.get("metric", "fisher"), "groups": [groups, len(known.sites.joint)],
                "taken": dict(forms_taken), **judged(small, model, test),
            })  # fmt: skip
    return rows


def main() -> None:
    from transformers import AutoModelForCausalLM

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kept", type=float, nargs="+", default=[0.8, 0.6])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("--test-windows", type=int, default=64)
    parser.add_argument("--forms", nargs="+", default=["factored", "pivoted"], help="of layers alone")
    given = parser.parse_args()
    folder = Path(os.environ["RANKFOLD_DATA"]) / "stories260k"
    tokens = np.load(folder / "tokens.npy")
    train, test = windows(tokens[:300_000], 256), windows(tokens[-given.test_windows * 256 :], 256)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    print(json.dumps({"forms": "original", **judged(model, model, test)}))
    for seed in given.seeds:
        drawn = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[: given.windows]]
        data = [{"input_ids": ids} for ids in drawn.split(BATCH)]
        for row in measured(model, data, test, given.kept, given.forms):
            print(json.dumps({"seed": seed} | row), flush=True)


if __name__ == "__main__":
    main()
