#!/usr/bin/env bash
# onnxruntime 1.32.0, onnx 1.23.2, Python 3.11, on a CPU (x86-64 with AVX2 or later)
#
# Guess: a model whose weights alone are quantised, int8 or int4 with a DequantizeLinear before each MatMul or Gemm and float32 all around,
# computes what its dequantised weights do, up to float32 rounding, at every level of graph optimisation.
# Seen: so it is with optimisation off or basic. By default the two nodes become one MatMulNBits of accuracy level 4, which rounds the
# inputs to int8 in blocks of 32: outputs are .5 % off for ordinary inputs, ten thousand times float32's error. What shares a block with a
# large input is lost: beside one 50 times as large the other 31 are 12 % off, beside one 1,000 times as large 85 %. How the weights were
# quantised makes no difference. Nothing is said. The session entry "session.qdq_matmulnbits_accuracy_level" = "1" is exact; set it
# before you blame the weights, or compare two models.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet onnx==1.23.2 onnxruntime==1.32.0 'numpy>=2,<3'
cd "$place"
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

assert onnxruntime.__version__ == "1.32.0" and onnx.__version__ == "1.23.2"
rng = np.random.default_rng(0)
size, outputs, block = 512, 256, 32
Level = onnxruntime.GraphOptimizationLevel


def network(kind, bits, blocks):
    weight = rng.standard_normal((size, outputs)).astype(np.float32)
    largest = 2 ** (bits - 1) - 1
    parts = weight.reshape(size // block, block, outputs) if blocks else weight[None]
    scale = np.abs(parts).max(1) / largest
    codes = np.round(parts / scale[:, None]).reshape(weight.shape)
    stored = helper.make_tensor("q", TensorProto.INT4 if bits == 4 else TensorProto.INT8, codes.shape, codes.astype(int).ravel().tolist())
    how = {"axis": 0, "block_size": block} if blocks else {"axis": 1}
    scale = scale if blocks else scale[0]
    true = codes * (np.repeat(scale, block, 0) if blocks else scale)
    nodes = [helper.make_node("DequantizeLinear", ["q", "s"], ["w"], **how), helper.make_node(kind, ["x", "w"], ["y"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name, width in (("x", size), ("y", outputs))]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], [stored, numpy_helper.from_array(scale.astype(np.float32), "s")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    return model, true.astype(np.float64)


def run(model, inputs, level=Level.ORT_ENABLE_ALL, accuracy=None):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = level, 4
    options.optimized_model_filepath = "optimized.onnx"
    if accuracy is not None:
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", accuracy)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": inputs})[0], [node.op_type for node in onnx.load("optimized.onnx").graph.node]


for bits, blocks in ((8, False), (8, True), (4, False), (4, True)):
    model, weight = network("MatMul", bits, blocks)
    for large in (1, 50, 1000):
        inputs = rng.standard_normal((8, size)).astype(np.float32)
        inputs[:, ::block] *= large
        true = inputs @ weight
        others = inputs.copy()
        others[:, ::block] = 0
        off = {}
        for name, how in (("default", {}), ("off", {"level": Level.ORT_DISABLE_ALL}), ("basic", {"level": Level.ORT_ENABLE_BASIC}),
                          ("default at level 1", {"accuracy": "1"})):
            found, nodes = run(model, inputs, **how)
            off[name] = float(np.linalg.norm(found - true) / np.linalg.norm(true))
            assert ("MatMulNBits" in nodes) == name.startswith("default"), nodes
            lost = float(np.linalg.norm(found - true) / np.linalg.norm(others @ weight)) if name == "default" else lost
        each = ", ".join(f"{name} {one:.0e}" for name, one in off.items())
        print(f"int{bits}, {'blocks' if blocks else 'columns'}, one input of {block} times {large}: {each} off; by default {lost:.1%} of what "
              "the other inputs give")
        assert off.pop("default") > 2e-3, "inputs are kept in float32 now"
        assert max(off.values()) < 1e-5
        assert {1: 0.002, 50: 0.05, 1000: 0.5}[large] < lost < 1
model, weight = network("Gemm", 8, False)
inputs = rng.standard_normal((8, size)).astype(np.float32)
for accuracy in (None, "1"):
    found, nodes = run(model, inputs, accuracy=accuracy)
    off = float(np.linalg.norm(found - inputs @ weight) / np.linalg.norm(inputs @ weight))
    print(f"Gemm, accuracy level {accuracy or 'by default'}: {nodes}, {off:.0e} off")
    assert off > 2e-3 if accuracy is None else off < 1e-5
PY
