"""What a stranger stumbles over on the first day: commands keep what is done, and know what an earlier one knew."""

import json
import sys
from pathlib import Path

import pytest
import torch
from commands import failed, rankfold, succeeded
from torch import nn

import rankfold as rf
from rankfold.costs import Example
from rankfold.export import to_folder, to_torch_export
from rankfold.store import Unfinished, load

NETWORKS = """
import torch
from torch import nn
from torch.utils.data import DataLoader

class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.hidden, self.head = nn.Embedding(7, 16), nn.Linear(16, 24), nn.Linear(24, 3)

    def forward(self, ids, mask):
        kept = mask.unsqueeze(-1)
        return self.head(torch.relu(self.hidden((self.table(ids) * kept).sum(1) / kept.sum(1))))

def masked():
    torch.manual_seed(0)
    return Masked()

def described():
    return masked()

described.example_input = {"ids": torch.zeros(2, 5, dtype=torch.int64), "mask": torch.ones(2, 5, dtype=torch.int64)}

def items(count, classes=3):
    generator = torch.Generator().manual_seed(count)
    ids = torch.randint(7, (count, 5), generator=generator)
    return [{"ids": row, "mask": (row > 0).long(), "labels": int(row.sum()) % classes} for row in ids]

def data():
    return items(60), items(30)

def mislabelled():
    return items(60, 5), items(30, 5)

def loaders():
    return tuple(DataLoader(items(count), batch_size=16) for count in (60, 20))

def normed():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))

normed.example_input = torch.zeros(1, 8)
"""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    (tmp_path / "firstday.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # the tests import it too, each when it is run alone
    monkeypatch.delitem(sys.modules, "firstday", raising=False)
    return tmp_path


def masked() -> nn.Module:
    import firstday

    return firstday.masked()


def planned(model: str = "firstday:masked", out: str = "plan.json") -> None:
    succeeded(
        "plan", model, "--data", "firstday:data", "--budget", "params=0.7", "--samples", 40, "--objective", "teacher",
        "-o", out,
    )  # fmt: skip


def test_what_is_factored_is_saved_although_labels_do_not_fit(here):
    planned()
    line = failed("apply", "firstday:masked", "plan.json", "--data", "firstday:mislabelled", "-o", "applied")
    assert "label 4 is outside 0 … 2" in line
    assert line.endswith("; the factored network is saved in applied, but not repaired")
    stored = load("applied", masked())
    assert stored.plan.changed
    assert stored.bottlenecks is None
    succeeded("apply", "firstday:masked", "plan.json", "--data", "firstday:data", "-o", "applied")
    assert load("applied", masked()).bottlenecks is not None


def test_a_plan_is_carried_out_without_data_and_without_an_input(here):
    planned()
    said = succeeded("apply", "firstday:masked", "plan.json", "-o", "applied")
    plan = load("applied", masked()).plan
    assert (said["params"], said["flops"]) == (plan.after.params, plan.after.flops)


def test_a_plan_that_needs_no_data_is_made_from_the_input_of_the_factory(here):
    asked = ("--method", "truncate", "--budget", "params=0.7", "-o", "plan.json")
    said = succeeded("plan", "firstday:described", *asked)
    assert said["after"]["params"] <= 0.7 * said["before"]["params"]
    assert "attribute example_input" in failed("plan", "firstday:masked", *asked)
    line = failed("plan", "firstday:described", *asked[2:])  # by method project
    assert "no data were given: give --data package.module:function, a function that returns (train, validation" in line


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("shapes.pt", "no data are read from a file of this kind: have it read by a function that returns (train,"),
        (
            "words.txt",
            "for a model of transformers that reads text give it as text:words.txt; else have it read by",
        ),
        ("ids.npy", "give it as tokens:ids.npy"),
    ],
)
def test_a_file_of_data_is_told_how_it_is_read(here, name, remedy):
    Path(name).write_bytes(b"x")
    done = rankfold("plan", "firstday:masked", "--data", name, "--budget", "params=0.7", "-o", "p.json")
    assert done.exit_code in (1, 2)
    assert remedy in " ".join(done.stderr.replace("│", " ").split())


def test_a_test_split_that_cannot_be_measured_leaves_what_is_compressed(here):
    with Path("firstday.py").open("a") as file:
        file.write("\ndef odd():\n    return items(60), items(30), items(30, 5)\n")
    asked = ("--data", "firstday:odd", "--budget", "params=0.7", "--samples", 40, "--no-curve", "-o", "small")
    line = failed("compress", "firstday:masked", *asked)
    assert "test data: label 4 is outside 0 … 2" in line
    assert line.endswith("; the compressed network is saved in small")
    with pytest.warns(Unfinished, match="the measurement on the test split is still to come"):
        assert load("small", masked()).plan.changed


def test_an_input_of_several_tensors_is_known_from_the_manifest(here):
    planned()
    succeeded("apply", "firstday:masked", "plan.json", "--data", "firstday:data", "-o", "applied")
    noted = json.loads(Path("applied/manifest.json").read_text())["notes"]["input"]
    assert noted["kwargs"]["mask"] == {"shape": [5], "dtype": "int64", "fill": 1}
    said = succeeded(
        "export", "applied", "--model", "firstday:masked", "--to", "torch-export", "-o", "small.pt2"
    )  # fmt: skip
    assert said["max_abs_difference"] < 1e-5


def test_an_input_may_be_a_dict_on_the_factory(here):
    planned()
    succeeded("apply", "firstday:described", "plan.json", "-o", "applied")
    assert json.loads(Path("applied/manifest.json").read_text())["notes"]["input"]["kwargs"].keys() == {"ids", "mask"}


def test_two_loaders_are_train_and_validation(here):
    asked = ("firstday:masked", "--data", "firstday:loaders", "--budget", "params=0.7", "--samples", 40, "--no-curve")
    found = succeeded("compress", *asked, "-o", "small")
    there = ("evaluate", "small", "--model", "firstday:masked", "--data", "firstday:loaders")
    assert "there is no test part: give --split validation" in failed(*there)
    assert succeeded(*there, "--split", "validation")["accuracy"] == found["compressed"]["accuracy"]


@pytest.mark.parametrize("network", ["masked", "normed"])
def test_batchnorm_is_spoken_of_where_there_is_one(here, network):
    import firstday

    model = getattr(firstday, network)().eval()
    example = (torch.zeros(1, 5, dtype=torch.int64), torch.ones(1, 5)) if network == "masked" else torch.zeros(1, 8)
    rf.plan(model, "params=0.8", "truncate", example=example).save("plan.json")
    said = rankfold("apply", f"firstday:{network}", "plan.json", "-o", "applied")
    assert said.exit_code == 0, said.stderr
    assert ("BatchNorm" in said.stderr) == (network == "normed")


# ---- one input, noted and made again ---------------------------------------------------------------------------------

INPUTS = [
    torch.randn(3, 4, 5),
    torch.arange(6).reshape(2, 3),
    (torch.randn(2, 3), torch.ones(2, 7, dtype=torch.bool)),
    (torch.randn(2, 3), torch.randn(5, 3)),
    {"ids": torch.arange(8).reshape(2, 4), "mask": torch.ones(2, 4), "cached": False, "scale": None},
]


@pytest.mark.parametrize("given", INPUTS, ids=range(len(INPUTS)))
def test_an_input_is_noted_and_made_again(given):
    example = Example.of(given)
    again = Example.from_note(json.loads(json.dumps(example.noted())))
    assert again is not None
    assert again.samples == 1
    assert len(again.args) == len(example.args)
    assert again.kwargs.keys() == example.kwargs.keys()
    for before, after in zip(
        (*example.args, *example.kwargs.values()), (*again.args, *again.kwargs.values()), strict=True
    ):
        if not isinstance(before, torch.Tensor):
            assert after == before
            continue
        batched = before.shape[0] == example.samples
        assert after.shape == ((1, *before.shape[1:]) if batched else before.shape)
        assert after.dtype == before.dtype
        if not before.is_floating_point():
            assert int(after.max()) == int(before.max())


@pytest.mark.parametrize(
    "note",
    [
        None, 3, [], {}, {"shape": 3, "dtype": "float32"}, {"shape": [True], "dtype": "float32"},
        {"shape": [2], "dtype": "load"}, {"shape": [1 << 20] * 3, "dtype": "float32"},
        {"shape": [-1], "dtype": "int64"},
        {"args": 3, "kwargs": {}}, {"args": [{"value": []}], "kwargs": {}}, {"args": [], "kwargs": {}},
        {"shape": [2], "dtype": "int64", "fill": "x"},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_note_of_an_input_is_none(note):
    assert Example.from_note(note) is None


def test_nested_inputs_are_not_noted():
    assert Example.of((torch.randn(2, 3), [torch.randn(2, 3)])).noted() is None


def test_exported_from_a_note_computes_the_same(tmp_path):
    model = nn.Sequential(nn.Linear(4, 3)).eval()
    example = Example.from_note(Example.of(torch.randn(2, 4)).noted())
    assert to_torch_export(model, example, tmp_path / "x.pt2") < 1e-6


def test_what_is_typed_wrong_is_told_with_its_remedy(here, tmp_path):
    net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    plan = rf.plan(net, rf.Ranks({"0": 2}), "truncate", example=torch.zeros(1, 16))
    rf.save(rf.apply_(net, plan), plan, "small", notes={"model": "networks:described"})
    wrong = rankfold("export", "small", "--to", "onxx", "-o", "x.onnx")
    assert wrong.exit_code == 2
    assert "Error: Invalid value for '--to': 'onxx' is not one of 'onnx', 'torch-export', 'dense'." in wrong.stderr
    for name, way in (("gguf", "convert_hf_to_gguf.py"), ("OpenVINO", "the file that --to onnx writes")):
        told = " ".join(rankfold("export", "small", "--to", name, "-o", "x").stderr.split())
        assert f"For {name}: " in told
        assert f"{way}" in told
        assert "(docs/runtimes.md)" in told
    assert "nowhere: there is no such directory: give one" in failed("export", "nowhere", "--to", "onnx", "-o", "x")
    assert "none.json: No such file or directory: give a plan.json" in failed("show", "none.json")


def test_a_network_that_is_no_folder_is_told_how_to_be_ordinary_again(tmp_path):
    net = nn.Sequential(nn.Linear(16, 16))
    with pytest.raises(ValueError, match=r"this is a Sequential: --to onnx or .* \.weight of each factored layer"):
        to_folder(net, torch.zeros(1, 16), tmp_path / "dense")
    small = rf.apply_(net, rf.plan(net, rf.Ranks({"0": 2}), "truncate", example=torch.zeros(1, 16)))
    x = torch.randn(4, 16)  # what the message promises
    torch.testing.assert_close(nn.functional.linear(x, small[0].weight, small[0].bias), small(x))
