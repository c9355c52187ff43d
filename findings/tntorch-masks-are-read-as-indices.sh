#!/usr/bin/env bash
# tntorch 1.1.2, torch 2.13.0, Python 3.11
#
# Guess: a tensor train indexed with a boolean mask gives the entries where the mask is true, as the torch tensor that it stands for
# does and as its documentation's numpy-like indexing suggests.
# Seen: a list of booleans is a mask; a torch tensor of booleans is read as the indices 0 and 1, so that the first two slices come
# back, repeated, as many as the mask is long, and a mask of the same length as the mode gives a result of the shape of the whole:
# nothing is left out. No error, no warning. A numpy mask raises IndexError. Use mask.tolist(), or mask.nonzero()[:, 0].
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet tntorch==1.1.2 torch==2.13.0 'numpy<3' 'scipy<2'
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import tntorch
import torch

assert version("tntorch") == "1.1.2", version("tntorch")
torch.manual_seed(0)
for name, ranks in (("tensor train", {"ranks_tt": 2}), ("CP", {"ranks_cp": 2}), ("Tucker", {"ranks_tt": 2, "ranks_tucker": 2})):
    factored = tntorch.rand([4, 5, 6], **ranks)
    dense = factored.torch()
    mask = torch.tensor([True, False, True, True])
    seen = factored[mask].torch()
    print(f"{name}: {tuple(dense[mask].shape)} from torch, {tuple(seen.shape)} from tntorch, slices {mask.int().tolist()}: "
          f"{torch.allclose(seen, dense[mask.long()])}")
    assert torch.allclose(seen, dense[mask.long()]) and seen.shape != dense[mask].shape, "a mask is a mask now"
    for right in (mask.tolist(), mask.nonzero()[:, 0]):
        assert torch.allclose(factored[right].torch(), dense[mask])
    try:
        factored[mask.numpy()]
        raise AssertionError("numpy masks are taken now")
    except IndexError as error:
        print(f"{name}: a numpy mask raises IndexError: {error}")
PY
