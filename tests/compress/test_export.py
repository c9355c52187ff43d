"""Exports: factors stay apart, any size runs that the model runs, and what computes something else is never written."""

from __future__ import annotations

import importlib.util
import math
from collections import Counter, namedtuple

import numpy as np
import pytest
import torch
from networks import network
from torch import Tensor, nn

import rankfold.export.check as check_module
import rankfold.export.onnx as onnx_module
from rankfold.compress.applying.apply import apply_
from rankfold.compress.planning.planner import plan
from rankfold.costs import evaluating
from rankfold.export import ExportError, to_onnx, to_torch_export
from rankfold.export.check import difference
from rankfold.induce import cdln_, overparametrize_
from rankfold.run.progress import Tell
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


def test_a_file_tells_nothing_of_whoever_wrote_it(digits_model, tmp_path):
    """The exporter notes a path and a line of the program for each node: 46 % of a small file."""
    to_onnx(digits_model, example_input("digits-cnn"), tmp_path / "model.onnx")
    data, proto = (tmp_path / "model.onnx").read_bytes(), onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(proto, full_check=True)
    for told in (b".py", b"stack_trace", b"return ", str(onnx_module.__file__).encode()[:6], b"metadata", b"forward"):
        assert told not in data
    assert all(node.name for node in proto.graph.node)
    assert {each.name for each in proto.graph.initializer} & dict(digits_model.named_parameters()).keys()
    weights = sum(each.ByteSize() for each in proto.graph.initializer)
    assert len(data) < weights + 200 * (len(proto.graph.node) + len(proto.graph.value_info))


def test_what_lies_deeper_in_a_file_is_taken_away_too():
    inner = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["x"], ["y"], name="inner")], "branch", [], [])
    node = onnx.helper.make_node("If", ["c"], ["y"], name="outer", then_branch=inner, else_branch=inner)
    proto = onnx.helper.make_model(onnx.helper.make_graph([node], "graph", [], []))
    for part in (proto.graph.node[0].attribute[0].g.node[0], proto.graph.node[0], proto.graph, proto):
        part.metadata_props.add(key="stack_trace", value="File secret/program.py")
        part.doc_string = "secret"
    onnx_module.strip_(proto)
    assert b"secret" not in proto.SerializeToString()
    assert proto.graph.node[0].attribute[0].g.node[0].name == "inner"


def test_torch_export_runs_any_batch_size(digits_model, tmp_path):
    file = tmp_path / "model.pt2"
    assert to_torch_export(digits_model, example_input("digits-cnn"), file) < 1e-4
    assert file.stat().st_size > 1000


@pytest.mark.parametrize("write", [to_onnx, to_torch_export])
def test_every_step_is_told(write, tmp_path):
    said: list[str] = []
    write(nn.Linear(4, 2), torch.zeros(1, 4), tmp_path / "net", tell=Tell(say=said.append))
    assert said[:2] == ["tracing the model", "writing the graph"]
    assert said[2].startswith("comparing ")


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


class Logarithm(nn.Module):
    """Of positive numbers alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.log(x))


class Table(nn.Module):
    """The first column holds categories, as floats."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layer = nn.Embedding(5, 4), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.cat([self.embed(x[:, 0].long()), x[:, 1:]], -1))


class Root(nn.Module):
    """Not a number in every other place, whatever it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sqrt(x.abs() * torch.tensor([1.0, -1.0, 1.0, -1.0]))


class DriftingLogarithm(Drifting):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.log(x))


ROWS = torch.tensor([[3.0, 0.5, 1.5, 0.25], [4.0, 0.75, 0.1, 2.0]])


@pytest.mark.parametrize("write", [to_onnx, to_torch_export])
@pytest.mark.parametrize("kind", [Logarithm, Table, Root])
def test_where_noise_is_no_input_rows_of_the_example_are_compared(kind, write, tmp_path):
    assert write(kind().eval(), ROWS, tmp_path / "file") < 1e-5


@pytest.mark.parametrize("write", [to_onnx, to_torch_export])
def test_what_differs_on_rows_of_the_example_says_so(write, tmp_path):
    with pytest.raises(ExportError, match=r"differs from the model by .* on rows of the example"):
        write(DriftingLogarithm().eval(), ROWS, tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("place", "worst"), [(0, 0.0), (1, None)])
def test_what_is_no_number_is_equal_at_equal_places_alone(place, worst):
    one, other = torch.tensor([math.nan, 1.0, math.inf]), torch.ones(3)
    other[2], other[place] = math.inf, math.nan
    if worst is None:
        with pytest.raises(ExportError, match="differs from the model by up to nan"):
            difference(one, other, "output", "it", "random input")
    else:
        assert difference(one, other, "output", "it", "random input") == worst


class Branching(nn.Module):
    """Its control flow depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if float(x.sum()) > 0 else x - 1


@pytest.mark.parametrize("write", [to_onnx, to_torch_export])
def test_a_model_that_cannot_be_traced_is_told_in_one_line(write, tmp_path, capfd):
    with pytest.raises(ExportError, match="cannot trace this model") as caught:
        write(Branching(), torch.zeros(1, 4), tmp_path / "file")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # of torch's pages none
    assert list(tmp_path.iterdir()) == []


class Counting(nn.Module):
    """Its batch size is a number of Python."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.ones(1, 4).expand(len(x), -1)


def test_a_batch_size_that_the_code_makes_a_constant_is_told_with_the_remedy(tmp_path):
    with pytest.raises(ExportError, match=r"constant: write x.shape\[0\] where it says len\(x\)"):
        to_torch_export(Counting(), torch.zeros(1, 4), tmp_path / "file")


def test_missing_packages_are_named_with_the_extra(digits_model, tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        onnx_module.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else real(name)
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


class Averaging(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x):
        y = self.layer(x)
        self.mean.mul_(0.9).add_(0.1 * y.mean(0))
        return y


@pytest.mark.parametrize("write", [to_onnx, to_torch_export])
def test_buffers_that_a_call_changes_are_left_as_found(write, tmp_path):
    model = Averaging()
    mean = model.mean
    assert write(model, torch.rand(1, 4), tmp_path / "file") < 1e-5
    assert model.mean is mean
    assert not mean.any()


# ---- sizes other than the example's ---------------------------------------------------------------------------------


def shapes(file) -> dict[str, list]:
    """Of every input and output in an ONNX file: its axes, names where they are free."""
    graph = onnx.load(file).graph
    return {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }


def ran(file, **inputs: Tensor) -> list[Tensor]:
    session = onnxruntime.InferenceSession(file.read_bytes())
    return [torch.from_numpy(x) for x in session.run(None, {k: v.numpy() for k, v in inputs.items()})]


class Reduced(nn.Module):
    """A network for pictures of any size, or of one size where ``flat``."""

    def __init__(self, flat: bool = False) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.head = nn.Linear(4 * 12 * 12, 5) if flat else nn.Conv2d(4, 5, 1)
        self.flat = flat

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.up(torch.relu(self.down(image)))
        return self.head(hidden.flatten(1) if self.flat else hidden)


def test_pictures_of_other_sizes(tmp_path):
    net = Reduced().eval()
    to_onnx(net, torch.zeros(1, 3, 12, 12), tmp_path / "file")
    assert shapes(tmp_path / "file")["image"] == ["batch", 3, "height", "width"]
    image = torch.randn(2, 3, 20, 14)
    with torch.no_grad():
        torch.testing.assert_close(ran(tmp_path / "file", image=image)[0], net(image), rtol=1e-4, atol=1e-5)


def test_an_axis_that_the_model_fixes_is_fixed(tmp_path):
    to_onnx(Reduced(flat=True).eval(), torch.zeros(1, 3, 12, 12), tmp_path / "file")
    assert shapes(tmp_path / "file")["image"] == ["batch", 3, 12, 12]


def test_sequences_of_other_lengths_with_their_mask(tmp_path):
    net, batch = network("gpt2")
    to_onnx(net, batch, tmp_path / "file")
    found = shapes(tmp_path / "file")
    assert list(found) == ["input_ids", "attention_mask", "logits"]  # its cache is left out
    assert found["input_ids"] == ["batch", "sequence"]
    ids = batch["input_ids"][:2, :6]
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    with torch.no_grad():
        expected = net(input_ids=ids, attention_mask=mask).logits
    (logits,) = ran(tmp_path / "file", input_ids=ids, attention_mask=mask)
    torch.testing.assert_close(logits[1], expected[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits[0, 2:], expected[0, 2:], rtol=1e-4, atol=1e-5)


class Stretching(nn.Module):
    """Weighs by the length; a graph of it keeps the number of one length."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * (8 if torch.compiler.is_exporting() else x.shape[1])


@pytest.mark.parametrize("write", [to_onnx, to_torch_export])
def test_what_differs_at_another_length_alone_is_not_free(write, tmp_path, monkeypatch):
    """The axis is fixed as in the example, and what is written computes the same there."""
    looked = []
    real = check_module.traced

    def watched(root, example, fixed):
        looked.append(fixed)
        return real(root, example, fixed)

    monkeypatch.setattr(check_module, "traced", watched)
    write(Stretching().eval(), torch.zeros(1, 8, 4), tmp_path / "file")
    assert looked == [set(), {(0, 1)}]


@pytest.mark.parametrize("write", [to_onnx, to_torch_export])
def test_what_is_free_is_told(write, tmp_path):
    class Placed(Stretching):
        def __init__(self) -> None:
            super().__init__()
            self.places = nn.Parameter(torch.zeros(12, 4))

        def forward(self, x: Tensor, gain: Tensor) -> Tensor:
            return (self.layer(x) + self.places[: x.shape[1]]) * gain

    written = write(Placed().eval(), (torch.zeros(1, 8, 4), torch.ones(4)), tmp_path / "file")
    assert written.inputs == {"x": ("batch", "sequence", 4), "gain": (4,)}
    assert written.at_most == {"sequence": 12}
    assert written.sizes == ["x (batch, sequence up to 12, 4)", "gain (4,)"]
    assert write(ManyAtOnce().eval(), torch.randn(1, 5, 6), tmp_path / "file").at_most == {"batch": 63}


class Masked(nn.Module):
    """Attention with two heads, whose mask has an axis of 1 for the heads."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        heads = self.layer(x).unflatten(-1, (2, 4)).transpose(1, 2)
        return ((heads @ heads.mT + mask).softmax(-1) @ heads).transpose(1, 2).flatten(2)


def test_an_axis_of_one_in_the_example_is_free_where_the_model_leaves_it_free(tmp_path):
    """torch takes a size of 1 for a constant: a sequence of one step, the batch of what has time first."""
    layer = nn.TransformerEncoderLayer(8, 2, 16).eval()
    assert to_torch_export(layer, torch.randn(5, 1, 8), tmp_path / "f").inputs["src"] == ("batch", "sequence", 8)
    written = to_onnx(Masked().eval(), (torch.randn(1, 1, 8), torch.zeros(1, 1, 1, 1)), tmp_path / "file")
    assert written.inputs == {"x": ("batch", "sequence", 8), "mask": ("batch", 1, "sequence", "sequence")}
    colours = nn.Conv2d(1, 3, 3, padding=1)
    assert to_torch_export(colours, torch.randn(1, 1, 4, 1), tmp_path / "f").inputs["input"] == (
        "batch", 1, "height", "width",
    )  # fmt: skip


class Squeezing(nn.Module):
    """Does something else with a sequence of one step than with a longer one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * (3 if x.shape[1] == 1 else 1)


def test_an_axis_of_one_is_fixed_where_one_is_a_case_of_its_own(tmp_path):
    net, x = Squeezing().eval(), torch.randn(2, 1, 8)
    assert to_onnx(net, x, tmp_path / "file").inputs == {"x": ("batch", 1, 8)}
    torch.testing.assert_close(ran(tmp_path / "file", x=x)[0], net(x).detach(), rtol=1e-4, atol=1e-5)


# ---- outputs --------------------------------------------------------------------------------------------------------


class Several(nn.Module):
    """Two answers of different widths, given in one of the ways in which models give them."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.wide, self.narrow, self.how = nn.Linear(6, 8), nn.Linear(6, 3), how

    def forward(self, x: Tensor):
        wide, narrow = self.wide(x), self.narrow(x)
        return {
            "tuple": lambda: (wide, narrow),
            "logits last": lambda: {"states": wide, "logits": narrow},
            "number between": lambda: (x.shape[0], None, narrow, wide),
            "place of the largest first": lambda: (wide.argmax(1), narrow),
            "nested": lambda: {"both": (narrow, {"z": wide}), "past_key_values": (wide, wide)},
            "handed on": lambda: {"x": x, "narrow": narrow},
            "names that are taken": lambda: {1: narrow, "1": wide, "": narrow, "wide.weight": wide},
        }[self.how]()


OUTPUTS = {
    "tuple": {"output_0": 8, "output_1": 3},
    "logits last": {"states": 8, "logits": 3},
    "number between": {"output_2": 3, "output_3": 8},
    "place of the largest first": {"output_0": None, "output_1": 3},
    "nested": {"both.0": 3, "both.1.z": 8},
    "handed on": {"output_x": 6, "narrow": 3},
    "names that are taken": {"output_1": 3, "output_1_2": 8, "output": 3, "output_wide.weight": 8},
}


@pytest.mark.parametrize("how", OUTPUTS)
def test_every_output_is_compared_under_its_name(how, tmp_path):
    net = Several(how).eval()
    assert to_onnx(net, torch.zeros(1, 6), tmp_path / "file") < 1e-5
    assert to_torch_export(net, torch.zeros(1, 6), tmp_path / "program") < 1e-5
    found = shapes(tmp_path / "file")
    assert found.pop("x") == ["batch", 6]
    assert {name: axes[1] if len(axes) > 1 else None for name, axes in found.items()} == OUTPUTS[how]


def test_an_output_that_differs_is_named(tmp_path):
    class Half(Drifting):
        def forward(self, x: Tensor):
            return {"steady": self.layer(x), "drifting": super().forward(x)}

    with pytest.raises(ExportError, match="drifting: onnxruntime differs from the model by"):
        to_onnx(Half().eval(), torch.zeros(1, 4), tmp_path / "file")


def test_a_program_keeps_names_of_parameters_and_of_outputs(tmp_path):
    net, batch = network("bert")
    given = {key: value for key, value in batch.items() if key != "labels"}
    to_torch_export(net, given, tmp_path / "file.pt2")
    program = torch.export.load(tmp_path / "file.pt2")
    assert set(program.state_dict) <= set(dict(net.named_parameters()) | dict(net.named_buffers()))
    assert list(program.module()(**given)) == ["logits"]


class Loose(nn.Module):
    """Its arguments have no names of their own in ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, scale=2.0, **given: Tensor) -> dict[str, Tensor]:
        return {"y": self.layer(given["x"]) * scale + given["bias"], "bias": given["bias"]}


@pytest.mark.parametrize("write", [to_onnx, to_torch_export])
def test_keywords_without_a_parameter_of_their_own(write, tmp_path):
    net = Loose().eval()
    written = write(net, {"bias": torch.randn(1, 4), "x": torch.randn(1, 6)}, tmp_path / "file")
    assert written < 1e-5
    assert written.inputs == {"bias": ("batch", 4), "x": ("batch", 6)}
    assert "forward" not in vars(net)


# ---- what cannot be, in words ---------------------------------------------------------------------------------------


def test_a_precision_without_kernels_has_its_remedy(tmp_path):
    half = nn.Sequential(nn.Linear(4, 4)).to(torch.bfloat16)
    with pytest.raises(ExportError, match=r"computes in bfloat16, .* export model\.float\(\)"):
        to_onnx(half, torch.zeros(1, 4), tmp_path / "file")
    assert to_torch_export(half, torch.zeros(1, 4), tmp_path / "file") == 0
    to_onnx(half.float(), torch.zeros(1, 4), tmp_path / "file")


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("write", [to_onnx, to_torch_export])
def test_torchscript_and_wrong_examples_are_told(write, tmp_path):
    net = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ExportError, match="TorchScript, which cannot be traced again: export the network"):
        write(torch.jit.script(net), torch.zeros(1, 4), tmp_path / "file")
    with pytest.raises(ExportError, match="cannot be called with the example"):
        write(net, torch.zeros(1, 3), tmp_path / "file")
    assert "forward" not in vars(net)


class Bags(nn.Module):
    """Its first axes are not one batch: ids in a row, and where each bag begins."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(20, 6, mode="sum")

    def forward(self, ids: Tensor, starts: Tensor) -> Tensor:
        return self.table(ids, starts)


class Saying(nn.Module):
    def __init__(self, say) -> None:
        super().__init__()
        self.say = say

    def forward(self, x: Tensor):
        return self.say(x)


def test_what_has_no_batch_no_output_or_no_real_numbers_is_told(tmp_path):
    bags = (torch.arange(9), torch.tensor([0, 4]))
    with pytest.raises(ExportError, match="the model does not run on a batch of 3 made of the example"):
        to_torch_export(Bags().eval(), bags, tmp_path / "file")
    with pytest.raises(ExportError, match="returned a Normal, in which there is no tensor: export a module whose"):
        to_torch_export(Saying(lambda x: torch.distributions.Normal(x, 1.0)), torch.zeros(1, 4), tmp_path / "file")
    with pytest.raises(ExportError, match=r"complex numbers, .* torch\.view_as_real on what comes out"):
        to_onnx(Saying(torch.fft.rfft), torch.zeros(1, 4), tmp_path / "file")
    with pytest.raises(ExportError, match=r"cannot run the exported file: .*Erf.*; export model\.float\(\)"):
        to_onnx(nn.Sequential(nn.Linear(4, 4), nn.GELU()).double(), torch.zeros(1, 4), tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


class ManyAtOnce(nn.Module):
    """Takes another way from a batch of 64 on, as the upsampling of diffusion networks does."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        y = self.layer(x)
        return y.mT.contiguous().mT if y.shape[0] >= 64 else y


def test_a_model_that_asks_how_large_the_batch_is(tmp_path):
    torch.manual_seed(0)
    assert to_onnx(ManyAtOnce().eval(), torch.randn(1, 5, 6), tmp_path / "m.onnx") < 1e-5


@pytest.mark.parametrize("write", [to_onnx, to_torch_export])
@pytest.mark.parametrize("form", ["factored", "pivoted", "int8", "residual"])
def test_layers_of_every_form_are_written_in_that_form(form, write, tmp_path):
    torch.manual_seed(0)
    # an odd number of halves in a row
    network = nn.Sequential(nn.Linear(65, 256), nn.ReLU(), nn.Linear(256, 129)).eval()
    data = torch.randn(512, 65)
    made = plan(network, "bytes=0.4", data=data, forms=[form])
    assert {entry.form.value for entry in made.entries} >= {form}
    small = apply_(network, made)
    written = write(small, data[:1], tmp_path / "small")
    assert float(written) < 1e-5
    stored = sum(x.nbytes for x in (*small.parameters(), *small.buffers()))
    beside = 12_000 if write is to_onnx else 80_000
    assert (tmp_path / "small").stat().st_size < stored + beside  # nothing was multiplied out


@pytest.mark.parametrize("write", [to_onnx, to_torch_export])
def test_products_are_written_for_batches_of_any_size(write, tmp_path):
    """Whose layers choose by the batch between their factors and the product."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 10)
    )
    cdln_(overparametrize_(network, where="[03]"), "5", 2).eval()
    written = write(network, torch.randn(1, 3, 4, 4), tmp_path / "file")
    assert written < 1e-5
    assert written.inputs["input"][0] == "batch"


class Named(nn.Module):
    """Answers in ``how``, and keeps its last answer."""

    def __init__(self, how) -> None:
        super().__init__()
        self.layer, self.how = nn.Linear(4, 3), how

    def forward(self, x: Tensor) -> object:
        self.last = self.layer(x)
        return self.how(self.last, x)


Pair = namedtuple("Pair", "logits hidden")
HOOKED = {  # how the model answers, what a hook makes of it, and what is expected of the linear layer's output
    "where it is a tensor": (lambda y, x: y, lambda o: o * 2 if isinstance(o, Tensor) else o, lambda y: y * 2),
    "tensor": (lambda y, x: y, lambda o: o.softmax(-1), lambda y: y.softmax(-1)),
    "mapping": (lambda y, x: {"logits": y, "hidden": x}, lambda o: {"logits": o["logits"] * 2}, lambda y: y * 2),
    "namedtuple": (Pair, lambda o: o._replace(logits=o.logits * 2), lambda y: y * 2),
}


@pytest.mark.parametrize("write", [to_onnx, to_torch_export])
@pytest.mark.parametrize("kind", HOOKED)
def test_what_hooks_of_the_model_make_of_its_answer_is_written(kind, write, tmp_path):
    torch.manual_seed(0)
    how, hook, expected = HOOKED[kind]
    network, x = Named(how).eval(), torch.randn(2, 4)
    network.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    network.register_forward_hook(lambda module, args, output: hook(output))
    wanted = expected(network.layer(x + 1))
    assert write(network, x, tmp_path / "file") < 1e-5
    assert type(network.last) is Tensor  # and none of the tracer's
    if write is to_onnx:
        session = onnxruntime.InferenceSession((tmp_path / "file").read_bytes())
        found = torch.as_tensor(session.run(None, {"x": x.numpy()})[0])
    else:
        found = torch.export.load(tmp_path / "file").module()(x)
        found = found if isinstance(found, Tensor) else found["logits"]
    torch.testing.assert_close(found, wanted)
