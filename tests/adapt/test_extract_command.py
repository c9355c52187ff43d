"""``rankfold extract`` as a person types it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from commands import failed, rankfold, succeeded
from safetensors.torch import load_file, save_file
from test_extract import folders, merged  # noqa: F401

from rankfold.adapt import read_adapter
from rankfold.zoo.models import model as built


def test_two_folders_then_the_adapter_smaller(folders, tmp_path):  # noqa: F811
    place, *_ = folders
    found = succeeded("extract", place / "base", place / "tuned", "-o", tmp_path / "a", "--budget", "rank=4")
    assert found["norm"] == "entries"
    assert found["left_out"] == []
    assert sum(layer["params"] for layer in found["layers"]) == found["params"] == read_adapter(tmp_path / "a").params
    written = (tmp_path / "a" / "adapter_config.json").read_bytes()
    again = ("extract", place / "base", place / "tuned", "-o", tmp_path / "a", "--budget", "rank=1")
    done = rankfold(*again)
    assert done.exit_code == 2
    assert "already holds an adapter: give another folder, or --restart" in done.stderr
    assert (tmp_path / "a" / "adapter_config.json").read_bytes() == written
    assert succeeded(*again[:3], "-o", tmp_path / "d", *again[5:])["params"] < found["params"]
    assert succeeded(*again[:3], "-o", tmp_path / "d", "--budget", "rank=4", "--restart")["params"] == found["params"]
    small = succeeded("extract", tmp_path / "a", "-o", tmp_path / "b", "--budget", "params=0.5", "--uniform")
    assert small["params"] <= found["params"] / 2
    config = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert config["rank_pattern"] == {}
    both = succeeded("extract", tmp_path / "a", tmp_path / "a", "-o", tmp_path / "c", "--budget", "rank=4",
                     "--weight", "0.25", "--weight", "0.75")  # fmt: skip
    assert both["error"] < 1e-5
    assert read_adapter(tmp_path / "c").ranks == read_adapter(tmp_path / "a").ranks


def test_with_data_and_tuning(folders, tmp_path):  # noqa: F811
    place, *_ = folders
    tokens = np.random.default_rng(0).integers(0, 40, 4000).astype(np.int16)
    np.save(tmp_path / "tokens.npy", tokens)
    asked = (
        "extract", place / "base", place / "tuned", "-o", tmp_path / "a", "--budget", "rank=1", "--data",
        f"tokens:{tmp_path / 'tokens.npy'}", "--length", 16, "--samples", 64, "--tune", 8,
    )  # fmt: skip
    found = succeeded(*asked)
    assert found["norm"] == "outputs"
    assert found["tuned"]["after"] <= found["tuned"]["before"]
    assert f"and are by {found['tuned']['after']:.4g} now (nats per token)" in rankfold(*asked, "--restart").stdout


def test_files_need_a_model(tmp_path):
    torch.manual_seed(0)
    base = built("digits-cnn")
    name = next(name for name, module in base.named_modules() if isinstance(module, torch.nn.Linear))
    save_file(base.state_dict(), tmp_path / "base.safetensors")
    save_file(merged(base, {name: 2}).state_dict(), tmp_path / "tuned.safetensors")
    both = (tmp_path / "base.safetensors", tmp_path / "tuned.safetensors")
    found = succeeded("extract", *both, "--model", "digits-cnn", "-o", tmp_path / "a", "--budget", "error=0.01")
    assert {layer["name"]: layer["rank"] for layer in found["layers"] if layer["rank"]} == {name: 2}
    assert "give model= (--model)" in failed("extract", *both, "-o", tmp_path / "b", "--budget", "rank=2")
    assert not (tmp_path / "b").exists()
    broken = load_file(both[1])
    broken[f"{name}.weight"][0, 0] = float("nan")
    save_file(broken, both[1])
    told = failed("extract", *both, "--model", "digits-cnn", "-o", tmp_path / "b", "--budget", "rank=2")
    assert f"{name}.weight" in told
    assert "NaN" in told
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["a", "-o", "out", "--budget", "rank=2"], "give two checkpoints"),
        (["a", "b", "-o", "out", "--budget", "flops=0.5"], "write rank=16"),
        (["a", "b", "-o", "out"], "--budget"),
    ],
)
def test_wrong_usage(words, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = rankfold("extract", *words)
    assert result.exit_code == 2
    assert told in result.stderr
