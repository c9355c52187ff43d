"""What a model costs: parameters, FLOPs, bytes, and measured latency; of the whole, or of one site in one form.

FLOPs count two for each multiply-add, as ``torch.utils.flop_counter`` does, for one sample; published tables often
count one. Fractions are the same either way.
"""

from rankfold.batches import evaluating
from rankfold.costs.clock import latencies, once
from rankfold.costs.cost import CALLED, Cost
from rankfold.costs.count import (
    Traced,
    UncountedWarning,
    check,
    measure,
    model_cost,
    site_cost,
    storage,
    trace,
    uncounted,
)
from rankfold.costs.example import Example, with_batch
from rankfold.costs.times import Milliseconds, shown, speed

__all__ = [
    "CALLED", "Cost", "Example", "Milliseconds", "Traced", "UncountedWarning", "check", "evaluating", "latencies",
    "measure", "model_cost", "once", "shown", "site_cost", "speed", "storage", "trace", "uncounted", "with_batch",
]  # fmt: skip
