"""Saved models: bit-exact round trips, and every kind of damage refused in one line."""

import copy
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load as from_safetensors
from safetensors.torch import load_file, save_file
from torch import nn

import rankfold as rf
from rankfold.run.disk.container import metadata, packed
from rankfold.run.disk.files import sha256
from rankfold.store import read_manifest

FILES = ("manifest.json", "plan.json", "model.safetensors")
RANKS = rf.Ranks({"body": 3, "tail": 2})


class Network(nn.Module):
    """Two factored layers, a tied head, a BatchNorm with buffers, a buffer that is not saved."""

    def __init__(self, width: int = 8, norm: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.body = nn.Linear(width, 12)
        self.norm = nn.BatchNorm1d(12) if norm else nn.Identity()
        self.tail = nn.Linear(12, width)
        self.head = nn.Linear(width, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.tail(torch.relu(self.norm(self.body(self.embed(tokens))))))


class WithScale(Network):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()), persistent=False)


TOKENS = torch.arange(11)


def network(seed: int = 0, dtype: torch.dtype = torch.float32, kind: Callable[[], nn.Module] = Network) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind().to(dtype).eval()


def compressed(dtype: torch.dtype = torch.float32, seed: int = 0, **ranks: int) -> tuple[nn.Module, rf.Plan]:
    model = network(seed, dtype)
    plan = rf.plan(model, rf.Ranks(ranks) if ranks else RANKS, "truncate", [TOKENS])
    return rf.apply_(model, plan), plan


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, nn.Module]:
    model, plan = compressed()
    return rf.save(
        model, plan, tmp_path_factory.mktemp("saved") / "model", notes={"model": "net", "accuracy": 0.5}
    ), model


@pytest.fixture
def saved(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole[0], tmp_path / "model"))


def refused(directory: Path, match: str, model: nn.Module | None = None) -> None:
    """Refused in one line that names the directory, with the model left as it was."""
    model = network(7) if model is None else model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modules = list(model.modules())
    with pytest.raises(rf.StoreError, match=match) as caught:
        rf.load(directory, model)
    assert "\n" not in str(caught.value)
    assert str(directory) in str(caught.value)
    assert list(model.modules()) == modules
    for name, value in model.state_dict().items():
        assert value.is_meta or torch.equal(value, before[name])


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(
        value.dtype == theirs[name].dtype and torch.equal(value, theirs[name]) for name, value in ours.items()
    )


# ---- round trips -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("place", ["cpu", "meta"])
def test_what_is_loaded_is_what_was_saved_to_the_bit(tmp_path, dtype, place):
    model, plan = compressed(dtype)
    notes = {"model": "net", "ranks": (3, 2), "accuracy": 0.5}
    rf.save(model, plan, tmp_path, notes=notes)
    found = rf.load(tmp_path, network(7).to(place))  # built in float32, whatever was saved
    assert same(found.model, model)
    assert torch.equal(found.model(TOKENS), model(TOKENS))
    assert not any(tensor.is_meta for tensor in (*found.model.parameters(), *found.model.buffers()))
    assert found.plan == plan
    assert found.notes == {"model": "net", "ranks": [3, 2], "accuracy": 0.5}
    assert read_manifest(tmp_path)["notes"] == found.notes


@pytest.mark.parametrize("place", ["cpu", "meta"])
def test_tied_tensors_are_saved_once_and_tied_again(whole, place):
    directory, _ = whole
    stored = load_file(directory / "model.safetensors")
    assert ("embed.weight" in stored) != ("head.weight" in stored)
    model = rf.load(directory, network(7).to(place)).model
    assert model.head.weight is model.embed.weight
    with torch.no_grad():
        model.embed.weight.zero_()
    assert not model(TOKENS).any()


class Untied(Network):
    def __init__(self) -> None:
        super().__init__()
        self.head.weight = nn.Parameter(self.embed.weight.detach().clone())


def test_what_was_tied_is_tied_in_a_network_that_does_not_tie_it(whole):
    directory, model = whole
    found = rf.load(directory, network(7, kind=Untied))
    assert found.model.head.weight is found.model.embed.weight
    assert torch.equal(found.model(TOKENS), model(TOKENS))
    assert sum(p.numel() for p in found.model.parameters()) == found.plan.after.params


def test_values_that_differ_do_not_fit_into_one_tensor(tmp_path):
    model = network(kind=Untied)
    plan = rf.plan(model, RANKS, "truncate", example=TOKENS)
    directory = rf.save(rf.apply_(model, plan), plan, tmp_path / "model")
    tied = rf.load(directory, network(7)).model  # equal values do
    assert torch.equal(tied(TOKENS), model(TOKENS))
    with torch.no_grad():
        model.head.weight.add_(1)
    rf.save(model, plan, directory)
    refused(directory, "embed.weight and head.weight are one tensor in the model, and two that differ", network(7))
    assert torch.equal(rf.load(directory, network(7, kind=Untied)).model(TOKENS), model(TOKENS))


def test_the_files_are_readable_without_this_library(whole):
    directory, model = whole
    tensors = load_file(directory / "model.safetensors")
    assert tensors["body.down.weight"].shape == (3, 8)
    assert tensors["body.up.weight"].shape == (12, 3)
    pair = tensors["body.up.weight"] @ tensors["body.down.weight"]
    torch.testing.assert_close(pair, model.body.weight.detach().clone())
    assert torch.equal(tensors["tail.up.bias"], model.tail.up.bias)
    assert {e["site"]: e["rank"] for e in json.loads((directory / "plan.json").read_text())["entries"]}["tail"] == 2
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["files"] == {name: sha256((directory / name).read_bytes()) for name in FILES[1:]}


def test_training_can_go_on_after_loading(whole):
    model = network(7)
    model.tail.requires_grad_(False)
    rf.load(whole[0], model)
    model(TOKENS).sum().backward()
    assert model.body.down.weight.grad is not None
    assert model.tail.up.weight.grad is None


def test_saving_again_replaces_and_leaves_no_other_file(saved):
    model, plan = compressed(seed=1)
    rf.save(model, plan, saved)
    assert sorted(path.name for path in saved.iterdir()) == sorted(FILES)
    assert same(rf.load(saved, network(7)).model, model)


def test_what_cannot_be_saved_is_named(tmp_path):
    model, plan = compressed()
    with pytest.raises(rf.StoreError, match=r"embed.weight: it is on the meta device.*load the weights first"):
        rf.save(copy.deepcopy(model).to("meta"), plan, tmp_path / "a")
    with pytest.raises(
        rf.StoreError, match="body: it is factored in the plan and not in the model: apply the plan first"
    ):
        rf.save(network(), plan, tmp_path / "a")
    with pytest.raises(
        rf.StoreError,
        match=r"0.weight: it has no shape yet, as a lazy module before its first call: run the model once",
    ):
        rf.save(nn.Sequential(nn.LazyLinear(3)), plan, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(rf.StoreError, match="is a file: give a directory"):
        rf.save(model, plan, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_weights_of_somebody_else_are_not_replaced(saved, tmp_path):
    model, plan = compressed()
    (tmp_path / "theirs").mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "theirs" / "model.safetensors")
    before = (tmp_path / "theirs" / "model.safetensors").read_bytes()
    with pytest.raises(
        rf.StoreError, match=r"model\.safetensors is there already, and rankfold did not write it: give"
    ):
        rf.save(model, plan, tmp_path / "theirs")
    assert [file.read_bytes() for file in (tmp_path / "theirs").iterdir()] == [before]
    (saved / "manifest.json").unlink()  # as after a crash before the last file of a first save
    assert same(rf.load(rf.save(model, plan, saved), network(7)).model, model)


@pytest.mark.parametrize("file", ["manifest.json", "model.safetensors"])
def test_a_manifest_of_somebody_else_vouches_for_nothing(file, tmp_path):
    model, plan = compressed()
    theirs = {"name": "an application", "files": {"icon.png": "", "model.safetensors": ""}}
    (tmp_path / "manifest.json").write_text(json.dumps(theirs))
    (tmp_path / "icon.png").write_bytes(b"theirs")
    if file == "model.safetensors":
        (tmp_path / "manifest.json").unlink()
        (tmp_path / file).write_bytes(b"theirs")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(rf.StoreError, match=f"{file} is there already, and rankfold did not write it"):
        rf.save(model, plan, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_is_not_in_the_way_stays(tmp_path):
    """Of an ordinary network no configuration is written, so that one of the user's own may lie there."""
    model, plan = compressed()
    (tmp_path / "config.json").write_text("{}")
    rf.save(model, plan, tmp_path)
    rf.save(model, plan, tmp_path)
    assert (tmp_path / "config.json").read_text() == "{}"


def test_a_directory_whose_run_is_not_finished_is_told_so(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "request.json").write_text("{}")
    with pytest.raises(rf.StoreError, match="the run in it is not finished: give the same command again"):
        rf.load(tmp_path)


def test_without_a_plan_the_way_to_one_is_told(tmp_path):
    model = nn.Sequential(nn.Linear(20, 18), nn.ReLU(), nn.Linear(18, 17))
    ranks = {"0": 4, "2": 4}
    rf.dlrt_(model, rank=4)
    small = rf.fold_(copy.deepcopy(model), keep=True)
    with pytest.raises(rf.StoreError, match=r"fold it without keep, then rankfold\.plan"):
        rf.save(small, None, tmp_path / "small")
    with pytest.raises(rf.StoreError, match=r"got str: .* fold it without keep, then rankfold\.plan"):
        rf.save(small, str(tmp_path / "small"))
    x = torch.randn(3, 20)
    plan = rf.plan(rf.fold_(model), rf.Ranks(ranks), "truncate", example=x)  # as the message says
    again = rf.apply_(model, plan)
    torch.testing.assert_close(again(x), small(x), rtol=1e-4, atol=1e-5)
    assert {name: value.shape for name, value in again.state_dict().items()} == {
        name: value.shape for name, value in small.state_dict().items()
    }
    assert rf.save(again, plan, tmp_path / "small").exists()
    with pytest.raises(rf.StoreError, match="a directory behind the plan"):
        rf.save(again, plan)


# ---- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.data())
def test_any_flipped_bit_is_noticed(saved, name, draw):
    good = (saved / name).read_bytes()
    position = draw.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[position] ^= 1 << draw.draw(st.integers(0, 7))
    (saved / name).write_bytes(bad)
    try:
        refused(saved, r"damaged|no model|format|own sha256|contents")
    finally:
        (saved / name).write_bytes(good)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("part", [0.0, 0.3, 0.99])
def test_truncated_files_are_refused(saved, name, part):
    data = (saved / name).read_bytes()
    (saved / name).write_bytes(data[: int(part * len(data))])
    refused(saved, f"{name}: damaged")


@pytest.mark.parametrize("name", FILES)
def test_missing_files_are_named(saved, name):
    (saved / name).unlink()
    refused(saved, f"{name}: No such file" if name != "manifest.json" else "there is no manifest.json")


def test_without_the_manifest_a_flipped_bit_would_load_silently(saved):
    """Why the hashes are there: safetensors alone takes a damaged weight for a weight."""
    file = saved / "model.safetensors"
    whole = file.read_bytes()
    data, good = bytearray(whole), from_safetensors(whole)
    data[-1] ^= 0x40  # inside the tensor data
    bad = from_safetensors(bytes(data))  # no complaint
    assert bad.keys() == good.keys()
    assert any(not torch.equal(good[name], bad[name]) for name in good)
    file.write_bytes(data)
    refused(saved, r"model.safetensors: damaged, or changed since it was saved .*: save again, or put the file back$")
    file.write_bytes(whole)
    plan = saved / "plan.json"
    plan.write_text(plan.read_text().replace('"rank"', ' "rank"', 1))
    refused(saved, r"plan.json: damaged, or changed .*; an edited plan is carried out anew: rankfold apply")


def lie(directory: Path, change: Callable[[dict], None], sign: bool = True) -> None:
    """Change the manifest, and (as a forger would) its own hash."""
    manifest = json.loads((directory / "manifest.json").read_text())
    change(manifest)
    if sign:
        rest = {key: value for key, value in manifest.items() if key != "sha256"}
        manifest["sha256"] = sha256(json.dumps(rest, sort_keys=True).encode())
    (directory / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("sign", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["files"].update({"model.safetensors": "0" * 64}),
        lambda m: m["files"].update({"plan.json": None}),
        lambda m: m["files"].update({"../plan.json": m["files"].pop("plan.json")}),
        lambda m: m["files"].pop("model.safetensors"),
        lambda m: m.update(files=[]),
        lambda m: m.update(format=99),
        lambda m: m.pop("format"),
    ],
)
def test_a_lying_manifest_is_refused(saved, change, sign):
    lie(saved, change, sign)
    refused(saved, "damaged|no model directory that this version reads")


def test_notes_cannot_be_changed_unnoticed(saved):
    lie(saved, lambda m: m["notes"].update(accuracy=0.99), sign=False)
    refused(saved, "its contents and its own sha256 disagree")


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b"{}", b"\xff\xfe", b"hello", b'{"format": 1}'])
def test_foreign_manifests_are_refused(saved, text):
    (saved / "manifest.json").write_bytes(text)
    refused(saved, "manifest.json: damaged|no model directory")


def test_foreign_directories_are_refused(tmp_path, saved):
    refused(tmp_path / "absent", "absent: there is no such directory: give one that rankfold.save")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"\xff\xd8")
    refused(tmp_path / "photos", "no model that rankfold saved \\(there is no manifest.json\\): give a directory")
    refused(saved / "plan.json", "plan.json is a file: give a directory")


@pytest.mark.parametrize("content", [b"", b"these are no tensors" * 9, (2**60).to_bytes(8, "little") + b"{}"])
def test_tensors_that_are_none_are_refused_even_with_the_right_hash(saved, content):
    (saved / "model.safetensors").write_bytes(content)
    lie(saved, lambda m: m["files"].update({"model.safetensors": sha256(content)}))
    refused(saved, "damaged, or not written by rankfold")


@pytest.mark.parametrize("floating", [True, False])
def test_numbers_of_another_kind_are_refused_even_with_the_right_hash(saved, floating):
    """Whole numbers in place of weights, and narrower ones in place of an order or a count."""
    from safetensors.torch import load_file

    state = load_file(saved / "model.safetensors")
    name = next(key for key, value in state.items() if value.is_floating_point() == floating)
    kind, needed = (torch.int64, "float32") if floating else (torch.int16, "int64")
    content = packed({**state, name: state[name].to(kind)}, metadata((saved / "model.safetensors").read_bytes()))
    (saved / "model.safetensors").write_bytes(content)
    lie(saved, lambda m: m["files"].update({"model.safetensors": sha256(content)}))
    refused(saved, f"{name} is {str(kind).removeprefix('torch.')}, and the model needs {needed}")


@pytest.mark.parametrize("wrong", [-4, 12, None])
def test_orders_that_are_none_are_refused_even_with_the_right_hash(tmp_path, wrong):
    """Rows that a pivoted layer does not have would be read from memory of others, or twice."""
    from safetensors.torch import load_file

    model = network()
    plan = rf.plan(model, "params=0.8", "truncate", [TOKENS], forms=["pivoted"], where="body")
    directory = rf.save(rf.apply_(model, plan), plan, tmp_path / "model")
    state = load_file(directory / "model.safetensors")
    order = state["body.up.order"]
    order[0] = order[1] if wrong is None else wrong
    content = packed(state, metadata((directory / "model.safetensors").read_bytes()))
    (directory / "model.safetensors").write_bytes(content)
    lie(directory, lambda m: m["files"].update({"model.safetensors": sha256(content)}))
    refused(directory, "body.up.order must name 12 different rows from 0 to 11, and does not")


def test_a_plan_that_is_none_is_refused_even_with_the_right_hash(saved):
    (saved / "plan.json").write_bytes(b"{}")
    lie(saved, lambda m: m["files"].update({"plan.json": sha256(b"{}")}))
    refused(saved, "damaged, or not written by rankfold .*not a plan")


# ---- other models ----------------------------------------------------------------------------------------------------


def test_another_architecture_is_refused_and_left_as_it_was(whole):
    directory, model = whole
    refused(directory, "saved from another model: .*no site named", nn.Sequential(nn.Linear(8, 8)))
    refused(
        directory, r"saved from another model: embed \(Embedding 9×11\): the plan was made for a", Network(9).eval()
    )
    refused(
        directory,
        r"saved from another model: 0 tensors are missing.*5 do not belong to this one \(norm",
        Network(norm=False),
    )
    refused(directory, "saved from another model", copy.deepcopy(model))  # compressed already
    refused(directory, "saved from another model", network(7, kind=Network).to("meta").body)


def test_lazy_models_are_asked_to_run_once(saved):
    model = network()
    model.body = nn.LazyLinear(12)
    with pytest.raises(rf.StoreError, match=r"body.weight: it has no shape yet.*run the model once"):
        rf.load(saved, model)


def test_buffers_that_are_not_saved_are_asked_for_on_a_real_device(saved):
    assert rf.load(saved, network(7, kind=WithScale)).model.scale == 1
    refused(saved, "scale is not saved .*build it on a real device", network(7, kind=WithScale).to("meta"))


# ---- crashes while saving --------------------------------------------------------------------------------------------


def crash_at(monkeypatch, name: str, turn: int) -> list[int]:
    """The ``turn``-th call of ``os.<name>`` raises as a full disk does; the list counts the calls."""
    real, calls = getattr(os, name), []

    def failing(*args, **kwargs):
        calls.append(len(calls))
        if len(calls) == turn:
            raise OSError(28, "No space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr(os, name, failing)
    return calls


@pytest.mark.parametrize("name", ["replace", "fsync", "fdopen"])
def test_a_crash_while_saving_leaves_the_old_model_or_the_new_one_whole(whole, tmp_path, monkeypatch, name):
    _, old = whole
    new, plan = compressed(seed=1, body=5)
    outcomes = []
    for turn in range(1, 30):
        directory = Path(shutil.copytree(whole[0], tmp_path / f"{turn}"))
        with monkeypatch.context() as patch:
            calls = crash_at(patch, name, turn)
            try:
                rf.save(new, plan, directory)
                raised = False
            except OSError:
                raised = True
        found = rf.load(directory, network(7)).model
        assert same(found, new) or (raised and same(found, old))
        outcomes.append(same(found, old))
        rf.save(new, plan, directory)  # and the next attempt ends well, and cleans up
        assert same(rf.load(directory, network(7)).model, new)
        assert sorted(path.name for path in directory.iterdir()) == sorted(FILES)
        if len(calls) < turn:
            break
    assert len(calls) < turn, "every call has failed once"
    assert outcomes[0], "a crash at the start leaves the old model"
    assert not outcomes[-1]


def test_a_writer_in_place_would_lose_the_old_model(saved, monkeypatch):
    """The check above rejects it: half of the new tensors over the old file."""
    new, plan = compressed(seed=1)
    rf.save(new, plan, saved.with_name("other"))
    data = (saved.with_name("other") / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(data[: len(data) // 2])
    refused(saved, "damaged")


def test_a_plan_of_another_model_does_not_pass_for_this_one(tmp_path):
    model, plan = compressed()
    other = replace(plan, entries=tuple(replace(e, rank=1) if e.site == "body" else e for e in plan.entries))
    rf.save(model, other, tmp_path)
    refused(tmp_path, r"body.down.weight has the shape \(3, 8\), and the model needs \(1, 8\)")


@pytest.mark.parametrize(
    ("notes", "said"),
    [({"acc": torch.tensor(1.0)}, "note 'acc' cannot"), (["q"], "got a list"), ({(1, 2): 3}, r"note \(1, 2\) cannot")],
    ids=["tensor", "list", "key"],
)
def test_notes_that_are_no_json_are_refused_before_anything_is_written(notes, said, tmp_path):
    model, plan = compressed()
    with pytest.raises(rf.StoreError, match=said):
        rf.save(model, plan, tmp_path / "small", notes=notes)
    assert not (tmp_path / "small").exists()


class Expanded(Network):
    """With buffers whose entries lie in one place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("same", torch.rand(1).expand(5))
        self.register_buffer("rows", torch.rand(3).expand(4, 3))
        self.register_buffer("turned", torch.rand(3, 4).t())


def test_expanded_buffers_are_filled(tmp_path):
    model = network(kind=Expanded)
    plan = rf.plan(model, RANKS, "truncate", example=TOKENS)
    rf.save(rf.apply_(model, plan), plan, tmp_path / "small")
    fresh = network(seed=1, kind=Expanded)
    turned = fresh.turned
    loaded = rf.load(tmp_path / "small", fresh).model
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    assert loaded.turned is turned  # what can be written into stays the same tensor


@torch.no_grad()
def test_a_network_compressed_twice_says_what_to_give(tmp_path):
    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 4))

    x = torch.randn(1, 16)
    once = rf.apply_(net(), rf.plan(net(), rf.Ranks({"0": 6}), "truncate", example=x))
    rf.save(once, first := rf.plan(net(), rf.Ranks({"0": 6}), "truncate", example=x), tmp_path / "once")
    plan = rf.plan(once, rf.Ranks({"0.down": 2}), "truncate", example=x)
    twice = rf.apply_(once, plan)
    rf.save(twice, plan, tmp_path / "twice")
    assert first.changed
    with pytest.raises(rf.StoreError, match=r"compressed a second time.*as it was after the first time"):
        rf.load(tmp_path / "twice", net())
    again = rf.load(tmp_path / "twice", rf.load(tmp_path / "once", net()).model).model
    assert torch.equal(again(x), twice(x))


@pytest.mark.parametrize("prepare_", [rf.overparametrize_, rf.dlrt_, rf.Pufferfish().prepare_])
def test_layers_in_training_are_folded_before_they_are_saved(prepare_, tmp_path, monkeypatch):
    network = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    fresh = copy.deepcopy(network)
    made = rf.plan(network, rf.Ranks({"0": 2}), "truncate", example=torch.zeros(1, 16))
    prepare_(rf.apply_(network, made), where="2")
    with pytest.raises(rf.StoreError, match=r"^2: its weight is in training as a product .*rankfold\.fold_"):
        rf.save(network, made, tmp_path / "small")
    monkeypatch.setattr("rankfold.store.saving._check_folded", lambda root: None)  # as an earlier release
    rf.save(network, made, tmp_path / "earlier")
    with pytest.raises(rf.StoreError, match=r"saved from another model: .* fold it before it is saved"):
        rf.load(tmp_path / "earlier", copy.deepcopy(fresh))
    monkeypatch.undo()
    rf.save(rf.fold_(network), made, tmp_path / "small")
    x = torch.randn(3, 16)
    assert torch.equal(rf.load(tmp_path / "small", fresh).model(x), network(x))


def test_adapters_are_merged_before_they_are_saved(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
    x = torch.randn(8, 16)
    plan = rf.plan(net, rf.Ranks({"0": 4}), "truncate", example=x)
    model = rf.deep_lora_(rf.apply_(copy.deepcopy(net), plan), 2, where="2", epsilon=0.5)
    wanted = model(x)
    with pytest.raises(
        rf.StoreError, match=r"^2 has an update beside it: call rankfold\.adapt\.merge_ on the model first"
    ):
        rf.save(model, plan, tmp_path / "small")
    assert not (tmp_path / "small").exists()
    rf.save(rf.adapt.merge_(model), plan, tmp_path / "small")
    torch.testing.assert_close(rf.load(tmp_path / "small", net).model(x), wanted)
    peft = pytest.importorskip("peft")
    outer = peft.get_peft_model(model, peft.LoraConfig(target_modules=["2"], r=2))
    for each in (outer, outer.base_model.model):
        with pytest.raises(rf.StoreError, match=r"2 is a layer of PEFT: take merge_and_unload\(\)"):
            rf.save(each, plan, tmp_path / "more")
    assert not (tmp_path / "more").exists()
