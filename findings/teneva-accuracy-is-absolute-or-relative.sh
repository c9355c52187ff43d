#!/usr/bin/env bash
# teneva 0.14.11 (tensor trains), numpy 2, Python 3.11
#
# Guess: the accuracy e of teneva.svd(tensor, e), "desired approximation accuracy" in the docstring, is relative to the norm
# of the tensor, as e is in teneva.truncate(train, e), whose docstring uses the same words.
# Seen: truncate is relative; svd is absolute. With e = 0.01 a tensor of norm 1e-3 comes back with 43 % error, one of norm
# 1e3 keeps 49 as the middle rank where 3 do; divide by the norm first.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet teneva==0.14.11 'numpy>=2,<3'
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import importlib.metadata

import numpy as np
import teneva

assert importlib.metadata.version("teneva") == "0.14.11"
rng = np.random.default_rng(0)
cores = [rng.standard_normal(shape) for shape in ((1, 8, 3), (3, 8, 3), (3, 8, 3), (3, 8, 1))]
tensor = teneva.full(cores)
tensor /= np.linalg.norm(tensor)
noise = rng.standard_normal(tensor.shape)
tensor += 1e-3 * noise / np.linalg.norm(noise)


def kept(train, whole):
    ranks = [int(rank) for rank in teneva.ranks(train)]
    return ranks, float(np.linalg.norm(teneva.full(train) - whole) / np.linalg.norm(whole))


seen = {}
for scale in (1e-3, 1.0, 1e3):
    whole = scale * tensor
    seen["svd", scale] = kept(teneva.svd(whole, e=1e-2), whole)
    seen["truncate", scale] = kept(teneva.truncate(teneva.svd(whole, e=1e-12), e=1e-2), whole)
for (what, scale), (ranks, error) in seen.items():
    print(f"{what}, norm {scale:g}: ranks {ranks}, relative error {error:.2g}")
assert seen["truncate", 1e-3][0] == seen["truncate", 1.0][0] == seen["truncate", 1e3][0] == [1, 3, 3, 3, 1]
assert seen["svd", 1.0][0] == [1, 3, 3, 3, 1]
assert seen["svd", 1e-3][1] > 0.1, "a small tensor is kept now"
assert max(seen["svd", 1e3][0]) > 20, "a large tensor is truncated now"
PY
