"""Layers and ranks chosen on the command line."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import failed, rankfold, succeeded
from digits import write_weights

from rankfold.cli.choices import chosen_layers
from rankfold.compress.planning.plan import Plan
from rankfold.forms import Form
from rankfold.run.disk.files import write_atomically
from rankfold.zoo import ZooError


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "digits.safetensors")


def planned(weights: Path, out: Path, *options: object) -> Plan:
    succeeded(
        "plan", "digits-cnn", "--weights", weights, "--data", "digits", "--samples", 100, "-o", out, *options
    )  # fmt: skip
    return Plan.load(out)


def test_layers_are_chosen_by_patterns(weights, tmp_path):
    budget = ("--budget", "params=0.9")
    everything = planned(weights, tmp_path / "all.json", *budget)
    names = [entry.site for entry in everything.entries]
    (first, *_) = names
    only = planned(weights, tmp_path / "only.json", *budget, "--only", "features", "--exclude", first)
    assert [entry.site for entry in only.entries] == [name for name in names if name != first and "features." in name]
    assert (f"{first}.weight", "not selected") in only.left_out
    said = rankfold("analyze", "digits-cnn", "--no-plots", "--json", "--only", first)
    assert [line.split('"')[3] for line in said.stdout.splitlines() if '"site":' in line] == [first]


def test_a_pattern_that_fits_nothing_is_refused_with_names_that_there_are(weights, tmp_path):
    for option in ("--only", "--exclude"):
        line = failed(
            "compress", "digits-cnn", "--weights", weights, "--budget", "params=0.5", option, "feature.3", "-o",
            tmp_path / "small",
        )  # fmt: skip
        assert line.startswith(f"error: {option} feature.3: no layer of this model matches")
        assert "features.3" in line
    none = ("--only", "features", "--exclude", "*")
    line = failed(
        "compress", "digits-cnn", "--weights", weights, "--budget", "params=0.5", *none, "-o", tmp_path / "small"
    )
    assert line.startswith("error: --only features and --exclude '*': this leaves no layer to be factored; those of")
    assert not (tmp_path / "small").exists()


def test_what_is_left_out_by_wish_is_named(weights, tmp_path):
    planned(weights, tmp_path / "one.json", "--budget", "params=0.9", "--only", "classifier.1")
    for said in (
        rankfold("show", tmp_path / "one.json").stdout,
        rankfold("analyze", "digits-cnn", "--no-plots", "--only", "classifier.1").stdout,
    ):
        assert re.search(r"features\.0\.weight, features\.3\.weight and \d+ more\W+not selected", said)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("adapt", "DIR", "--original", "w", "--only", "a", "-o", "x"), "--only"),
        (("adapt", "DIR", "--original", "w", "--merge", "-o", "x"), "--merge"),
        (("adapt", "digits-cnn", "--weights", "WEIGHTS", "--steps", 3, "-o", "x"), "--steps"),
        (("extract", "ADAPTER", "--budget", "rank=1", "--exclude", "a", "-o", "x"), "--exclude"),
        (("extract", "a", "b", "--budget", "rank=1", "--weight", 2, "-o", "x"), "--weight"),
        (("plan", "digits-cnn", "--budget", "params=0.5", "--method", "cp", "--memory", "1GB", "-o", "x"), "--memory"),
        (("evaluate", "digits-cnn", "--batch", 4), "--batch"),
        (("recover", "SENSED", "--top", 3), "--top"),
    ],
)  # fmt: skip
def test_an_option_that_would_do_nothing_is_wrong_usage(option, words, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "DIR").mkdir()
    (tmp_path / "DIR" / "manifest.json").write_text("{}")
    (tmp_path / "ADAPTER").mkdir()
    (tmp_path / "ADAPTER" / "adapter_config.json").write_text("{}")
    np.savez("SENSED.npz", y=np.ones(3), A=np.ones((3, 2, 2)))
    typed = [{"WEIGHTS": weights, "SENSED": "SENSED.npz"}.get(word, word) for word in option]
    result = rankfold(*typed)
    assert result.exit_code == 2
    assert (
        f"Invalid value for '{words}': does nothing" in result.stderr or f"for {words}: does nothing" in result.stderr
    )


def test_ranks_in_multiples_through_compress_and_slice(weights, tmp_path):
    asked = (
        "compress", "digits-cnn", "--weights", weights, "--data", "digits", "--samples", 100, "--no-curve",
        "--budget", "params=0.6", "--rank-multiple", 4, "-o", tmp_path / "small",
    )  # fmt: skip
    succeeded(*asked)
    plan = Plan.load(tmp_path / "small" / "plan.json")
    assert plan.changed
    assert {entry.rank % 4 for entry in plan.changed} == {0}
    assert "--restart" in failed(*asked, "--exclude", plan.changed[0].site)  # another request
    budget = ("--budget", "params=0.5", "--rank-multiple", 8, "-o", tmp_path / "smaller")
    succeeded("slice", tmp_path / "small", *budget)
    sliced = Plan.load(tmp_path / "smaller" / "plan.json")
    changed = [entry for entry in sliced.changed if entry.rank != plan[entry.site].rank]
    assert changed
    assert all(entry.rank % 8 == 0 and entry.form is not Form.KEEP for entry in changed)


def test_a_multiple_below_one_is_wrong_usage(tmp_path):
    result = rankfold("plan", "digits-cnn", "--budget", "params=0.5", "--rank-multiple", 0, "-o", tmp_path / "x")
    assert result.exit_code == 2


def test_forms_in_whole_numbers_are_taken_where_they_are_named(weights, tmp_path):
    budget = ("--budget", "bytes=0.3")
    plan = planned(weights, tmp_path / "forms.json", *budget, "--forms", "int8,residual", "--forms", "factored")
    assert {Form.INT8, Form.RESIDUAL} >= {entry.form for entry in plan.changed} - {Form.FACTORED}
    assert {entry.form for entry in plan.changed} & {Form.INT8, Form.RESIDUAL}
    small = tmp_path / "small"
    succeeded(
        "compress", "digits-cnn", "--weights", weights, "--data", "digits", "--samples", 100, *budget, "--forms", "all",
        "--no-curve", "-o", small,
    )  # fmt: skip
    made = Plan.load(small / "plan.json")
    assert {entry.form for entry in made.changed} & {Form.INT8, Form.RESIDUAL}
    assert made.after.bytes <= 0.3 * made.before.bytes
    assert "did you mean int8" in rankfold("plan", "digits-cnn", *budget, "--forms", "int9", "-o", small).stderr


@pytest.mark.parametrize(("layers", "said"), [(2, "its layers are 0, 1$"), (9, r"its layers are 0, 1, 2, …$")])
def test_more_layers_are_hinted_at_only_where_there_are_more(layers, said):
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(layers)))
    with pytest.raises(ZooError, match=said):
        chosen_layers(model, ["z*"], [])


def test_a_folder_in_the_place_of_a_file_is_refused_before_the_work(weights, tmp_path):
    for verb in (
        ("plan", "digits-cnn", "--weights", weights, "--budget", "params=0.5"),
        ("collapse", "digits-cnn", "--weights", weights),
        ("export", tmp_path, "--to", "onnx"),
        ("report", tmp_path, tmp_path),
    ):
        result = rankfold(*verb, "-o", tmp_path)
        assert result.exit_code == 1
        assert result.stderr.startswith(f"error: {tmp_path}: is a folder: give the name of a file, such as {tmp_path}/")
    with pytest.raises(IsADirectoryError, match="is a folder: give the name of a file"):
        write_atomically(tmp_path, b"")
