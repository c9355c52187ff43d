"""``rankfold adapt``: every method within the same numbers, resumed, merged, and read by PEFT."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import failed, rankfold, succeeded
from safetensors.torch import load_file, save_file
from test_extract import folders  # noqa: F401

import rankfold as rf
from rankfold import zoo
from rankfold.adapt import read_adapter
from rankfold.adapt.ways import Wish, prepare_
from rankfold.pipeline.adaptation import AdaptSettings, adapt

METHODS = ("lora", "rslora", "adalora", "deep-lora", "geolora", "debora")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A digits network after one short epoch."""
    pytest.importorskip("peft")
    torch.manual_seed(0)
    model = zoo.model("digits-cnn")
    data = zoo.load_data("digits")
    rf.fit(model, data.train, None, rf.Recipe(epochs=1, batch_size=64, learning_rate=0.02))
    file = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(model.state_dict(), file)
    return file


def words(weights, out, method, *more):
    return (
        "adapt", "digits-cnn", "--weights", weights, "--data", "digits", "--method", method, "--budget", "params=4000",
        "--epochs", 2, "--learning-rate", 0.01, "-o", out, *more,
    )  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_within_its_numbers(method, weights, tmp_path):
    found = succeeded(*words(weights, tmp_path / "out", method, "--merge"))
    assert found["params"] <= 4000
    assert found["after"]["loss"] < found["before"]["loss"]
    adapter = read_adapter(tmp_path / "out")
    assert adapter.params == found["params"]
    before, after = load_file(weights), load_file(tmp_path / "out" / "merged" / "model.safetensors")
    for name, (a, b) in adapter.pairs.items():
        moved = after[f"{name}.weight"] - before[f"{name}.weight"]
        torch.testing.assert_close((adapter.scaling * b @ a).reshape(moved.shape), moved, rtol=1e-3, atol=1e-5)
    assert {key for key in after if not torch.equal(after[key], before[key])} == {f"{n}.weight" for n in adapter.pairs}
    assert json.loads((tmp_path / "out" / "report.json").read_text())["method"] == method


def test_dora_is_read_by_peft_as_it_was_merged(weights, tmp_path):
    """Its norms are among the numbers; it is no product of two matrices, and says so where one is needed."""
    import peft

    found = succeeded(*words(weights, tmp_path / "out", "dora", "--merge"))
    assert found["params"] <= 4000
    assert found["after"]["loss"] < found["before"]["loss"]
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in stored.values()) == found["params"]
    assert sum(layer["params"] for layer in found["layers"]) == found["params"]
    model = zoo.model("digits-cnn")
    model.load_state_dict(load_file(weights))
    merged = peft.PeftModel.from_pretrained(model, tmp_path / "out").merge_and_unload().state_dict()
    wanted = load_file(tmp_path / "out" / "merged" / "model.safetensors")
    for name, tensor in wanted.items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="DoRA adapter also scales"):
        read_adapter(tmp_path / "out")


def test_dora_refuses_rows_of_zeros_by_name():
    """PEFT 0.21.2 divides by the norm of each row, and NaN would be trained. Rows are outputs, of a Conv1D too."""
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    pytest.importorskip("peft")
    model = torch.nn.Sequential(torch.nn.Linear(8, 6), conv1d(4, 6), torch.nn.Linear(4, 6))
    with torch.no_grad():
        model[1].weight[:, 1:3] = 0
        model[2].weight[:, 1:3] = 0  # unused inputs do no harm
    with pytest.raises(ValueError, match=r"rows are zero in 1 \(2 of 4\): PEFT would give NaN; take the method lora"):
        prepare_(model, Wish("dora", numbers=200, steps=1), None)
    prepare_(model, Wish("dora", numbers=200, steps=1, where=lambda path, _: path != "1"), None)
    assert model(torch.ones(3, 8)).isfinite().all()


def test_what_is_refused_stands_in_no_ones_way(weights, tmp_path):
    few = [word if word != "params=4000" else "params=100" for word in words(weights, tmp_path / "out", "dora")]
    told = failed(*few)
    assert "params=100 is too few: rank 1 in each of the" in told
    least = int(told.partition("allow that many (params=")[2].partition(")")[0])
    enough = [word if word != "params=4000" else f"params={least}" for word in words(weights, tmp_path / "out", "dora")]
    assert succeeded(*enough)["params"] <= least


@pytest.mark.parametrize("method", ["adalora", "geolora", "debora"])
def test_it_goes_on_and_another_request_is_refused(method, weights, tmp_path, monkeypatch):
    from rankfold.pipeline import adaptation

    whole = succeeded(*words(weights, tmp_path / "whole", method))
    real, seen = adaptation.fit, []

    def stops(*args, **how):
        tell = how["progress"]

        def once(now):
            tell(now)
            if now.epoch == 2 and not seen:
                seen.append(now.epoch)
                raise KeyboardInterrupt

        return real(*args, **(how | {"progress": once}))

    monkeypatch.setattr(adaptation, "fit", stops)
    assert rankfold(*words(weights, tmp_path / "out", method)).exit_code == 130
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    again = succeeded(*words(weights, tmp_path / "out", method))
    assert again["after"] == (pytest.approx(whole["after"], rel=1e-5) if method == "geolora" else whole["after"])
    told = failed(*words(weights, tmp_path / "out", method, "--seed", 1))
    assert "asked for otherwise (seed: 0 there, 1 here): give another directory, or --restart" in told


def test_an_adapter_of_somebody_else_is_not_replaced(weights, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "adapter_config.json").write_text("{}")
    for again in ((), ("--restart",)):
        said = failed(*words(weights, tmp_path / "out", "lora", *again))
        assert "adapter_config.json is there already, and rankfold did not write it: give another directory" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["adapter_config.json"]


def test_a_language_model(folders, tmp_path):  # noqa: F811
    place, *_ = folders
    np.save(tmp_path / "tokens.npy", (np.arange(3000) % 7).astype(np.int16))
    found = succeeded(
        "adapt", place / "base", "--data", f"tokens:{tmp_path / 'tokens.npy'}", "--length", 16, "--method", "debora",
        "--budget", "params=0.2", "--epochs", 1, "--batch-size", 8, "--learning-rate", 0.01, "-o", tmp_path / "out",
    )  # fmt: skip
    assert found["objective"] == "causal-lm"
    assert found["after"]["loss"] < found["before"]["loss"]
    assert "kl" not in found["after"]  # the adapted network was compared with itself, at 0 and 1
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"


def test_what_is_refused(weights, tmp_path):
    assert "is too few: rank 1 in each of the" in failed(
        *words(weights, tmp_path / "a", "lora", "--budget", "params=300")
    )
    assert not (tmp_path / "a" / "adapter_config.json").exists()
    result = rankfold(*words(weights, tmp_path / "a", "ia3"))
    assert result.exit_code == 2
    assert "no method named 'ia3'" in result.stderr
    result = rankfold(*words(weights, tmp_path / "a", "lora", "--budget", "rank=3"))
    assert result.exit_code == 2
    assert "params=0.01" in result.stderr


def test_winning_back_takes_no_other_method_and_an_original_that_is_there(tmp_path):
    model = zoo.model("digits-cnn")
    plan = rf.plan(model, "params=0.8", "truncate", example=torch.rand(1, 1, 8, 8))
    rf.save(rf.apply_(model, plan), plan, tmp_path / "small")
    asked = ("adapt", tmp_path / "small", "--data", "digits", "-o", tmp_path / "out", "--original", tmp_path / "none")
    assert "there is no file or folder" in rankfold(*asked).output
    assert "there is one method" in rankfold(*asked, "--method", "dora").output
    said = failed(*asked[:-2])
    assert "already compressed" in said
    assert "adapt the original" in said
    assert not (tmp_path / "out").exists()


def test_data_are_taken_as_everywhere(tmp_path):
    """A tuple of parts, and an object that has parts alone."""
    torch.manual_seed(0)
    x = torch.randn(60, 6)
    y = x[:, :3].argmax(1)
    parts = tuple(torch.utils.data.TensorDataset(x[s], y[s]) for s in (slice(40), slice(40, 50), slice(50, 60)))
    names = ("train", "validation", "test")
    for number, data in enumerate((parts, SimpleNamespace(**dict(zip(names, parts, strict=True))))):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
        settings = AdaptSettings(params=100, epochs=1, batch_size=8, learning_rate=1e-2)
        assert adapt(model, data, settings, tmp_path / f"{number}").extraction.params <= 100
    with pytest.raises(ValueError, match="give an object with train, validation and test"):
        adapt(model, x, settings, tmp_path / "x")
    with pytest.raises(ValueError, match="no validation part"):
        adapt(model, SimpleNamespace(train=parts[0], validation=None), settings, tmp_path / "x")
    loaders = tuple(torch.utils.data.DataLoader(part, batch_size=4) for part in parts[:2])
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    found = adapt(model, loaders, replace(settings, epochs=None), tmp_path / "loaders")
    assert found.split == "validation"
    assert found.after.accuracy > found.before.accuracy
    assert len(found.history) == 30  # epochs of ten batches, as the loader has them


@pytest.mark.parametrize(
    ("size", "samples", "wanted"),
    [
        (4_000, 1_078, (15, 0.01)),
        (4_000, 100, (30, 0.01)),
        (300_000, 10_000, (3, 0.01)),
        (8 * 300_000, 16_000, (3, 0.005)),
    ],
)
def test_defaults_follow_from_the_network_and_the_data(size, samples, wanted):
    epochs, rate = AdaptSettings().filled(size, samples)
    assert (epochs, round(rate, 12)) == wanted
    assert AdaptSettings(epochs=2, learning_rate=1e-3).filled(size, samples) == (2, 1e-3)
