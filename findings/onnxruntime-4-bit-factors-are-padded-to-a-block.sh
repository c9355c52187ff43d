#!/usr/bin/env bash
# onnxruntime 1.32.0, onnx 1.23.2, Python 3.11
#
# Guess: MatMulNBitsQuantizer makes every linear layer about seven times smaller, those of a factored network too; a layer whose inputs
# do not fill a block is left alone, refused or gets a shorter block.
# Seen: the inputs are padded to whole blocks of 128 (the default), and the padding is stored: the second factor of a pair of rank 8 has
# 128 inputs then and is twice as large as in float32, the pair 13 % larger, without a word. At rank 40 the pair shrinks to a
# quarter where it should be a seventh; block_size=32 or 16, and ranks that fill blocks, keep the loss small. A Gemm, which is what a
# linear layer over plain vectors becomes in many exports, is left in float32 altogether, with a line of the log at level INFO.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet onnx==1.23.2 onnxruntime==1.32.0 onnx-ir==1.1.0 'numpy>=2,<3'
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import logging

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

assert onnxruntime.__version__ == "1.32.0" and onnx.__version__ == "1.23.2"
logging.disable(logging.INFO)
rng = np.random.default_rng(0)
size = 512


def network(rank, kind):
    parts = [rng.standard_normal(shape).astype(np.float32) for shape in ((size, rank), (rank, size))]
    turned = {"transB": 1} if kind == "Gemm" else {}
    nodes = [helper.make_node(kind, [start, weight], [end], name=weight, **turned) for start, weight, end in (("x", "u", "h"), ("h", "v", "y"))]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name in "xy"]
    stored = [numpy_helper.from_array(np.ascontiguousarray(part.T) if turned else part, name) for name, part in zip("uv", parts)]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def outputs(model, inputs):
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": inputs})[0]


def stored(model, factor):
    return sum(len(numpy_helper.to_array(one).tobytes()) for one in model.graph.initializer if one.name.startswith(factor))


def quantised(rank, kind="MatMul", **how):
    model = network(rank, kind)
    before = {factor: stored(model, factor) for factor in "uv"}
    inputs = rng.standard_normal((4, size)).astype(np.float32)
    true = outputs(model, inputs)
    quantizer = MatMulNBitsQuantizer(model, bits=4, is_symmetric=True, **how)
    quantizer.process()
    made = quantizer.model.model
    shares = {factor: stored(made, factor) / before[factor] for factor in "uv"}
    both = (stored(made, "u") + stored(made, "v")) / sum(before.values())
    off = float(np.linalg.norm(outputs(made, inputs) - true) / np.linalg.norm(true))
    print(f"rank {rank}, {kind}, {how or 'default block size'}: first factor {shares['u']:.2f}, second {shares['v']:.2f}, both {both:.2f} of "
          f"their size in float32; outputs {off:.0%} off")
    return shares, both, off


for rank, first, second in ((8, 0.13, 2.1), (40, 0.13, 0.425), (128, 0.13, 0.13)):
    shares, both, off = quantised(rank)
    assert abs(shares["u"] - first) < 0.01 and abs(shares["v"] / second - 1) < 0.05, "blocks are filled in another way now"
    assert 0.05 < off < 0.25
    assert (both > 1) == (rank == 8)
for block in (32, 16):
    assert quantised(8, block_size=block)[1] < 0.5
shares, both, off = quantised(128, "Gemm")
assert shares == {"u": 1, "v": 1} and off == 0, "Gemm is quantised now"
PY
