"""`rankfold train`: from a YAML file to a whole run directory, killed and resumed, and one line for bad input."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys

import pandas as pd
import pytest
import torch
import yaml
from commands import failed, rankfold, succeeded
from safetensors.torch import load_file

from rankfold.induce import LORITA
from rankfold.induce.ways import way_named
from rankfold.pipeline.trainings.config import ConfigError, at_key, overridden, parse, read, with_key
from rankfold.record import SpectrumRecorder
from rankfold.run.progress import duration
from rankfold.train import Augment, Recipe, evaluate
from rankfold.zoo import load_data, load_weights, model

CONFIG = """
model: digits-cnn
depth: 3
epochs: 3
batch_size: 64
schedule: plateau
plateau: {factor: 0.5, patience: 0, threshold: 0.5}
record_spectra: true
out: run
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(CONFIG)
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A directory with the finished run of CONFIG, and what the command printed."""
    place = tmp_path_factory.mktemp("finished")
    (place / "run.yaml").write_text(CONFIG)
    return place, succeeded("train", place / "run.yaml", "-o", place / "run")


def test_a_run_directory_holds_all_and_the_ordinary_network(finished):
    place, printed = finished
    run = place / "run"
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoint-0003.pt", "checkpoint.json", "config.yaml", "inputs.json", "metrics.jsonl", "model.safetensors",
        "result.json", "spectra.csv", "spectra.safetensors", "spectra.svg",
    ]  # fmt: skip
    kept = json.loads((run / "result.json").read_text())
    scores = kept.pop("scores")
    assert kept == printed
    assert scores["test"]["figures"][0]["value"] == printed["test_accuracy"]
    network, data = model("digits-cnn"), load_data("digits")
    load_weights(network, run / "model.safetensors")
    score = evaluate(network, data.test)
    assert printed["test_accuracy"] == score.accuracy > 0.8
    assert printed["params"] == sum(p.numel() for p in network.parameters()) < printed["trained_params"]
    assert evaluate(network, data.validation).accuracy == printed["validation_accuracy"]
    assert printed["warning"] is None
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in metrics] == [1, 2, 3]
    assert sorted(pd.read_csv(run / "spectra.csv")["epoch"].unique()) == [0, 1, 2, 3]
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert written["data"] == "digits"
    assert written["decay"] == "coupled"
    assert parse(written).to_dict() == written


def test_other_verbs_take_what_was_trained(finished):
    found = succeeded("analyze", "digits-cnn", "--weights", finished[0] / "run" / "model.safetensors", "--no-plots")
    recorded = pd.read_csv(finished[0] / "run" / "spectra.csv")
    best = recorded[recorded["epoch"] == finished[1]["best_epoch"]].set_index("site")
    for row in found["sites"]:
        assert row["effective_rank"] == pytest.approx(best["effective_rank"][row["site"]], rel=1e-4)


def test_a_finished_run_is_read_back_and_another_configuration_refused(finished):
    place, printed = finished
    command = ("train", place / "run.yaml", "-o", place / "run")
    before = (place / "run" / "model.safetensors").stat().st_mtime_ns
    assert succeeded(*command) == printed
    text = rankfold(*command)
    assert "nothing to do" in text.stderr
    assert "test accuracy" in text.stdout
    assert "rankfold compress digits-cnn --weights" in text.stdout
    said = failed(*command, "--set", "learning_rate=0.01")
    assert f"learning_rate was {LORITA.learning_rate} and is 0.01" in said
    assert "--restart" in said
    assert (place / "run" / "model.safetensors").stat().st_mtime_ns == before


KILLED = """
import os, signal, sys
from rankfold.train.run import Run
finish = Run.finish
def killed(self, record):
    finish(self, record)
    if record.epoch == 2:
        os.kill(os.getpid(), signal.SIGKILL)
Run.finish = killed
from rankfold.cli.main import main
sys.argv = ["rankfold", "train", "run.yaml"]
main()
"""


@pytest.mark.parametrize("verb", ["collapse", "analyze"])
def test_commands_that_take_no_run_say_what_they_take(verb, finished):
    run = finished[0] / "run"
    said = " ".join(failed(verb, run).split())
    assert f"run of rankfold train: give the network that it was made from, with --weights {run}" in said
    assert "model.safetensors" in said


def test_a_killed_process_is_taken_up_and_ends_with_the_very_same_weights(finished, here):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    died = subprocess.run([sys.executable, "-c", KILLED], env=environment, capture_output=True, text=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert not (here / "run" / "result.json").exists()
    assert not (here / "run" / "model.safetensors").exists()
    result = rankfold("train", "run.yaml", "--json")
    assert result.exit_code == 0, result.stderr
    assert "resuming after epoch 2 of 3" in result.stderr
    assert "epoch 2 of 3:" not in result.stderr
    place, printed = finished
    again = json.loads(result.stdout)
    assert {**again, "seconds": 0, "directory": ""} == {**printed, "seconds": 0, "directory": ""}
    whole, resumed = (load_file(run / "model.safetensors") for run in (place / "run", here / "run"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    frames = [SpectrumRecorder.load(run / "spectra.safetensors").frame() for run in (place / "run", here / "run")]
    pd.testing.assert_frame_equal(*frames)


def test_restart_begins_anew(here):
    short = ("--set", "epochs=1", "--set", "depth=1", "--set", "schedule=cosine", "--set", "plateau=null",
             "--set", "record_spectra=false")  # fmt: skip
    first = succeeded("train", "run.yaml", *short)
    (here / "run" / "spectra.svg").write_text("of an earlier run")
    other = succeeded("train", "run.yaml", *short, "--set", "seed=1", "--restart")
    assert (first["seed"], other["seed"]) == (0, 1)
    assert first["validation_loss"] != other["validation_loss"]
    assert not (here / "run" / "spectra.svg").exists()
    (here / "run" / "result.json").write_text("{")
    assert "--restart" in failed("train", "run.yaml", *short, "--set", "seed=1")


def test_tensorboard_and_starting_from_weights_and_a_teacher(finished, here):
    weights = finished[0] / "run" / "model.safetensors"
    (here / "more.yaml").write_text(
        f"model: digits-cnn\nepochs: 1\nbatch_size: 256\nlearning_rate: 1.0e-6\nweights: {weights}\nout: more\n"
        f"teacher: {{weights: {weights}}}\ndistill: {{temperature: 2}}\ntensorboard: true\n"
    )
    result = succeeded("train", "more.yaml")
    assert result["validation_accuracy"] >= finished[1]["validation_accuracy"] - 0.02
    assert result["trained_params"] == result["params"]
    (events,) = (here / "more" / "tensorboard").iterdir()
    assert b"validation_accuracy" in events.read_bytes()


OWN = """
import json, torch
from pathlib import Path
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

def net():
    return nn.Linear(8, 4)

def parts():
    x = torch.randn(400, 8, generator=torch.Generator().manual_seed(int(Path("seed").read_text())))
    y = x[:, :4].argmax(1)
    return TensorDataset(x[:300], y[:300]), TensorDataset(x[300:], y[300:])

def loaders():
    return tuple(DataLoader(part, batch_size=32) for part in parts())
"""


@pytest.fixture
def own(here):
    (here / "owntrained.py").write_text(OWN)
    (here / "seed").write_text("0")
    for name in ("start", "teacher"):
        torch.save(torch.nn.Linear(8, 4).state_dict(), here / f"{name}.pt")
    (here / "own.yaml").write_text(
        "model: owntrained:net\ndata: owntrained:parts\nepochs: 2\nweights: start.pt\nout: own\n"
        "teacher: {weights: teacher.pt}\ndistill: {temperature: 2}\n"
    )
    return here


@pytest.mark.parametrize("done", [True, False], ids=["finished", "half-done"])
@pytest.mark.parametrize("changed", ["start.pt", "teacher.pt", "seed"])
def test_other_weights_or_data_under_the_same_names_are_another_run(own, changed, done):
    printed = succeeded("train", "own.yaml")
    if not done:
        (own / "own" / "result.json").unlink()
    before = (own / changed).read_bytes()
    if changed == "seed":
        (own / changed).write_text("1")
    else:
        torch.save(torch.nn.Linear(8, 4).state_dict(), own / changed)
    said = failed("train", "own.yaml")
    name = {
        "start.pt": "weights file",
        "teacher.pt": "teacher.weights file",
        "seed": "train and validation and test data",
    }
    assert f"own holds a run that was made from another {name[changed]}: give another directory, or --restart" in said
    after = (own / changed).read_bytes()
    (own / changed).write_bytes(before)
    assert succeeded("train", "own.yaml")["validation_loss"] == printed["validation_loss"]
    (own / changed).write_bytes(after)
    assert succeeded("train", "own.yaml", "--restart")["validation_loss"] != printed["validation_loss"]
    (own / "own" / "inputs.json").unlink()  # as an earlier version left it
    succeeded("train", "own.yaml")


def test_of_data_without_a_test_part_the_figures_are_those_of_validation(own):
    told = ("train", "own.yaml", "--set", "data=owntrained:loaders", "-o", "loaded")
    found = succeeded(*told)
    assert "validation_accuracy" in found
    assert not [key for key in found if key.startswith("test_")]
    assert succeeded(*told) == found  # read back
    text = rankfold(*told).stdout
    assert "validation accuracy" in text
    assert "test accuracy" not in text
    assert (own / "loaded" / "model.safetensors").exists()


def test_a_missing_tensorboard_is_said(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert "rankfold[tensorboard]" in failed("train", "run.yaml", "--set", "tensorboard=true")


def test_a_run_that_breaks_down_is_told_with_its_result(here):
    steep = ("epochs=1", "learning_rate=3", "warmup=0", "depth=1", "record_spectra=false")
    command = ("train", "run.yaml", *(part for setting in steep for part in ("--set", setting)))
    assert "stays at chance" in succeeded(*command)["warning"]
    assert "warning: the run stays at chance" in rankfold(*command).stdout


POISONED = """
import torch
from torch import nn

class Poisoned(nn.Module):
    # NaN from its fourth step of training on
    def __init__(self):
        super().__init__()
        self.inner, self.steps = nn.Linear(64, 10), 0
    def forward(self, x):
        self.steps += self.training
        return self.inner(x.flatten(1)) + (float("nan") if self.steps > 3 else 0.0)

def net():
    return Poisoned()
"""


def test_a_loss_that_is_not_finite_keeps_the_checkpoint_and_the_best_weights(here):
    (here / "poisoned.py").write_text(POISONED)
    (here / "poisoned.yaml").write_text(
        "model: poisoned:net\ndata: digits\nepochs: 2\nbatch_size: 512\nschedule: constant\nout: run\n"
    )
    said = failed("train", "poisoned.yaml")
    assert "training stopped in epoch 2, batch 2 of 2: the loss is nan" in said
    assert "clip_norm" in said
    assert "checkpoint of epoch 1 stays in run" in said
    assert "of epoch 1, are in run/model.safetensors" in said
    assert not (here / "run" / "result.json").exists()
    kept = load_file(here / "run" / "model.safetensors")
    assert all(bool(value.isfinite().all()) for value in kept.values())
    onward = ("--set", "weights=run/model.safetensors", "--set", "epochs=1", "-o", "onward")
    succeeded("train", "poisoned.yaml", *onward)
    # the same command takes the run up: this process has a new network, whose fourth step is beyond the end
    assert succeeded("train", "poisoned.yaml")["epochs"] == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["weigth_decay=1e-3"], ("unknown key weigth_decay", "did you mean weight_decay")),
        (["augment.flp=true"], ("unknown key augment.flp", "augment.flip")),
        (["lr=0.1"], ("unknown key lr; did you mean learning_rate?",)),
        (["wd=0.1"], ("unknown key wd; did you mean weight_decay?",)),
        (["zzz=1"], ("unknown key zzz", "known: model, data")),
        (["depth=0"], ("depth", "at least 2 factors, got 0")),
        (["depth=2.5"], ("depth", "got 2.5")),
        (["depth=true"], ("depth", "got True")),
        (["epochs=true"], ("epochs: give a number, got True",)),
        (["dlrt={rank: true}"], ("dlrt.rank: give a number, got True",)),
        (["dlrt={condition: .inf}"], ("dlrt.condition", "finite")),
        (["way={name: lcnn, pull: low}"], ("way: lcnn: pull", "got 'low'")),
        (["way={name: [lcnn]}"], ("way: give a name",)),
        (["model=null"], ("key model is missing", "for example")),
        (["model=resnet21"], ("there is no model 'resnet21'",)),
        (["model=mine:net", "data=null"], ("key data is missing", "mine:net")),
        (["data=letters"], ("there is no data set 'letters'",)),
        (["optimizer=lion"], ("optimizer", "'sgd', 'adam' or 'adamw'", "'lion'")),
        (["optimizer=adamw", "decay=coupled"], ("that of adamw is decoupled", "coupled is adam and sgd")),
        (["warmup=2"], ("warmup must be a fraction",)),
        (["augment=true"], ("augment", "give its keys")),
        (["distill.weight=0.5"], ("teacher", "is missing beside distill")),
        (["weights=none.safetensors"], ("no file none.safetensors",)),
        (["start=warm"], ("start must be one of balanced",)),
        (["where=nothing.*"], ("no layer of this model matches",)),
        (["device=abacus"], ("device", "'abacus'")),
        (["schedule=cosine"], ("plateau must be left out",)),
    ],
    ids=lambda value: str(value[0]),
)
def test_bad_input_is_one_line_before_any_file(here, settings, words):
    line = failed("train", "run.yaml", *(part for setting in settings for part in ("--set", setting)))
    assert all(word in line for word in words), line
    assert not (here / "run" / "checkpoint.json").exists()


@pytest.mark.parametrize(("setting", "word"), [("epochs", "KEY=VALUE"), ("model=[", "not YAML")])
def test_a_setting_that_cannot_be_read_is_wrong_usage(here, setting, word):
    wrong = rankfold("train", "run.yaml", "--set", setting)
    assert wrong.exit_code == 2
    assert f"--set {setting}: " in wrong.stderr
    assert word in wrong.stderr


def test_a_mended_configuration_takes_the_place_of_one_that_never_ran(here):
    short = ("--set", "epochs=1", "--set", "record_spectra=false")
    assert "no file none.pt" in failed("train", "run.yaml", *short, "--set", "weights=none.pt")
    assert succeeded("train", "run.yaml", *short)["epochs"] == 1


@pytest.mark.parametrize("more", ["tolerance: 0.2", "budget: 0.5, reach: 2, factors: true"])
def test_a_network_is_trained_at_low_rank_from_the_first_step_and_taken_up_after_a_kill(here, more):
    """`dlrt`: ranks in the result, weights of just these ranks, the same after an interruption."""
    (here / "run.yaml").write_text(CONFIG + f"dlrt: {{rank: 6, window: 8, {more}}}\n")
    settings = ("--set", "depth=1", "--set", "record_spectra=true")
    whole = succeeded("train", "run.yaml", *settings, "-o", "whole")
    assert whole["ranks"]
    weights = load_file(here / "whole" / "model.safetensors")
    for name, rank in whole["ranks"].items():
        values = torch.linalg.svdvals(weights[f"{name}.weight"].flatten(1).double())
        assert int((values > 1e-5 * values[0]).sum()) == rank
    assert whole["trained_params"] < whole["params"]
    recorded = pd.read_csv(here / "whole" / "spectra.csv")
    assert set(whole["ranks"]) <= set(recorded["site"])
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    code = KILLED.replace('"run.yaml"', '"run.yaml", "--set", "depth=1"')
    subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    again = succeeded("train", "run.yaml", *settings)
    here_or_there = {"seconds": 0, "directory": "", "small": ""}
    assert again | here_or_there == whole | here_or_there
    resumed = load_file(here / "run" / "model.safetensors")
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)
    assert "choose one" in failed("train", "run.yaml", "--set", "depth=2", "-o", "other")
    plain = (CONFIG + "dlrt: {rank: 6, reach: 3}\n").replace("depth: 3", "depth: 1")
    (here / "plain.yaml").write_text(plain)
    assert "add --set dlrt=null" in failed("train", "plain.yaml", "--set", "depth=1", "-o", "other")
    assert (whole["dlrt"]["window"], whole["way"]) == (8, None)
    ordinary = ("--set", "dlrt=null", "--set", "epochs=1", "-o", "other")
    assert succeeded("train", "plain.yaml", "--set", "depth=1", *ordinary)["dlrt"] is None
    assert "unknown key dlrt.windows; did you mean dlrt.window?" in failed(
        "train", "run.yaml", "--set", "dlrt.windows=3"
    )


@pytest.mark.parametrize(
    "settings",
    [
        "dlrt: {rank: 6, window: 8, tolerance: 0.2}",
        "dlrt: {rank: 6, window: 8, tolerance: 0.2, convolutions: tucker}",
        "dlrt: {rank: 6, window: 8, budget: 0.4, reach: 2, factors: true, convolutions: tucker}",
        "way: {name: lcnn, budget: 0.4}",
    ],
    ids=["matrices", "tucker", "trained on in factors", "a way"],
)
def test_what_was_trained_at_low_rank_is_left_in_its_factors_too(here, settings):
    """The same answers, from the numbers that the ranks need, in a directory that all other commands take."""
    (here / "run.yaml").write_text(CONFIG.replace("depth: 3", "depth: 1") + settings + "\n")
    told = succeeded("train", "run.yaml")
    assert told["small"] == "run/small"
    small, whole = (succeeded("evaluate", place) for place in ("run/small", "run"))
    assert small["accuracy"] == whole["accuracy"] == told["test_accuracy"]
    assert small["loss"] == pytest.approx(whole["loss"], abs=1e-5)
    assert small["params"] == told["small_params"] <= told["trained_params"]
    assert small["params"] < whole["params"] == told["params"]
    assert f"{small['params']:,} in factors" in rankfold("train", "run.yaml").stdout
    if "tucker" not in settings:
        weights = load_file(here / "run" / "model.safetensors")
        sizes = [(rank, *weights[f"{name}.weight"].flatten(1).shape) for name, rank in told["ranks"].items()]
        assert small["params"] == whole["params"] - sum(m * n - rank * (m + n) for rank, m, n in sizes)
    assert "rankfold export run/small --to onnx" in rankfold("train", "run.yaml").stdout
    plan = json.loads((here / "run" / "small" / "plan.json").read_text())
    for entry in plan["entries"]:  # factors larger than the layer are none
        assert entry["form"] == "keep" or entry["params"] < math.prod(entry["shape"]) * entry["groups"]
    # another run takes the place of both, also where there is nothing to save in factors
    again = succeeded("train", "run.yaml", "--restart", "--set", "dlrt=null", "--set", "way=null", "--set", "epochs=1")
    assert again["small"] is None
    assert not any((here / "run" / "small").glob("*"))


def test_bad_files_are_one_line(here):
    assert "none.yaml: No such file" in failed("train", "none.yaml")
    for text, word in (
        ("model: [", "not YAML"),
        ("- model", "must hold keys and values"),
        ("", "must hold keys and values"),
        ("epochs: 3", "model is"),
    ):
        (here / "bad.yaml").write_text(text)
        assert word in failed("train", "bad.yaml")
    (here / "bad.yaml").write_text("model: digits-cnn")
    assert re.search("key out is missing: .*--out DIR", failed("train", "bad.yaml"))
    (here / "full").mkdir()
    (here / "full" / "thesis.tex").write_text("mine")
    assert "holds no run of rankfold" in failed("train", "run.yaml", "-o", "full")
    assert "is a file" in failed("train", "run.yaml", "-o", "run.yaml")


def test_the_directory_of_a_run_is_evaluated(finished, tmp_path):
    place, printed = finished
    found = succeeded("evaluate", place / "run")
    assert found["accuracy"] == printed["test_accuracy"]
    assert found["params"] == printed["params"]
    validation = succeeded("evaluate", place / "run", "--split", "validation")
    assert validation["accuracy"] == printed["validation_accuracy"]
    # a file does not decide which code runs, and a run that has not finished has no network yet
    copy = tmp_path / "copy"
    copy.mkdir()
    config = (place / "run" / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config)
    assert "no model.safetensors yet: rankfold train" in failed("evaluate", copy)
    (copy / "model.safetensors").write_bytes((place / "run" / "model.safetensors").read_bytes())
    (copy / "config.yaml").write_text(
        config.replace("digits-cnn", "mine:net").replace("data: digits", "data: mine:data")
    )
    assert "--model mine:net" in failed("evaluate", copy)
    assert "--data mine:data" in failed("evaluate", copy, "--model", "digits-cnn")
    assert succeeded("evaluate", copy, "--model", "digits-cnn", "--data", "digits") | {"latency_ms": 0} == found | {
        "latency_ms": 0
    }


@pytest.mark.parametrize("theirs", ["model.safetensors", "notes.txt"])
def test_a_directory_of_somebody_else_is_left_alone(here, theirs):
    """Other programs too write a config.yaml beside their weights."""
    (here / "run").mkdir()
    (here / "run" / "config.yaml").write_text("model: digits-cnn\ndata: digits\nout: run\n")
    (here / "run" / theirs).write_bytes(b"theirs")
    before = {path.name: path.read_bytes() for path in (here / "run").iterdir()}
    (here / "train.yaml").write_text(CONFIG)
    for more in ((), ("--restart",)):
        said = failed("train", "train.yaml", *more)
        assert "holds no run of rankfold (it holds config.yaml): give another directory" in said
    assert {path.name: path.read_bytes() for path in (here / "run").iterdir()} == before


@pytest.mark.parametrize("device", ["mps", "xpu", "meta", "cuda:99"])
def test_a_device_that_is_not_there_is_one_sentence(here, device):
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("it is there")
    assert re.search("device: torch finds no .* on this machine: give device: cpu, or auto", failed(
        "train", "run.yaml", "--set", f"device={device}"
    ))  # fmt: skip


def test_numbers_in_yaml_need_no_point():
    values = yaml.safe_load("{model: digits-cnn, out: run, weight_decay: 1e-3, augment: {crop_padding: 1}}")
    assert values["weight_decay"] == "1e-3"  # what YAML makes of it
    config = parse(values)
    assert config.recipe.weight_decay == 1e-3
    assert config.recipe.augment == Augment(1)
    with pytest.raises(ConfigError, match=r"weight_decay.*'small'"):
        parse(values | {"weight_decay": "small"})
    way = {"model": "digits-cnn", "out": "run", "way": {"name": "sparse", "weight": "1e-3", "rank": None}}
    assert parse(way).way == way_named("sparse", weight=1e-3)  # null is the default here as well


def test_keys_of_the_recipe_are_keys_of_the_file():
    values = parse({"model": "digits-cnn", "out": "run"}).to_dict()
    assert set(Recipe().to_dict()) <= set(values)
    assert at_key(with_key(values, "augment.flip", False), "augment.flip") is False
    changed = overridden(values, ["augment.crop_padding=2", "seed=7", "teacher=null"])
    assert parse(changed).recipe.augment == Augment(2)
    assert changed["seed"] == 7
    assert values["augment"] is None


def test_null_gives_a_key_its_default_unless_it_is_a_value_of_its_own():
    values = {"model": "digits-cnn", "out": "run", "warmup": 0.1, "device": "cpu", "dlrt": {"reach": 3, "budget": 0.2}}
    null = ["dlrt.reach=null", "dlrt.budget=null", "warmup=null", "device=null", "clip_norm=null"]
    config, plain = parse(overridden(values, null)), parse({"model": "digits-cnn", "out": "run", "dlrt": {}})
    assert config.dlrt == plain.dlrt
    assert config.device == "auto"
    assert config.recipe.warmup == plain.recipe.warmup
    assert config.recipe.clip_norm is None


def test_durations_read_well():
    assert [duration(s) for s in (0.4, 59.4, 75, 3600, 7325)] == ["0 s", "59 s", "1 min 15 s", "1 h 0 min", "2 h 2 min"]


def test_a_star_is_a_pattern_and_not_yaml(tmp_path):
    assert overridden({"where": None}, ["where=*"])["where"] == "*"
    assert overridden({}, ["where=*.weight"])["where"] == "*.weight"
    file = tmp_path / "run.yaml"
    file.write_text("model: digits-cnn\nwhere: *\n")
    with pytest.raises(ConfigError, match=r'a value that begins with \* wants quotes: where: "\*"'):
        read(file)
    file.write_text('model: digits-cnn\nwhere: "*"\n')
    assert read(file)["where"] == "*"


def test_a_budget_and_a_tolerance_are_two_ways(tmp_path):
    asked = {"model": "digits-cnn", "out": str(tmp_path)}
    with pytest.raises(ConfigError, match="budget and tolerance are two ways to choose ranks: give one of them"):
        parse(asked | {"dlrt": {"budget": 0.3, "tolerance": 0.2}})
    written = parse(asked | {"dlrt": {"budget": 0.3}}).to_dict()
    assert parse(written).dlrt.budget == 0.3  # what is written has every default, and is read again
