"""What a layer's error does to the loss: the price that makes layers comparable.

For each candidate a few truncations are tried alone in the network, and the divergence of its predictions from the
original's is measured; between them the price follows the candidate's own error, as a power law.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankfold.batches import batches_of, forward, logits_of
from rankfold.compress.candidates import Candidate
from rankfold.compress.rules import Optimal
from rankfold.costs import evaluating
from rankfold.sites import Form, replace_

Progress = Callable[[str, int, int], None]
Prices = dict[tuple[str, Form], Tensor]


def relative_energy(candidates: Sequence[Candidate]) -> Prices:
    """Without data: the price is the share of the energy that is lost."""
    return {(c.site.name, c.form): c.relative_errors.square() for c in candidates}
