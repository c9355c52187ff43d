#!/usr/bin/env bash
# onnxslim 0.1.98, onnxscript 0.7.2, onnxruntime 1.32.0, onnx 1.23.2, onnxoptimizer 0.4.2, Python 3.11
#
# Guess: what simplifies an ONNX model makes its file smaller, or leaves it; a weight that is stored in a compact form (two factors that
# the graph multiplies, half precision that it casts, one table for both ends) stays so, as an int8 weight with its DequantizeLinear does.
# Seen: constants are folded, whatever that does to the size. onnxslim, and what onnxruntime writes with optimized_model_filepath, make
# of two factors of 1024 x 8 the whole matrix, 64 times the file, and double a float16 weight and one that is used transposed too.
# onnxscript's optimizer has limits on the sizes of a node's constants and of its result: below these it multiplies out as well, and of a
# weight W + U V it may fold the product and not the sum, so that W and a second matrix of its size are stored. int8 weights are kept by
# all, and onnxoptimizer folds nothing. Factors that the input passes one after the other are safe. onnxslim takes size_threshold.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet onnx==1.23.2 onnxslim==0.1.98 onnxscript==0.7.2 onnxoptimizer==0.4.2 onnxruntime==1.32.0 'numpy>=2,<3'
cd "$place"
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
import onnx
import onnxoptimizer
import onnxruntime
import onnxscript.optimizer
import onnxslim
from onnx import TensorProto, helper, numpy_helper

names = ("onnx", "onnxslim", "onnxscript", "onnxoptimizer", "onnxruntime")
assert [version(name) for name in names] == ["1.23.2", "0.1.98", "0.7.2", "0.4.2", "1.32.0"]
rng = np.random.default_rng(0)


def model(size, nodes, **weights):
    made = [helper.make_node(kind, read.split(), [write], **more) for kind, read, write, more in nodes]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name in "xy"]
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    graph = helper.make_graph(made, "graph", ends[:1], ends[1:], stored)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(made)
    return made


def draw(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def by_onnxruntime(given):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = "optimized.onnx"
    options.log_severity_level = 4
    onnxruntime.InferenceSession(given.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load("optimized.onnx")


tools = {"onnxslim": onnxslim.slim, "onnxruntime": by_onnxruntime, "onnxscript": onnxscript.optimizer.optimize,
         "onnxoptimizer": onnxoptimizer.optimize}
apply = ("MatMul", "x w", "y", {})
int8 = rng.integers(-127, 128, (1024, 1024)).astype(np.int8)
cases = {  # the model, and by how much each tool grows its file
    "x (U V), 1024": (model(1024, [("MatMul", "u v", "w", {}), apply], u=draw(1024, 8), v=draw(8, 1024)), (64, 64, 1, 1)),
    "x (U V), 256": (model(256, [("MatMul", "u v", "w", {}), apply], u=draw(256, 8), v=draw(8, 256)), (16, 16, 16, 1)),
    "x (W + U V), 256": (model(256, [("MatMul", "u v", "d", {}), ("Add", "b d", "w", {}), apply],
                               b=draw(256, 256), u=draw(256, 8), v=draw(8, 256)), (0.94, 0.94, 1.9, 1)),
    "(x U) V": (model(256, [("MatMul", "x u", "h", {}), ("MatMul", "h v", "y", {})], u=draw(256, 8), v=draw(8, 256)), (1, 1, 1, 1)),
    "x W, W float16": (model(256, [("Cast", "h", "w", {"to": TensorProto.FLOAT}), apply], h=draw(256, 256).astype(np.float16)), (2, 2, 1, 1)),
    "x W W'": (model(1024, [("MatMul", "x w", "h", {}), ("Transpose", "w", "t", {}), ("MatMul", "h t", "y", {})], w=draw(1024, 1024)),
               (2, 2, 1, 1)),
    "x W, W int8": (model(1024, [("DequantizeLinear", "q s", "w", {}), apply], q=int8, s=np.float32(0.03)), (1, 1, 1, 1)),
}
for what, (given, factors) in cases.items():
    size = given.ByteSize()
    grown = [tool(onnx.ModelProto.FromString(given.SerializeToString())).ByteSize() / size for tool in tools.values()]
    print(f"{what}: {size:,} bytes, times", ", ".join(f"{factor:.2f} ({tool})" for tool, factor in zip(tools, grown)))
    assert np.allclose(grown, factors, rtol=0.05), "other constants are folded now"
factors = cases["x (U V), 1024"][0]
kept = onnxslim.slim(onnx.ModelProto.FromString(factors.SerializeToString()), size_threshold=100_000).ByteSize()
print(f"onnxslim with size_threshold=100_000: {kept:,} bytes of {factors.ByteSize():,}")
assert kept < 1.1 * factors.ByteSize()
PY
