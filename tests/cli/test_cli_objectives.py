"""The whole job by every objective, as a person would type it: labels of any kind, or none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import failed, rankfold, succeeded

from rankfold.report import FigureKind
from rankfold.report.quantities import title

COSTS = {"loss", "params", "flops", "bytes", "latency_ms"}
TEACHER = ("kl", "agreement")  # where the original is given
KINDS = {
    "regression": ("own:regression", "own:numbers", ["r2", "rmse", "mae"]),
    "teacher": ("own:regression", "own:inputs", ["change"]),
    "worst error": ("own:regression", "own:judged", ["worst error"]),
    "segmentation": ("own:segmenter", "own:maps", ["mean_iou", "accuracy"]),
    "embedding": ("own:encoder", "own:sentences", ["cosine", "neighbours"]),
    "causal-lm": ("own:language", "own:tokens", ["perplexity", "accuracy", "perplexity_error", "kl", "agreement"]),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What compress printed, its talk and its directory, once for each objective."""
    known = {}

    def make(kind: str) -> tuple[dict, str, Path]:
        if kind not in known:
            model, data, _ = KINDS[kind]
            out = tmp_path_factory.mktemp("own") / "out"
            asked = ("--objective", kind) if kind == "embedding" else ()
            done = rankfold(
                "compress", model, "--data", data, "--budget", "params=0.7", "--samples", 64, "--finetune-epochs", 1,
                "--no-slices", "-o", out, "--json", *asked,
            )  # fmt: skip
            assert done.exit_code == 0, done.stderr
            known[kind] = json.loads(done.stdout), done.stderr, out
        return known[kind]

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_compress_and_evaluate_by_every_objective(kind, made):
    values, said, out = made(kind)
    model, data, names = KINDS[kind]
    assert said.count(f"objective: {kind} (") == 1
    for stage in ("before", "compressed", "finetuned"):
        assert list(values[stage])[: len(names)] == names
        assert set(values[stage]) - {"prefill_ms", "decode_ms"} == {*names, *COSTS}
        assert ("decode_ms" in values[stage]) is (kind == "causal-lm")
    assert f"validation {names[0]}: " in said
    found = succeeded("evaluate", out, "--model", model, "--data", data, *_asked(kind))
    for name in {*names, "loss"} - {*TEACHER}:
        assert found[name] == pytest.approx(values["finetuned"][name], rel=1e-4, abs=1e-6)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert f"<h2>{title(FigureKind(names[0]))} against budget</h2>" in page
    assert f"<dt>objective</dt><dd>{kind} (" in page
    notes = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["notes"]
    assert notes["objective"] == kind
    assert notes["objective_why"]


def _asked(kind: str) -> tuple[str, str] | tuple[()]:
    return ("--objective", "own:worst") if kind == "worst error" else ()


def test_a_finished_run_is_read_back_with_its_figures(made):
    values, _, out = made("regression")
    again = succeeded(
        "compress", "own:regression", "--data", "own:numbers", "--budget", "params=0.7", "--samples", 64,
        "--finetune-epochs", 1, "--no-slices", "-o", out,
    )  # fmt: skip
    assert again["finetuned"] == values["finetuned"]
    other = failed(
        "compress", "own:regression", "--data", "own:numbers", "--budget", "params=0.7", "--samples", 64,
        "--finetune-epochs", 1, "--no-slices", "-o", out, "--objective", "teacher",
    )  # fmt: skip
    assert "objective" in other


def test_that_it_was_made_with_an_objective_of_ones_own_is_said(made):
    """A file does not decide which code runs: it was judged by something else, in silence."""
    _, _, out = made("worst error")
    asked = ("evaluate", out, "--model", "own:regression", "--data")
    again, own = rankfold(*asked, "own:numbers"), "made with the objective worst error, which is one of your own: judge"
    assert again.stderr.count(f"note: {out} was {own} by it again with --objective package.module:NAME") == 1
    assert "objective: regression" in again.stderr
    for told in (rankfold(*asked, "own:numbers", "--objective", "own:worst"), rankfold(*asked, "own:judged")):
        assert told.exit_code == 0
        assert own not in told.stderr


def test_what_a_model_does_not_take_is_said_once(made):
    _, said, _ = made("embedding")
    assert said.count("BertModel.forward takes no argument idx: this part of every batch is ignored") == 1


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "auto"])
def test_plan_and_apply_in_every_precision(precision, tmp_path):
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    common = ("--data", "own:numbers", "--device", "cpu", "--precision", precision)
    done = rankfold("plan", "own:regression", *common, "--budget", "params=0.7", "-o", plan)
    assert done.exit_code == 0, done.stderr
    assert "objective: regression (one number for each output)" in done.stderr
    done = rankfold("apply", "own:regression", plan, *common, "--no-slices", "-o", out)
    assert done.exit_code == 0, done.stderr  # the factory trains, and gives the same weights in any precision
    assert "validation r2: 0." in done.stderr
    table = rankfold("evaluate", out, "--model", "own:regression", *common)
    assert table.stdout.splitlines()[1].split()[0] == "r2"


def test_what_cannot_be_computed_here_is_said(made):
    _, _, out = made("regression")
    common = ("evaluate", out, "--model", "own:regression", "--data", "own:numbers")
    assert "float16 is computed only on cuda" in failed(*common, "--precision", "float16")
    assert "torch cannot compute there" in failed(*common, "--device", "quantum")
    assert "must be probabilities of the classes" in failed(*common, "--objective", "classification")
    wrong = rankfold(*common, "--objective", "regresion")
    assert wrong.exit_code == 2
    assert "did you mean regression" in wrong.stderr
    without = failed("evaluate", "own:regression", "--data", "own:inputs")
    assert "no other network to compare the outputs with" in without


def test_train_by_the_judged_figure(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("model: own:segmenter\ndata: own:maps\ndepth: 1\nepochs: 2\nbatch_size: 20\n")
    done = rankfold("train", config, "-o", tmp_path / "run", "--device", "cpu", "--precision", "float32")
    assert done.exit_code == 0, done.stderr
    assert "objective: segmentation" in done.stderr
    assert "validation mean_iou" in done.stdout
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert {"validation_mean_iou", "validation_accuracy", "validation_loss", "test_mean_iou"} <= set(result)
    found = succeeded(
        "evaluate", tmp_path / "run", "--model", "own:segmenter", "--data", "own:maps", "--split", "validation"
    )
    assert found["mean_iou"] == pytest.approx(result["validation_mean_iou"])


def test_the_original_that_outputs_are_compared_with_has_its_weights(made, tmp_path):
    """A factory that draws other weights is refused, the weights themselves are taken."""
    from own import regression
    from safetensors.torch import save_file

    _, _, out = made("teacher")
    network = regression()
    save_file(network.state_dict(), tmp_path / "right.safetensors")
    right = succeeded(
        "evaluate",
        out,
        "--model",
        "own:regression",
        "--data",
        "own:inputs",
        "--original",
        tmp_path / "right.safetensors",
    )
    assert right["change"] == pytest.approx(made("teacher")[0]["finetuned"]["change"], rel=1e-4)
    save_file({name: value + 0.5 for name, value in network.state_dict().items()}, tmp_path / "wrong.safetensors")
    said = failed(
        "evaluate",
        out,
        "--model",
        "own:regression",
        "--data",
        "own:inputs",
        "--original",
        tmp_path / "wrong.safetensors",
    )
    assert "other weights than those that this one was made from" in said
    assert "--original FILE" in said


def test_an_objective_that_nobody_asked_for_is_that_of_the_directory(made):
    _, _, out = made("regression")
    done = rankfold("evaluate", out, "--model", "own:regression", "--data", "own:numbers")
    assert f"objective: regression (as {out} was made)" in done.stderr
