"""Reports, tables and adapters of another program are not replaced by ours of the same name."""

import json
from pathlib import Path

import pytest
import torch
from commands import failed, succeeded
from safetensors.torch import save_file
from torch import nn

import rankfold as rf
from rankfold.papers import reproduce
from rankfold.pipeline import parse_sweep, sweep

ANALYSED = ("analyze", "digits-cnn", "-o", "out")
ATTACKED = ("robustness", "digits-cnn", "--data", "digits", "--samples", 4, "--steps", 15, "--restarts", 0, "-o", "out")
FOREIGN = {"csv": "mine\n", "json": "[1, 2]", "svg": "<svg/>", "object": '{"name": "mine"}'}


@pytest.mark.parametrize(
    ("asked", "name", "content"),
    [
        (ANALYSED, "sites.csv", "csv"),
        (ANALYSED, "sites.json", "json"),
        (ANALYSED, "sites.json", "object"),
        (ATTACKED, "robustness.svg", "svg"),
        (ATTACKED, "robustness.json", "json"),
    ],
)
def test_a_command_leaves_a_file_of_another_program_as_it_is(tmp_path, monkeypatch, asked, name, content):
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    Path("out", name).write_text(FOREIGN[content])
    said = failed(*asked, *(("--weights", "missing.safetensors") if "robustness" in asked else ()))
    assert f"out/{name} is there already, and rankfold did not write it: give another directory" in said
    assert {path.name for path in Path("out").iterdir()} == {name}  # before any work: the weights are missing
    assert Path("out", name).read_text() == FOREIGN[content]


def test_what_an_analysis_wrote_is_replaced_by_the_next(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = succeeded(*ANALYSED)
    Path("out", "sites.csv").write_text("edited")
    assert succeeded(*ANALYSED, "--only", "features.*")["sites"] != first["sites"]
    assert "edited" not in Path("out", "sites.csv").read_text()
    Path("out").rename("moved")
    Path("out").write_text("")
    assert "out is a file: give a directory" in failed(*ANALYSED)


def test_a_study_of_robustness_is_replaced_by_the_next(tmp_path):
    from rankfold.pipeline.robustness.drawing import write_robustness

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3))
    found = rf.robustness(model, (torch.rand(6, 4), torch.arange(6) % 3), linf=[0.1], l2=[], steps=15, restarts=0)
    for name in ("one", "two"):
        write_robustness({name: found}, tmp_path)
    assert list(json.loads((tmp_path / "robustness.json").read_text())) == ["two"]


def test_a_sweep_and_an_experiment_leave_tables_of_others(tmp_path):
    (tmp_path / "sweep.csv").write_text("mine")
    grid = {"model": "digits-cnn", "data": "digits", "epochs": 1, "out": str(tmp_path), "grid": {"seed": [0]}}
    with pytest.raises(ValueError, match=r"sweep\.csv is there already, and rankfold did not write it"):
        sweep(parse_sweep(grid))
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(ValueError, match=r"result\.json is there already, and rankfold did not write it"):
        reproduce("lorita-table-1a", tmp_path)


def test_an_adapter_of_another_program_is_not_replaced(tmp_path):
    model = rf.deep_lora_(nn.Sequential(nn.Linear(16, 8)), rank=2)
    rf.adapt.save_adapter(model, tmp_path / "ours")
    rf.adapt.save_adapter(model, tmp_path / "ours")  # ours is
    (tmp_path / "theirs").mkdir()
    save_file({"a": torch.zeros(2)}, tmp_path / "theirs" / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is there already, and rankfold did not write it"):
        rf.adapt.save_adapter(model, tmp_path / "theirs")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"adapter_config\.json is there already, and rankfold did not write it"):
        rf.adapt.save_adapter(model, tmp_path / "config")
