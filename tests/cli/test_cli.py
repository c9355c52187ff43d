"""The command line: data on standard output, talk on standard error, exit codes, and every verb once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import failed, rankfold, succeeded
from digits import write_weights

from rankfold.cli.printing import print_json

VERBS = (
    "demo", "train", "sweep", "analyze", "plan", "show", "apply", "compress", "slice", "evaluate", "export",
    "reproduce",
)  # fmt: skip
STAGE = {"accuracy", "loss", "params", "flops", "bytes", "latency_ms"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "digits.safetensors")


@pytest.fixture(scope="module")
def run_directory(weights, tmp_path_factory) -> Path:
    """A directory that compress wrote."""
    out = tmp_path_factory.mktemp("runs") / "run"
    succeeded(*_compress(weights, out))
    return out


def _compress(weights: Path, out: Path, *more: object) -> tuple[object, ...]:
    return (
        "compress", "digits-cnn", "--weights", weights, "--data", "digits", "--budget", "flops=0.3",
        "--samples", 200, "--no-curve", "-o", out, *more,
    )  # fmt: skip


def test_help_does_not_wait_for_torch():
    code = (
        "import sys\n"
        "from rankfold.cli.main import main\n"
        "sys.argv = ['rankfold', '--help']\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules\n"
        "assert not [name for name in sys.modules if name.startswith('rankfold.cli.verbs')]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(verb in done.stdout for verb in VERBS)


def test_a_person_is_told_at_once_what_a_command_does(monkeypatch, capsys):
    from rankfold.cli.failure import told

    def slow() -> None:
        """Count to ten.

        Slowly.
        """
        said.append(capsys.readouterr().err)

    said: list[str] = []
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    told(slow)()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    told(slow)()
    assert said == ["rankfold slow: Count to ten.\n", ""]  # a script is not


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_json(verb):
    result = rankfold(verb, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan", "digits-cnn"),  # no budget, no output
        ("compress", "digits-cnn", "--budget", "flops=0.5"),
        ("export", "somewhere", "--to", "pickle", "-o", "x"),
        ("compress", "digits-cnn", "--budget", "flops=0.5", "-o", "x", "--finetune-epochs", "-1"),
        ("nonsense",),
        ("evaluate", "digits-cnn", "--no-such-option"),
    ],
)
def test_wrong_usage_is_2(arguments):
    result = rankfold(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("rankfold comp", ["compress"]),
        ("rankfold compress --bud", ["--budget"]),
        ("rankfold compress --smallest f", ["flops"]),
        ("rankfold plan --method t", ["truncate", "tucker"]),
        ("rankfold plan --objective nothing", []),
    ],
)
def test_the_shell_completes_without_torch(typed, offered):
    code = (
        "import sys\n"
        "from rankfold.cli.main import main\n"
        "try:\n    main()\n"
        "finally:\n    assert 'torch' not in sys.modules\n"
    )
    asked = {"_RANKFOLD_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | asked
    )
    assert done.stdout.split() == offered


def test_version():
    assert rankfold("--version").stdout.strip()


def test_analyze_prints_ranks_and_writes_files(weights, tmp_path, monkeypatch):
    found = succeeded(
        "analyze", "digits-cnn", "--weights", weights, "--data", "digits", "--samples", 128, "-o", tmp_path
    )
    sites = {row["site"]: row for row in found["sites"]}
    assert sites["classifier.1"]["shape"] == [64, 256]
    assert 1 <= sites["classifier.1"]["output_rank_90"] <= sites["classifier.1"]["output_rank_99"] <= 64
    assert {row["parameter"] for row in found["left_out"]} >= {"features.1.weight"}
    assert (tmp_path / "spectra.svg").exists()
    monkeypatch.chdir(tmp_path)
    text = rankfold("analyze", "digits-cnn", "--no-plots").stdout
    assert not (tmp_path / "spectra").exists()
    assert "features.10" in text
    assert "left out: 8 tensors" in text
    assert text.count("nothing to factor") == 1  # one line for all vectors
    assert "\x1b" not in text


def test_plan_show_apply_evaluate_export(weights, tmp_path):
    file, out = tmp_path / "plan.json", tmp_path / "model"
    made = succeeded(
        "plan", "digits-cnn", "--weights", weights, "--data", "digits", "--budget", "flops=0.5",
        "--budget", "params=0.6", "--samples", 200, "-o", file,
    )  # fmt: skip
    assert made == succeeded("show", file)
    assert made["after"]["flops"] <= 0.5 * made["before"]["flops"]
    table = rankfold("show", file).stdout
    assert "classifier.1" in table
    assert "kept" in table
    applied = succeeded("apply", "digits-cnn", "--weights", weights, file, "-o", out)
    assert applied["params"] == made["after"]["params"] <= 0.6 * made["before"]["params"]
    figures = succeeded("evaluate", out, "--data", "digits")
    assert set(figures) == STAGE
    assert figures["params"] == applied["params"]
    dense = succeeded("evaluate", "digits-cnn", "--weights", weights)
    assert dense["params"] == made["before"]["params"]
    assert figures["accuracy"] > dense["accuracy"] - 0.1
    exported = succeeded("export", out, "--to", "torch-export", "-o", tmp_path / "model.pt2")
    assert exported["max_abs_difference"] < 1e-4
    assert (tmp_path / "model.pt2").stat().st_size == exported["bytes"]
    assert exported["inputs"] == {"x": ["batch", 1, 8, 8]}
    assert exported["at_most"] == {}
    told = rankfold("export", out, "--to", "torch-export", "-o", tmp_path / "model.pt2").stdout
    assert "  x (batch, 1, 8, 8)\n" in told


def test_an_edited_plan_is_carried_out(weights, tmp_path):
    file = tmp_path / "plan.json"
    common = ("digits-cnn", "--weights", weights)
    succeeded("plan", *common, "--budget", "flops=0.5", "--samples", 200, "-o", file)
    values = json.loads(file.read_text())
    changed = next(entry for entry in values["entries"] if entry["site"] == "classifier.1")
    changed |= {"form": "factored", "rank": 5}
    assert "edited since" not in rankfold("show", file).stdout
    file.write_text(json.dumps(values))
    assert "note: edited since" in rankfold("show", file).stdout
    succeeded("apply", *common, file, "--data", "digits", "-o", tmp_path / "model")
    shown = succeeded("show", tmp_path / "model")
    assert next(e["rank"] for e in shown["entries"] if e["site"] == "classifier.1") == 5


def test_compress_prints_the_promised_object_and_reads_a_finished_run_back(weights, run_directory):
    values = succeeded(*_compress(weights, run_directory))
    removed = ["params_removed", "flops_removed", "kept_of_factorable"]
    assert list(values) == ["before", "compressed", "finetuned", *removed, "seconds", "forecast"]
    assert values["finetuned"] is None
    assert all(set(values[stage]) == STAGE for stage in ("before", "compressed"))
    assert 0.7 <= values["flops_removed"] < 0.75
    text = rankfold(*_compress(weights, run_directory))
    assert "nothing to do" in text.stderr
    assert "report.html" in text.stdout
    evaluated = succeeded("evaluate", run_directory)
    assert evaluated["accuracy"] == values["compressed"]["accuracy"]


def test_an_interrupted_command_says_how_to_go_on(weights, tmp_path, monkeypatch):
    from rankfold.run.progress import Talk

    say = Talk.say

    def stop(self, sentence: str) -> None:
        say(self, sentence)
        if "epoch 1 of 2" in sentence:
            raise KeyboardInterrupt

    command = _compress(weights, tmp_path / "run", "--finetune-epochs", 2)
    with monkeypatch.context() as patch:
        patch.setattr(Talk, "say", stop)
        result = rankfold(*command)
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "interrupted. The same command continues from here."
    again = rankfold(*command, "--json")
    with monkeypatch.context() as patch:
        patch.setattr(Talk, "say", lambda self, sentence: (_ for _ in ()).throw(KeyboardInterrupt))
        soon = rankfold(*_compress(weights, tmp_path / "soon"))
    assert soon.stderr.splitlines()[-1] == "interrupted. Nothing was kept yet."
    assert again.exit_code == 0
    assert "epoch 1 of 2" not in again.stderr
    assert "resum" in again.stderr
    assert json.loads(again.stdout)["finetuned"]["accuracy"] > 0.5


def test_another_budget_goes_on_with_what_an_impossible_one_has_measured(weights, tmp_path):
    out = tmp_path / "out"
    told = failed(*_compress(weights, out, "--budget", "params=0.001"))  # as shapes alone tell
    assert "cannot be met" in told
    assert "measured" not in told
    assert not (out / "run").exists()
    told = failed(*_compress(weights, out, "--budget", "params=0.1", "--budget", "energy=0.9999"))
    assert "cannot be met" in told
    assert "what was measured is kept: the same call with another budget goes on from there" in told
    assert "samples was 200 and is 65" in failed(*_compress(weights, out, "--samples", 65))
    again = rankfold(*_compress(weights, out, "--budget", "params=0.5"))
    assert again.exit_code == 0, again.stderr
    assert "decompositions" not in again.stderr
    assert (out / "result.json").exists()


def test_a_run_that_ends_before_it_measures_leaves_nothing(weights, tmp_path):
    for there in (False, True):
        out = tmp_path / f"out{there}"
        if there:
            out.mkdir()
        assert "targets" in failed(*_compress(weights, out, "--objective", "regression"))
        assert out.exists() is there
        assert not (out / "run").exists()


def test_expected_errors_are_one_line(weights, run_directory, tmp_path):
    common = ("--budget", "flops=0.5", "-o", tmp_path / "x")
    assert "--weights" in failed("compress", "digits-cnn", *common)
    assert "no file" in failed("compress", "digits-cnn", "--weights", tmp_path / "none.pt", *common)
    known = ("digits-cnn", "--weights", weights)
    assert "cannot be met" in failed("plan", *known, "--budget", "flops=1e-6", "--samples", 64, "-o", tmp_path / "x")
    assert "with other settings (budgets" in failed(*_compress(weights, run_directory, "--budget", "params=0.5"))
    assert "plan.json" in failed("show", tmp_path / "plan.json")
    assert "plan.json" in failed("show", tmp_path)
    assert "no manifest.json" in failed("evaluate", tmp_path)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("resnet-20",), "there is no model 'resnet-20': did you mean resnet20?"),
        (("nofolder",), "'nofolder': there is neither a built-in network nor a file or folder of that name."),
        (("digits-cnn", "--data", "digit"), "there is no data set 'digit': did you mean digits?"),
        (("digits-cnn", "--budget", "flop=0.4"), "did you mean flops?"),
        (("digits-cnn", "--budget", "size=0.5"), "is not understood"),
        (("digits-cnn", "--budget", "flops=50%"), "write 0.5 for 50 %"),
        (("digits-cnn", "--budget", "flops=1.5"), "share of the whole model that is kept"),
        (("digits-cnn", "--method", "magic"), "the names are project, sequential, relu, nuclear"),
        (("digits-cnn", "--ranks", "iteratve"), "did you mean iterative?"),
    ],
    ids=lambda value: str(value[-1]) if isinstance(value, tuple) else "",
)
def test_values_that_cannot_be_are_wrong_usage(tmp_path, options, said):
    for verb in ("plan", "compress"):
        result = rankfold(verb, *options, "--budget", "flops=0.5", "-o", tmp_path / "x")
        assert result.exit_code == 2, result.output
        assert said in result.stderr
        assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("analyze", "digits-cnn", "--no-plots", "--length", 7), "length"),
        (("analyze", "digits-cnn", "--no-plots", "--windows", 3), "windows"),
        (("analyze", "digits-cnn", "--no-plots", "--samples", 5), "samples"),
        (("analyze", "digits-cnn", "--no-plots", "--seed", 5), "seed"),
        (("analyze", "digits-cnn", "--no-plots", "-o", "zz"), "out"),
        (("plan", "commands:rankfold", "--method", "truncate", "--samples", 5, "--budget", "params=0.5", "-o", "x"),
         "samples"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_options_that_would_do_nothing_are_wrong_usage(tmp_path, monkeypatch, options, named):
    monkeypatch.chdir(tmp_path)
    result = rankfold(*options)
    assert result.exit_code == 2, result.output
    assert f"--{named}" in result.stderr
    assert "leave it out" in result.stderr
    assert not list(tmp_path.iterdir())


def test_json_holds_no_number_that_it_has_not(capsys):
    print_json({"loss": float("nan"), "all": [float("inf"), {"kept": 0.5, "told": "nan"}], "pair": (-float("inf"), 1)})

    def refuse(name: str) -> None:
        raise ValueError(name)

    found = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert found == {"loss": None, "all": [None, {"kept": 0.5, "told": "nan"}], "pair": [None, 1]}


def test_the_original_is_judged_beside_where_targets_tell_too(weights, run_directory):
    found = succeeded("evaluate", run_directory, "--original", weights)
    assert found["original"] == {"accuracy": succeeded("evaluate", "digits-cnn", "--weights", weights)["accuracy"]}
    assert "accuracy of the original" in rankfold("evaluate", run_directory, "--original", weights).stdout
    assert "nosuch.safetensors" in failed("evaluate", run_directory, "--original", "nosuch.safetensors")


def test_a_mistyped_directory_is_called_one():
    said = failed("evaluate", "smal/resnet")
    assert "smal/resnet: this is neither a directory nor in the cache of the hub" in said
    assert "resnet20" in said
    for verb in ("evaluate", "adapt", "analyze", "advise", "collapse"):
        done = rankfold(verb, "nofolder", "--data", "digits", *(("-o", "x") if verb == "adapt" else ()))
        assert "there is neither a built-in network nor a file or folder of that name" in done.stderr, verb


def test_a_mistyped_folder_is_told_the_one_that_is_near(tmp_path, monkeypatch):
    (tmp_path / "language-model").mkdir()
    monkeypatch.chdir(tmp_path)
    result = rankfold("compress", "langage-model", "--budget", "params=0.5", "-o", "x")
    assert "there is no model 'langage-model': did you mean language-model?" in result.stderr
    (tmp_path / "weights.pt").write_bytes(b"")
    assert (
        "weights.pt: this is a file" in rankfold("compress", "weights.pt", "--budget", "params=0.5", "-o", "x").stderr
    )


def test_a_plan_for_other_weights_is_refused(weights, run_directory, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    state = load_file(weights)
    state["classifier.3.bias"] = state["classifier.3.bias"] + 1
    other = tmp_path / "other.safetensors"
    save_file(state, other)
    assert torch.is_tensor(state["classifier.3.bias"])
    plan = run_directory / "run" / "plan.json"
    assert "other weights" in failed("apply", "digits-cnn", "--weights", other, plan, "-o", tmp_path / "x")


def test_a_damaged_model_is_refused(run_directory, tmp_path):
    import shutil

    copy = shutil.copytree(run_directory, tmp_path / "copy")
    file = copy / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    assert "damaged" in failed("evaluate", copy, "--data", "digits")
    assert "damaged" in failed("export", copy, "--to", "onnx", "-o", tmp_path / "x.onnx")


FACTORY = """
import torch
from torch import nn
from rankfold.zoo import load_data

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

def data():
    digits = load_data("digits")
    return digits.train, digits.validation, digits.test
"""


def test_a_network_and_data_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    values = succeeded(
        "compress", "mine:make", "--data", "mine:data", "--budget", "params=0.6", "--samples", 100, "--no-curve",
        "-o", "run",
    )  # fmt: skip
    assert values["params_removed"] >= 0.4
    # what a file says never decides which code runs
    assert "if that code may run, add --model mine:make --data mine:data" in failed("evaluate", "run")
    assert "--data mine:data" in failed("evaluate", "run", "--model", "mine:make")
    again = succeeded("evaluate", "run", "--model", "mine:make", "--data", "mine:data")
    assert again["accuracy"] == values["compressed"]["accuracy"]
    assert "no data were given" in failed("evaluate", "mine:make")


SEVERAL = """
import torch
from torch import nn
from torch.utils.data import DataLoader

class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.hidden, self.head = nn.Embedding(7, 16), nn.Linear(16, 24), nn.Linear(24, 3)

    def forward(self, ids, mask):
        return self.head(torch.relu(self.hidden((self.table(ids) * mask.unsqueeze(-1)).mean(1))))

def make():
    torch.manual_seed(0)
    return Masked()

def items(count):
    generator = torch.Generator().manual_seed(count)
    ids = torch.randint(7, (count, 5), generator=generator)
    return [{"ids": row, "mask": (row > 0).long(), "labels": int(row.sum()) % 3} for row in ids]

def data():
    return items(60), items(30)

def loaders():
    return tuple(DataLoader(items(count), batch_size=16) for count in (60, 20, 30))
"""


@pytest.mark.parametrize("data", ["several:data", "several:loaders"])
def test_a_network_of_several_inputs(tmp_path, monkeypatch, data):
    (tmp_path / "several.py").write_text(SEVERAL)
    monkeypatch.chdir(tmp_path)
    options = ("several:make", "--data", data, "--samples", 40)
    assert succeeded("analyze", *options, "--no-plots")["sites"][-1]["output_rank_99"] is not None
    succeeded("plan", *options, "--budget", "params=0.7", "-o", "plan.json")
    values = succeeded("apply", "several:make", "plan.json", "--data", data, "-o", "applied")
    assert values["params_removed"] >= 0.3
    values = succeeded("compress", *options, "--budget", "params=0.7", "--finetune-epochs", 1, "-o", "run")
    again = succeeded("evaluate", "run", "--model", "several:make", "--data", data)
    assert again["accuracy"] == values["finetuned"]["accuracy"]
    assert "the model cannot take the data (one batch is 2×5, 2×5)" in failed("analyze", "resnet20", "--data", data)


def test_demo_proves_what_it_saved(tmp_path, monkeypatch):
    import rankfold.cli.verbs.demo as demo

    monkeypatch.setattr(demo, "EPOCHS", 2)
    monkeypatch.setattr(demo, "FINETUNE_EPOCHS", 1)
    monkeypatch.setattr(demo, "SAMPLES", 128)
    monkeypatch.setattr("rankfold.pipeline.compression.job.quality_curve", lambda *_, **__: iter(()))
    out = tmp_path / "demo"
    result = rankfold("demo", "--out", out)
    assert result.exit_code == 0, result.stderr
    assert "differ by at most 0" in result.stdout
    assert "rankfold compress digits-cnn" in result.stdout
    assert (out / "report.html").stat().st_size > 10_000
    next_command = result.stdout[result.stdout.index("rankfold compress") :].replace("\\\n", " ").split()
    assert Path(next_command[next_command.index("--weights") + 1]).exists()
    assert "no run of rankfold" in failed("demo", "--out", _foreign(tmp_path))


def _foreign(tmp_path: Path) -> Path:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    return tmp_path / "full"
