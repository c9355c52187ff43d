#!/usr/bin/env bash
# gguf 0.19.0, numpy 2, Python 3.11
#
# Guess: a block format keeps a scale for each block, so that a weight times any constant is quantised with the same relative error,
# and what it cannot hold is refused; eight bits are always better than four.
# Seen: the scale is a float16. Q8_0 divides by 127: blocks below 4e-6 become zero, weights of about 1e-5 have 10 % error for .5 %,
# and at 1e-6 Q4_0 (11 %) beats Q8_0 (100 %). Blocks whose scale passes 65504 become NaN, for Q4_0 and Q5_0 already at a
# few hundred thousand; F16 becomes inf. No error and no warning but numpy's. Of a factored layer only the product
# is given: one factor can be as small as one likes, and is lost so; split the singular values evenly. MXFP4 and BF16 do not mind.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet gguf==0.19.0 'numpy<3'
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import quants

assert version("gguf") == "0.19.0", version("gguf")
weight = np.random.default_rng(0).standard_normal((4, 512)).astype(np.float32)


def error(kind, size):
    scaled = weight * np.float32(size)
    seen = quants.dequantize(quants.quantize(scaled, kind), kind).astype(np.float64)
    return float(np.linalg.norm(seen / size - weight) / np.linalg.norm(weight))


found = {}
for kind in (Type.Q8_0, Type.Q5_0, Type.Q4_0, Type.F16, Type.BF16, Type.MXFP4):
    found[kind] = {size: error(kind, size) for size in (1e-6, 1e-5, 1, 1e6, 1e8)}
    print(kind.name, ", ".join(f"weights of {size:g}: {off:.1%}" for size, off in found[kind].items()))
assert found[Type.Q8_0][1e-6] > 0.99 and found[Type.Q4_0][1e-6] < 0.15, "small blocks are kept now"
assert found[Type.Q8_0][1e-5] > 2 * found[Type.Q8_0][1]
assert not np.isfinite([found[kind][1e6] for kind in (Type.Q4_0, Type.Q5_0, Type.F16)]).any(), "large blocks are finite now"
assert np.isnan(found[Type.Q8_0][1e8])
for kind in (Type.BF16, Type.MXFP4):
    assert max(found[kind].values()) < 1.1 * min(found[kind].values())

rng = np.random.default_rng(1)
up, down = rng.standard_normal((64, 32)).astype(np.float32), rng.standard_normal((32, 64)).astype(np.float32)
for split in (1, 1e-3, 1e-6):
    parts = [quants.dequantize(quants.quantize(part, Type.Q8_0), Type.Q8_0) for part in (up * np.float32(split), down / np.float32(split))]
    off = np.linalg.norm(parts[0] @ parts[1] - up @ down) / np.linalg.norm(up @ down)
    print(f"the same product as {split:g} up and {1 / split:g} down: {off:.1%} error")
    assert (off > 0.9) == (split == 1e-6)
PY
