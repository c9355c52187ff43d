#!/usr/bin/env bash
# torch 2.13.0, Python 3.11, on a CPU
#
# Guess: `torch.compile(network)` makes a version for that network, so that timing twenty networks of one class, each with factors of
# another rank, times twenty compiled ones.
# Seen: versions are kept with the code of the class, eight at most. The ninth network runs as it is, uncompiled; torch logs one warning
# and raises nothing, and what is returned is still an OptimizedModule. With a backend of its own for each network it is the same. A
# second size of batch of one network counts too, and makes the axis symbolic. `torch._dynamo.reset()` before each network compiles all.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 'numpy<3'
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import logging

import torch
from torch import nn

assert torch.__version__.startswith("2.13.0")
logging.getLogger("torch._dynamo").setLevel(logging.CRITICAL)
RANKS = range(2, 14)
graphs = []


class Factors(nn.Module):
    def __init__(self, rank):
        super().__init__()
        self.down, self.up = nn.Linear(16, rank), nn.Linear(rank, 16)

    def forward(self, x):
        return self.up(self.down(x))


class Backend:
    def __call__(self, graph, inputs):
        graphs.append([list(x.shape) for x in inputs if torch.is_tensor(x)])
        return graph.forward


def compiled(backend, reset=False, shape=(2, 16)):
    """How many of twelve networks were compiled."""
    torch._dynamo.reset()
    graphs.clear()
    for rank in RANKS:
        if reset:
            torch._dynamo.reset()
        made = torch.compile(Factors(rank), backend=backend(), dynamic=False)
        assert type(made).__name__ == "OptimizedModule"
        made(torch.rand(shape))
    return len(graphs)


shared = Backend()
found = {
    "one backend": compiled(lambda: shared),
    "a backend each": compiled(Backend),
    "reset before each": compiled(Backend, reset=True),
}
print(f"of {len(RANKS)} networks of one class were compiled:", found)
assert found == {"one backend": 8, "a backend each": 8, "reset before each": 12}, "torch keeps versions in another way now"

torch._dynamo.reset()
graphs.clear()
one = torch.compile(Factors(4), backend=shared)
for batch in (2, 16, 64):
    one(torch.rand(batch, 16))
print("three sizes of batch:", len(graphs), "graphs")
assert len(graphs) == 2, "each size has a graph of its own now"
PY
