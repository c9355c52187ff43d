#!/usr/bin/env bash
# onnx 1.23.2, numpy 2, Python 3.11
#
# Guess: onnx.save(model, path, save_as_external_data=True, location="weights.bin") writes these two files anew each time, and
# leaves the model in memory as it is.
# Seen: the data are appended to a file of that name beside the model, so that each save over an earlier one adds the whole size
# again; what is read back is right, and nothing is said. (A file of that name is refused only in the current directory, wherever
# the model goes.) The model in memory has lost its weights afterwards: they are references to a file beside it. A second save
# to another folder works, holds no weights, and cannot be loaded. Remove the data file first, and save a copy of the model.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet onnx==1.23.2 'numpy>=2,<3'
cd "$place"
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W error - <<'PY'
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

assert onnx.__version__ == "1.23.2", onnx.__version__
rng = np.random.default_rng(0)
outside = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}


def network():
    down, up = (rng.standard_normal(shape).astype(np.float32) for shape in ((64, 8), (8, 64)))
    nodes = [helper.make_node("MatMul", ["x", "down"], ["h"]), helper.make_node("MatMul", ["h", "up"], ["y"])]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 64])] for name in "xy"]
    weights = [numpy_helper.from_array(value, name) for name, value in (("down", down), ("up", up))]
    return helper.make_model(helper.make_graph(nodes, "factors", *ends, weights)), down


Path("first").mkdir()
sizes = []
for _ in range(3):
    model, down = network()
    onnx.save(model, "first/model.onnx", **outside)
    sizes.append(Path("first/weights.bin").stat().st_size)
    assert (numpy_helper.to_array(onnx.load("first/model.onnx").graph.initializer[0]) == down).all()
needed = 2 * 64 * 8 * 4
print(f"{needed} bytes of weights; the data file after each of three saves: {sizes}")
assert sizes == [needed, 2 * needed, 3 * needed], "the file is written anew now"

before, after = network()[0].graph.initializer[0], model.graph.initializer[0]
print(f"bytes of the first weight in memory before a save: {len(before.raw_data)}, afterwards {len(after.raw_data)}")
assert len(before.raw_data) == needed // 2 and len(after.raw_data) == 0
Path("elsewhere").mkdir()
onnx.save(model, "elsewhere/model.onnx")
try:
    onnx.load("elsewhere/model.onnx")
except onnx.checker.ValidationError as error:
    print("saved again, to another folder, and loaded:", str(error)[:60])
else:
    raise AssertionError("the model in memory can be saved again now")

Path("weights.bin").touch()
try:
    onnx.save(network()[0], "elsewhere/model.onnx", **outside)
except FileExistsError as error:
    print("with a file of that name in the current directory:", error)
else:
    raise AssertionError("the current directory does not matter now")
PY
