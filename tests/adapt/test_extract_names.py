"""Which tensors of a checkpoint belong to the model, and a model that is run with those of a file."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rankfold import BudgetError
from rankfold.adapt import extract
from rankfold.adapt.extraction.named import Named
from rankfold.adapt.extraction.running import running_model
from rankfold.run.disk.tensors import Checkpoint


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.fc(x))


def tuned_from(base: nn.Module, name: str = "fc.weight") -> nn.Module:
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.get_parameter(name).add_(0.1 * torch.randn(8, 1) @ torch.randn(1, 8))
    return tuned


def two_towers(base: nn.Module) -> dict[str, Tensor]:
    """The model behind "text.", and another one that has a norm of the same name."""
    state = {f"text.{name}": value for name, value in tuned_from(base).state_dict().items()}
    state["text.norm.weight"] = torch.full((8,), 2.0)
    other = {"norm.weight": torch.full((8,), 7.0), "norm.bias": torch.zeros(8), "x": torch.zeros(3)}
    return {f"vision.{name}": value for name, value in other.items()} | state


def test_one_prefix_is_told_from_all_names():
    torch.manual_seed(0)
    base = Normed()
    found = extract(base, two_towers(base), "rank=1", whole=["norm"])
    assert found.adapter.whole["norm.weight"].tolist() == [2.0] * 8
    assert [item.name for item in found.left_out] == ["vision.norm.bias", "vision.norm.weight", "vision.x"]


def test_what_belongs_to_the_model_does_not_depend_on_the_order_of_sets(tmp_path):
    torch.manual_seed(0)
    base = Normed()
    save_file(base.state_dict(), tmp_path / "base.safetensors")
    save_file(two_towers(base), tmp_path / "tuned.safetensors")
    code = (
        "import json, torch\nfrom torch import nn\nimport rankfold as rf\n"
        "model = nn.ModuleDict({'fc': nn.Linear(8, 8), 'norm': nn.LayerNorm(8)})\n"
        "found = rf.extract('base.safetensors', 'tuned.safetensors', 'rank=1', model=model, whole=['norm'])\n"
        "print(json.dumps([found.adapter.whole['norm.weight'][0].item(), found.moved]))"
    )
    said = set()
    for seed in "0123":
        how = {"cwd": tmp_path, "env": os.environ | {"PYTHONHASHSEED": seed}, "capture_output": True, "text": True}
        said.add(subprocess.run([sys.executable, "-c", code], check=True, **how).stdout)
    assert [json.loads(each)[0] for each in said] == [2.0]


def test_two_copies_of_the_model_are_refused_unless_one_has_its_names():
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(8, 8))
    tuned, other = (tuned_from(base, "0.weight").state_dict() for _ in range(2))
    copies = {f"{word}.{name}": each[name] for name in other for word, each in (("model", tuned), ("ema", other))}
    said = (
        r"the names in a state dict are those of the model with 'model\.' in front, and as many are with 'ema\.' in "
        "front: give a checkpoint that holds the tensors of one of the two alone"
    )
    with pytest.raises(ValueError, match=said):
        extract(base, copies, "rank=1")
    found = extract(base, tuned | {f"ema.{name}": value for name, value in other.items()}, "rank=1")
    a, b = found.adapter.pairs["0"]
    torch.testing.assert_close(b @ a, tuned["0.weight"] - base[0].weight.detach(), rtol=1e-4, atol=1e-5)
    towers = nn.ModuleDict({"query": nn.Linear(8, 8), "document": nn.Linear(8, 8)})
    with pytest.raises(ValueError, match=r"with 'query\.' left off, and as many are with 'document\.' left off"):
        Named(Checkpoint(nn.Linear(8, 8)), towers)


class Tokens(nn.Module):
    def __init__(self, tokens: int = 10) -> None:
        super().__init__()
        self.table, self.fc, self.head = nn.Embedding(tokens, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.fc(self.table(tokens)).mean(1))


def test_new_tokens_are_run_with_their_rows():
    torch.manual_seed(0)
    base, data = Tokens(), torch.randint(0, 12, (32, 5))  # new tokens among them
    state = tuned_from(base).state_dict()
    state["table.weight"] = torch.cat([state["table.weight"], torch.randn(2, 8)])
    whole = Tokens(12)
    whole.load_state_dict(state)
    found = extract(base, state, "rank=1", data=data)
    wanted = extract(base, whole, "rank=1", data=data)
    assert found.adapter.ranks == wanted.adapter.ranks == {"fc": 1, "head": 0}
    torch.testing.assert_close(found.adapter.pairs["fc"], wanted.adapter.pairs["fc"])
    assert base.table.weight.shape == (10, 8)


def test_what_the_tuned_file_lacks_is_that_of_the_base():
    torch.manual_seed(0)
    base, network, data = Tokens(), Tokens(), torch.randint(0, 10, (32, 5))
    tuned = tuned_from(base)
    state = {name: value for name, value in tuned.state_dict().items() if not name.startswith("table")}
    with torch.no_grad():
        network.table.weight.fill_(100.0)  # of a network given as model=, whose own weights do not matter
    first, second = (Named(Checkpoint(each), network) for each in (base, state))
    torch.testing.assert_close(running_model(state, network, second, first)(data), tuned.eval()(data))
    by_file = extract(base.state_dict(), state, "rank=1", model=network, data=data)
    by_module = extract(base, tuned, "rank=1", data=data)
    torch.testing.assert_close(by_file.adapter.pairs["fc"], by_module.adapter.pairs["fc"])
    without = {name: value for name, value in base.state_dict().items() if not name.startswith("table")}
    with pytest.raises(ValueError, match=r"a state dict has no tensor table\.weight, and with data= the whole model"):
        extract(without, state, "rank=1", model=network, data=data)


def test_of_tied_tensors_one_is_enough():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Embedding(8, 8), nn.Linear(8, 8), nn.Linear(8, 8, bias=False))
    network[2].weight = network[0].weight
    state = {name: value + 1 for name, value in network.state_dict().items() if name != "2.weight"}
    named, other = Named(Checkpoint(state), network), Named(Checkpoint(network), network)
    running = running_model(state, network, named, other)
    assert torch.equal(running[2].weight, state["0.weight"])
    assert running[2].weight is running[0].weight


def test_factors_of_float64_are_kept_in_it():
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(8, 8)).double()
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned[0].weight.add_(torch.randn(8, 8, dtype=torch.float64))
    change = (tuned[0].weight - base[0].weight).detach()
    for data in (None, torch.randn(64, 8, dtype=torch.float64)):
        a, b = extract(base, tuned, "error=1e-10", data=data).adapter.pairs["0"]
        assert float((b @ a - change).norm() / change.norm()) < 1e-10


def test_an_error_below_what_rounding_leaves_is_refused_as_that():
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(8, 8))
    tuned = copy.deepcopy(base)
    left, right = (torch.linalg.qr(torch.randn(8, 8))[0] for _ in range(2))
    with torch.no_grad():
        tuned[0].weight.add_(left * torch.logspace(0, -7, 8) @ right)
    with pytest.raises(BudgetError, match="error=1e-09 cannot be told from the rounding of the weights"):
        extract(base, tuned, "error=1e-9")
