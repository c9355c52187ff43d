"""``rankfold slice``: one artifact, every smaller budget."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import failed, rankfold, succeeded
from digits import write_weights


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("slices")


@pytest.fixture(scope="module")
def artifact(place) -> Path:
    weights = write_weights(place / "digits.safetensors")
    succeeded("plan", "digits-cnn", "--weights", weights, "--budget", "flops=0.5", "--samples", 200, "-o", place / "p.json")  # fmt: skip # noqa: E501
    succeeded("apply", "digits-cnn", place / "p.json", "--weights", weights, "--data", "digits", "-o", place / "half")
    succeeded("apply", "digits-cnn", place / "p.json", "--weights", weights, "-o", place / "bare")
    return place / "half"


def test_one_artifact_serves_smaller_budgets(artifact, place):
    found = succeeded("slice", artifact, "--budget", "flops=0.3", "-o", place / "third", "--data", "digits")
    assert found["after"]["flops"] <= 0.3 * found["original"]["flops"] < found["from"]["flops"]
    assert found["directory"] == str(place / "third")
    assert found["accuracy"]["after"] > found["accuracy"]["before"] - 0.1
    assert 0 < found["change"] < 1
    assert {"site", "form", "rank_before", "rank", "error", "change", "params", "flops"} == set(found["layers"][0])
    figures = succeeded("evaluate", place / "third")
    assert (figures["params"], figures["flops"]) == (found["after"]["params"], found["after"]["flops"])
    again = succeeded("slice", place / "third", "--budget", "flops=0.2", "-o", place / "fifth")
    assert again["accuracy"] is None
    assert again["original"] == found["original"]
    assert again["from"] == found["after"]
    assert succeeded("evaluate", place / "fifth")["flops"] == again["after"]["flops"]
    assert "ranks sliced" in rankfold("show", place / "fifth").stdout


def test_without_out_it_only_tells_the_price(artifact):
    before = sorted(path.name for path in artifact.iterdir())
    text = rankfold("slice", artifact, "--budget", "flops=0.3").stdout
    assert "asked: flops ≤ 0.3 of dense, the original network" in text
    assert "predicted change of the outputs" in text
    assert "original" in text
    assert "before" in text
    assert sorted(path.name for path in artifact.iterdir()) == before
    assert "nothing changes" in rankfold("slice", artifact, "--budget", "flops=0.9").stdout


def test_an_artifact_without_bottlenecks_says_what_to_do(artifact, place):
    bare = place / "bare"
    assert not (bare / "bottlenecks.safetensors").exists()
    line = failed("slice", bare, "--budget", "flops=0.3")
    assert "--measure --data NAME" in line
    found = succeeded("slice", bare, "--budget", "flops=0.3", "--measure", "--data", "digits", "-o", place / "mended")
    assert found["after"]["flops"] <= 0.3 * found["original"]["flops"]
    assert (place / "mended" / "bottlenecks.safetensors").exists()


def test_bad_input(artifact, place):
    assert "too small for a slice" in failed("slice", artifact, "--budget", "flops=0.001")
    assert "cannot be planned by latency" in failed("slice", artifact, "--budget", "latency=0.5")
    assert "no manifest.json" in failed("slice", place, "--budget", "flops=0.3")
    for wrong in (
        ("slice", artifact),
        ("slice", artifact, "--budget", "flops=30%"),
        ("slice", artifact, "--budget", "flops=0.3", "-o", artifact),
        ("slice", artifact, "--budget", "flops=0.3", "--measure"),
    ):
        assert rankfold(*wrong).exit_code == 2


def test_compress_keeps_what_slice_needs_unless_told_otherwise(artifact, place):
    common = (
        "compress",
        "digits-cnn",
        "--weights",
        place / "digits.safetensors",
        "--budget",
        "flops=0.4",
        "--no-curve",
    )
    succeeded(*common, "--samples", 200, "-o", place / "kept")
    succeeded(*common, "--samples", 200, "--no-slices", "-o", place / "left")
    assert (place / "kept" / "bottlenecks.safetensors").exists()
    assert not (place / "left" / "bottlenecks.safetensors").exists()
    assert succeeded("slice", place / "kept", "--budget", "flops=0.3")["layers"]
