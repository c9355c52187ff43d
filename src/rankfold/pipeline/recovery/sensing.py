"""A matrix recovered from linear measurements in an ``.npz``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from rankfold.pipeline.recovery.writing import save_report
from rankfold.recover import LowRank, Operator
from rankfold.recover.model import FACTORS
from rankfold.recover.solvers.outcome import Progress
from rankfold.run.disk.files import write_atomically


def sense(
    operator: Operator,
    y: np.ndarray,
    out: Path,
    *,
    rank: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The low-rank matrix with measurements ``y``, its factors written into ``out``. Returns what ``recover.json``
    holds. Raises ``ValueError`` for measurements that do not fit the operator."""
    found = LowRank(rank, random_state=seed, progress=progress).fit(operator, y)
    tensors = {"left": np.ascontiguousarray(found.left_), "right": np.ascontiguousarray(found.right_)}
    write_atomically(out / FACTORS, save(tensors))
    report = {
        "measurements": operator.count,
        "shape": list(operator.shape),
        "method": "low-rank",
        "rank": found.rank_,
        "residual": found.training_error_,
        "held_out_error": None if math.isnan(found.validation_error_) else found.validation_error_,
        "converged": found.converged_,
        "how": found.reason_,
        "singular_values": [float(value) for value in found.singular_values_],
        "seed": seed,
    }
    save_report(report, out, (FACTORS,))
    return report
