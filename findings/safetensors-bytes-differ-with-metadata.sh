#!/usr/bin/env bash
# safetensors 0.8.0 (numpy 2), Python 3.11
#
# Guess: the same tensors with the same metadata give the same bytes, so that files can be compared by their hash.
# Seen: without metadata they do; with eight metadata entries, twenty saves in one process give (nearly always twenty)
# different byte strings: the order of the entries in the header is drawn anew at each save. What is read is equal.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet safetensors==0.8.0 'numpy>=2,<3'
"$place/venv/bin/python" - <<'PY'
import hashlib

import numpy as np
import safetensors
from safetensors.numpy import load, save

assert safetensors.__version__ == "0.8.0", safetensors.__version__
tensors = {"w": np.arange(4.0)}
metadata = {name: str(number) for number, name in enumerate("abcdefgh")}
plain = {hashlib.sha256(save(tensors)).hexdigest() for _ in range(20)}
noted = [save(tensors, metadata=metadata) for _ in range(20)]
different = {hashlib.sha256(data).hexdigest() for data in noted}
assert all((load(data)["w"] == tensors["w"]).all() for data in noted)
print(f"20 saves without metadata: {len(plain)} hash; with eight entries: {len(different)} hashes")
assert len(plain) == 1
assert len(different) > 1, "the bytes are the same now"
PY
