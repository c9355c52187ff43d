#!/usr/bin/env bash
# onnxruntime 1.32.0, onnx 1.23.2, Python 3.11
#
# Guess: quantize_dynamic takes a float16 model, whose weights become int8 as those of a float32 model do, or refuses it.
# Seen: it takes it and writes a file without an error; onnxruntime then refuses that file as an invalid graph, for
# DynamicQuantizeLinear takes float32 activations alone. Quantise the float32 model instead: the weights are int8 either way.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.23.2 'numpy>=2,<3'
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - "$place" <<'PY'
import logging
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic

logging.disable(logging.WARNING)
assert onnxruntime.__version__ == "1.32.0", onnxruntime.__version__
rng = np.random.default_rng(0)
down, up = rng.standard_normal((64, 8)) / 8, rng.standard_normal((8, 64)) / 3
x = rng.standard_normal((4, 64))


def quantised(dtype, kind):
    nodes = [helper.make_node("MatMul", ["x", "down"], ["inner"]), helper.make_node("MatMul", ["inner", "up"], ["y"])]
    weights = [numpy_helper.from_array(value.astype(dtype), name) for name, value in (("down", down), ("up", up))]
    ends = [[helper.make_tensor_value_info(name, kind, ["batch", 64])] for name in "xy"]
    model = helper.make_model(helper.make_graph(nodes, "factors", *ends, weights),
                              opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    path = f"{sys.argv[1]}/{np.dtype(dtype).name}.onnx"
    onnx.save(model, path)
    onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x.astype(dtype)})
    small = path.replace(".onnx", "-int8.onnx")
    quantize_dynamic(path, small)
    print(np.dtype(dtype).name, "quantised:", sorted({node.op_type for node in onnx.load(small).graph.node}))
    return onnxruntime.InferenceSession(small, providers=["CPUExecutionProvider"]).run(None, {"x": x.astype(dtype)})[0]


error = np.linalg.norm(quantised(np.float32, TensorProto.FLOAT) - x @ down @ up) / np.linalg.norm(x @ down @ up)
print(f"float32: relative error {error:.3f}")
assert error < 0.05
try:
    quantised(np.float16, TensorProto.FLOAT16)
except Exception as refused:
    print("float16:", type(refused).__name__, str(refused).partition("failed:")[2][:140])
    assert "INVALID_GRAPH" in str(refused) and "float16" in str(refused), refused
else:
    raise AssertionError("the quantised float16 model runs now")
PY
