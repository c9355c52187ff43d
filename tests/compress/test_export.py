"""Exports: factors stay apart, any batch size runs, and what computes something else is never written."""

from __future__ import annotations

import importlib.util
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rankfold.export as export_module
from rankfold.compress.planning.apply import apply_
from rankfold.compress.planning.planner import plan
from rankfold.costs import evaluating
from rankfold.export import ExportError, to_onnx, to_torch_export
from rankfold.zoo import example_input, model

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


class Attending(nn.Module):
    """An encoder layer whose projections are factored."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(1))


def _factored(network: nn.Module, example: Tensor) -> nn.Module:
    made = plan(network, "params=0.5", "truncate", rule="local", example=example)
    assert made.changed
    return apply_(network, made).eval()


@pytest.fixture(scope="module")
def digits_model():
    return _factored(model("digits-cnn"), example_input("digits-cnn"))


def test_onnx_keeps_the_factors_apart_and_any_batch_size_runs(digits_model, tmp_path):
    file = tmp_path / "deep" / "model.onnx"
    difference = to_onnx(digits_model, example_input("digits-cnn"), file)
    assert difference < 1e-4
    graph = onnx.load(file).graph
    kinds = Counter(node.op_type for node in graph.node)
    layers = Counter(type(module).__name__ for module in digits_model.modules())
    assert kinds["Conv"] == layers["Conv2d"] > 4
    assert kinds["Gemm"] + kinds["MatMul"] == layers["Linear"] > 2
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    session = onnxruntime.InferenceSession(file.read_bytes())
    inputs = np.random.default_rng(0).normal(size=(7, 1, 8, 8)).astype(np.float32)
    with evaluating(digits_model):
        expected = digits_model(torch.from_numpy(inputs))
    (found,) = session.run(None, {graph.input[0].name: inputs})
    assert np.abs(found - expected.numpy()).max() < 1e-4


def test_torch_export_runs_any_batch_size(digits_model, tmp_path):
    file = tmp_path / "model.pt2"
    assert to_torch_export(digits_model, example_input("digits-cnn"), file) < 1e-4
    assert file.stat().st_size > 1000


@pytest.mark.parametrize("write", [to_onnx, to_torch_export])
def test_factored_attention_is_exported(write, tmp_path):
    example = torch.zeros(1, 5, 16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = _factored(Attending(), example)
    assert write(network, example, tmp_path / "file") < 1e-4


class Drifting(nn.Module):
    """Computes something else at every call, as no graph can."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x) + self.calls


@pytest.mark.parametrize("write", [to_onnx, to_torch_export])
def test_what_computes_something_else_is_not_written(write, tmp_path):
    with pytest.raises(ExportError, match="differs from the model by"):
        write(Drifting().eval(), torch.zeros(1, 4), tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


class Branching(nn.Module):
    """Its control flow depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if float(x.sum()) > 0 else x - 1


@pytest.mark.parametrize("write", [to_onnx, to_torch_export])
def test_a_model_that_cannot_be_traced_is_told_in_one_line(write, tmp_path):
    with pytest.raises(ExportError, match="cannot trace this model") as caught:
        write(Branching(), torch.zeros(1, 4), tmp_path / "file")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named_with_the_extra(digits_model, tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        export_module.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else real(name)
    )
    with pytest.raises(ExportError, match=r"ONNX needs onnxscript: pip install 'rankfold\[onnx\]'"):
        to_onnx(digits_model, example_input("digits-cnn"), tmp_path / "file")


@pytest.mark.parametrize("write", [to_onnx, to_torch_export])
def test_the_model_is_left_as_found(write, digits_model, tmp_path):
    digits_model.train()
    before = {name: value.clone() for name, value in digits_model.state_dict().items()}
    write(digits_model, example_input("digits-cnn"), tmp_path / "file")
    assert all(module.training for module in digits_model.modules())
    assert all(torch.equal(before[name], value) for name, value in digits_model.state_dict().items())
    digits_model.eval()
