"""Layers and ranks chosen on the command line."""

from pathlib import Path

import pytest
import torch
from commands import failed, rankfold, succeeded
from digits import write_weights

from rankfold.cli.choices import chosen_layers
from rankfold.compress.planning.plan import Plan
from rankfold.forms import Form
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
    assert line.startswith("error: --only features and --exclude *: this leaves no layer to be factored; those of")
    assert not (tmp_path / "small").exists()


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
