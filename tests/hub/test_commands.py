"""The command line with a folder of transformers: from text to a smaller folder that everybody can load."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from commands import failed, rankfold, succeeded
from folders import bert, llama, text

import rankfold as rf

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    llama(folder / "decoder")
    bert(folder / "encoder")
    (folder / "corpus.txt").write_text(text(200))
    (folder / "test.txt").write_text(text(60, seed=1))
    return folder


@pytest.fixture(autouse=True)
def inside(place, monkeypatch):
    monkeypatch.chdir(place)


TEXT = ("--data", "text:corpus.txt,test.txt", "--length", 32, "--windows", 12)


def test_a_decoder_from_plan_to_every_export(place):
    rows = succeeded("analyze", "decoder", "--no-plots", *TEXT)["sites"]
    assert "random" not in rankfold("analyze", "decoder", "--no-plots", "--only", "lm_head").stderr
    assert {row["site"] for row in rows} >= {"model.layers.0.self_attn.q_proj", "lm_head"}
    assert all(row["output_rank_90"] is not None for row in rows if row["kind"] == "Linear")
    plan = succeeded(
        "plan", "decoder", *TEXT, "--method", "truncate", "--budget", "params=0.8", "--of", "sites", "-o", "p.json"
    )
    assert plan["budgets"] == [{"keep": 0.8, "kind": "params"}, {"kind": "of"}]
    shown = rankfold("show", "p.json").stdout
    kept = rf.Plan.load("p.json").kept_of_factorable()
    assert 0.77 < kept <= 0.8
    assert f"{100 * kept:.1f} % of the layers that can be factored" in shown
    succeeded("apply", "decoder", "p.json", "-o", "applied")
    small = rf.load("applied").model
    loaded = transformers.AutoModelForCausalLM.from_pretrained("applied")
    ids = transformers.AutoTokenizer.from_pretrained("applied")("the cat", return_tensors="pt")["input_ids"]
    assert torch.equal(loaded(ids).logits, small(ids).logits)
    told = succeeded("evaluate", "applied", *TEXT, "--original", "decoder")
    assert {"perplexity", "perplexity_error", "kl", "agreement", "prefill_ms", "decode_ms", "protocol"} <= told.keys()
    assert told["kl"] > 0
    assert told["protocol"].startswith("perplexity over 12 windows of 32 tokens that do not overlap")
    assert "372 are" in told["protocol"]
    for target, file in (("onnx", "s.onnx"), ("torch-export", "s.pt2"), ("dense", "dense")):
        assert succeeded("export", "applied", "--to", target, "-o", file)["max_abs_difference"] < 1e-4
    dense = transformers.AutoModelForCausalLM.from_pretrained("dense")
    torch.testing.assert_close(dense(ids).logits, small(ids).logits, rtol=1e-4, atol=1e-4)
    assert (place / "dense" / "tokenizer.json").exists()
    assert "and multiplied out" in (place / "dense" / "README.md").read_text()
    assert "there are files already" in failed("export", "applied", "--to", "dense", "-o", "dense")


def test_what_save_pretrained_wrote_of_a_compressed_model_is_judged_and_exported(place):
    """As after an adapter was merged, or by a Trainer: a folder without plan and manifest."""
    asked = ("--method", "truncate", "--budget", "params=0.8", "-o", "r.json")
    succeeded("plan", "decoder", *TEXT, *asked)
    succeeded("apply", "decoder", "r.json", "-o", "once")
    small = transformers.AutoModelForCausalLM.from_pretrained("once")
    small.save_pretrained("resaved")
    transformers.AutoTokenizer.from_pretrained("once").save_pretrained("resaved")
    once, again = (succeeded("evaluate", each, *TEXT, "--original", "decoder") for each in ("once", "resaved"))
    assert again["kl"] == pytest.approx(once["kl"])
    assert again["params"] == once["params"]
    assert succeeded("export", "resaved", "--to", "dense", "-o", "resaved-dense")["max_abs_difference"] < 1e-4
    assert "no data were given" in failed("evaluate", "resaved")
    assert "needs the plan of the compression" in failed("slice", "resaved", "--budget", "params=0.7")


def test_compress_writes_a_folder_that_is_read_back(place):
    asked = (
        "compress",
        "decoder",
        *TEXT,
        "--method",
        "truncate",
        "--budget",
        "params=0.8",
        "-o",
        "small",
        "--no-curve",
    )
    made = succeeded(*asked)
    for stage in ("before", "compressed"):
        assert {"perplexity", "perplexity_error", "kl", "agreement", "prefill_ms", "decode_ms"} <= made[stage].keys()
    assert (made["before"]["kl"], made["before"]["agreement"]) == (0, 1)
    assert succeeded(*asked)["compressed"] == made["compressed"]  # finished: only read
    config = json.loads((place / "small" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "rankfold"
    card = (place / "small" / "README.md").read_text()
    assert "import rankfold.hub" in card
    assert "| perplexity |" in card
    again = succeeded("evaluate", "small")  # its data, length and windows are in the manifest
    assert again["perplexity"] == pytest.approx(made["compressed"]["perplexity"])
    beside = succeeded("evaluate", "small", "--original", "decoder")
    assert beside["original"]["perplexity"] == pytest.approx(made["before"]["perplexity"])
    assert again["protocol"].startswith("perplexity over 12 windows of 32")
    assert "already compressed" in failed("compress", "small", *TEXT, "--budget", "params=0.5", "-o", "smaller")
    said = failed("adapt", "small", *TEXT, "--method", "debora", "-o", "adapter")
    assert "rankfold.hub.adapters" in said
    assert "--original" in said
    assert "slice" not in said


def test_windows_that_a_file_holds_are_taken_as_long_as_they_are(place):
    import numpy as np

    drawn = np.random.default_rng(0).integers(3, 20, (40, 24))
    np.save("windows.npy", drawn)
    np.save("row.npy", drawn.flatten())
    data = ("--data", "tokens:windows.npy", "--windows", 4)
    found = succeeded("evaluate", "decoder", *data)
    assert "4 windows of 24 tokens" in found["protocol"]
    assert found["perplexity"] == succeeded("evaluate", "decoder", *data, "--length", 24)["perplexity"]
    said = failed("evaluate", "decoder", *data, "--length", 12)
    assert "--length 12: tokens:windows.npy holds windows of 24 tokens already: leave --length out" in said
    assert "4 windows of 12" in succeeded(
        "evaluate", "decoder", "--data", "tokens:row.npy", "--length", 12, "--windows", 4
    )["protocol"]  # fmt: skip
    longest = transformers.AutoConfig.from_pretrained("decoder").max_position_embeddings
    np.save("long.npy", np.ones((40, longest + 1), dtype=int))
    said = failed("evaluate", "decoder", "--data", "tokens:long.npy")
    assert f"its windows are {longest + 1} tokens long, and the model takes at most {longest}" in said


def test_another_checkpoint_of_the_same_shape_is_no_original(place):
    asked = ("--method", "truncate", "--budget", "params=0.8", "-o", "o.json")
    succeeded("plan", "decoder", *TEXT, *asked)
    succeeded("apply", "decoder", "o.json", "-o", "of-decoder")
    other = transformers.AutoModelForCausalLM.from_pretrained("decoder")
    with torch.no_grad():
        other.lm_head.weight += 0.01
    other.save_pretrained("other")
    for words in (("adapt", "of-decoder", "-o", "restored", "--steps", 2), ("evaluate", "of-decoder")):
        said = failed(*words, *TEXT, "--original", "other")
        assert "other holds other weights than those that this one was made from" in said
        assert "--original FOLDER" in said
    assert not (place / "restored").exists()


def test_the_forecast_stands_beside_what_was_measured_and_tuning_takes_no_labels(place):
    said = rankfold(
        "compress", "decoder", *TEXT, "--budget", "params=0.9", "--tune", 3, "-o", "tuned", "--no-curve", "--no-slices"
    )
    assert said.exit_code == 0, said.output
    told = json.loads((place / "tuned" / "result.json").read_text())["forecast"]
    assert (told["unit"], told["where"]) == ("nats per token", "the test split")
    assert f"measured {told['measured']:.3g} on the test split, before any fine-tuning: nats of KL" in said.stdout
    assert "with tuned factors" in said.output + said.stderr
    tuning = json.loads((place / "tuned" / "result.json").read_text())["tuning"]
    assert json.loads((place / "tuned" / "manifest.json").read_text())["notes"]["tuning"] == tuning
    (whole,) = tuning["parts"]
    assert (tuning["steps"], tuning["by"], whole["block"], whole["step"]) == (3, "whole", "", 0)
    sentence = f"held-out samples was {whole['before']:.4g} before, and no step lowered it: the factors stay as they"
    kept = (
        f"tuning was tried and not kept: 3 steps of the whole network; its divergence from the original on {sentence}"
    )
    assert kept in said.stdout
    assert (said.stdout + said.stderr).count("3 steps of the whole network") == 1
    page = (place / "tuned" / "report.html").read_text()
    assert sentence in page
    assert all(row in page for row in ("Prefill of a prompt", "Decode of a token"))
    plan = rf.Plan.load(place / "tuned" / "plan.json")
    assert plan.forecast == pytest.approx(told["value"])
    assert not any(entry.bias for entry in plan.entries)
    asked = ("compress", "decoder", *TEXT, "--budget", "params=0.9", "--tune", 2, "--no-curve", "--no-slices")
    blocked = rankfold(*asked, "--tune-by", "blocks", "-o", "blocked")
    assert "with tuned blocks" in blocked.output + blocked.stderr
    assert succeeded(*asked, "--tune-by", "blocks", "-o", "blocked")["tuning"]["by"] == "blocks"  # read back
    assert "2 steps of each of 2 blocks; the squared error of a block's output" in blocked.stdout
    request = json.loads((place / "blocked" / "run" / "request.json").read_text())
    assert (request["tune"], request["tune_by"]) == (2, "blocks")


def test_what_was_lost_is_won_back_by_an_adapter_that_merges(place):
    succeeded("plan", "decoder", *TEXT, "--method", "truncate", "--budget", "params=0.7", "-o", "q.json")
    succeeded("apply", "decoder", "q.json", "-o", "thin")
    asked = ("adapt", "thin", "--original", "decoder", *TEXT, "--budget", "params=0.05")
    told = succeeded(*asked, "--steps", 12, "-o", "restored")
    assert told["after"]["kl"] < told["before"]["kl"]
    assert told["adapter"]["after"] < told["adapter"]["before"]
    thin, restored = rf.load("thin"), rf.load("restored")
    assert restored.plan.to_json() == thin.plan.to_json()
    shapes = [{key: value.shape for key, value in stored.model.state_dict().items()} for stored in (thin, restored)]
    assert shapes[0] == shapes[1]
    assert succeeded("evaluate", "restored", *TEXT, "--original", "decoder")["kl"] == pytest.approx(told["after"]["kl"])
    assert transformers.AutoTokenizer.from_pretrained("restored")("the cat")
    assert "there are files already" in failed(*asked, "-o", "restored")
    dense = rankfold("adapt", "decoder", "--original", "decoder", *TEXT, "-o", "none")
    assert dense.exit_code == 2
    assert "a directory that compress or apply wrote" in dense.output + dense.stderr


def test_an_encoder_is_judged_by_the_directions_of_its_vectors(place):
    lines = ("--data", "text:corpus.txt", "--windows", 30)
    made = succeeded("compress", "encoder", *lines, "--budget", "params=0.8", "-o", "vectors", "--no-curve")
    assert made["before"]["cosine"] == pytest.approx(1)
    assert 0.5 < made["compressed"]["cosine"] < 1
    assert 0 <= made["compressed"]["neighbours"] <= 1
    assert "of the original that it was made from, --original encoder" in failed("evaluate", "vectors")
    told = succeeded("evaluate", "vectors", "--original", "encoder")
    assert told["cosine"] == pytest.approx(made["compressed"]["cosine"])
    loaded = transformers.AutoModel.from_pretrained("vectors")
    assert any(isinstance(module, rf.LowRankLinear) for module in loaded.modules())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("analyze", "some/model", *TEXT), "this is neither a directory nor in the cache of the hub: add --download"),
        (("plan", "decoder", "--budget", "params=0.5", "-o", "p.json"), "give --data text:FILE (.txt"),
        (("plan", "decoder", "--data", "text:gone.txt", "--budget", "params=0.5", "-o", "p.json"), "gone.txt"),
        (("analyze", "decoder", "--data", "text:test.txt", "--length", 65), "the model takes at most 64 tokens"),
        (("analyze", "digits-cnn", "--data", "digits", "--length", 8), "--length and --windows go only with text:FILE"),
        (("analyze", "digits-cnn", "--data", "text:test.txt"), "text is data for a language model or encoder"),
        (("analyze", "decoder", "--weights", "w.safetensors"), "a folder holds its own weights"),
        (("evaluate", "encoder", "--data", "text:test.txt"), "no other network to compare the outputs with"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_before_the_work(words, said):
    assert said in failed(*words)


@pytest.mark.parametrize("model", ["decoder", "digits-cnn"])
def test_a_file_of_data_is_answered_by_how_it_is_given(model):
    told = rankfold("plan", model, "--data", "test.txt", "--budget", "params=0.5", "-o", "p.json")
    assert told.exit_code == 2
    assert "give it as text:test.txt" in told.stderr


@pytest.mark.parametrize("verb", ["compress", "apply"])
def test_a_disk_that_is_too_small_is_told_before_the_work(verb, monkeypatch, place):
    usage = shutil.disk_usage(place)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    words = ("decoder", *TEXT, "--budget", "params=0.5") if verb == "compress" else ("decoder", "p.json")
    assert "bytes will be needed there, and 100 are free: free some space" in failed(
        verb, *words, "-o", "elsewhere/small"
    )
    assert not (place / "elsewhere").exists()


def test_a_foreign_tokenizer_and_a_damaged_shard_are_told(place, tmp_path):
    small = llama(tmp_path / "small", vocabulary=8)
    budget = ("--budget", "params=0.5", "-o", tmp_path / "p.json")
    assert "and the model knows tokens below 8" in failed("plan", small, "--data", "text:test.txt", *budget)
    weights = place / "decoder" / "model.safetensors"
    shutil.copytree(place / "decoder", tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").write_bytes(weights.read_bytes()[:-9])
    assert "damaged or cut short" in failed("plan", tmp_path / "cut", *TEXT, *budget)


def test_an_interrupted_job_leaves_a_mark_that_goes_when_it_ends(place, monkeypatch):
    from rankfold.pipeline.compression import tuning

    asked = ("compress", "decoder", *TEXT, "--budget", "params=0.9", "--tune", 2, "--no-curve", "--no-slices")
    asked = (*asked, "-o", "halted")

    def stopped(*args, **more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(tuning, "tune_", stopped)
        assert rankfold(*asked).exit_code != 0
    said = "halted: the job that wrote it has not ended, and tuning, then the measurement on the test split is still to"
    for words in (
        ("evaluate", "halted"),
        ("show", "halted"),
        ("export", "halted", "--to", "dense", "-o", "halted-dense"),
    ):
        told = rankfold(*words)
        assert told.exit_code == 0, told.output
        assert said in " ".join(told.stderr.split())
    with pytest.warns(rf.store.Unfinished, match="has not ended"):
        rf.load("halted")
    assert "**Unfinished:**" in (place / "halted" / "README.md").read_text()
    assert rankfold(*asked).exit_code == 0
    assert "has not ended" not in rankfold("evaluate", "halted").stderr
    assert "Unfinished" not in (place / "halted" / "README.md").read_text()


def test_how_much_text_there_is_to_go_through_is_told_with_the_remedy(place):
    whole = rankfold("evaluate", "encoder", "--data", "text:corpus.txt", "--json", "--original", "encoder").stderr
    assert re.search(
        r"text: all lines of .*, [\d,]+ to learn from, [\d,]+ to choose on, [\d,]+ to test on; --windows N", whole
    )
    part = rankfold(
        "evaluate", "encoder", "--data", "text:corpus.txt", "--windows", 4, "--json", "--original", "encoder"
    )
    assert "text: all" not in part.stderr


def test_another_budget_takes_the_profile_of_an_earlier_run(place, monkeypatch):
    from rankfold.pipeline.compression import planned

    asked = ("compress", "decoder", *TEXT, "--no-curve", "--no-slices", "--budget")
    first = succeeded(*asked, "params=0.9", "-o", "measured")
    assert "--profile measured" in failed(*asked, "params=0.8", "-o", "measured")
    fresh = succeeded(*asked, "params=0.8", "-o", "fresh")
    with monkeypatch.context() as patched:
        patched.setattr(planned, "profiled", None)  # nothing is measured
        again = succeeded(*asked, "params=0.8", "-o", "again", "--profile", "measured")
        assert succeeded(*asked, "params=0.8", "-o", "thrice", "--profile", "again/run/profile.safetensors")
    counted = ("perplexity", "kl", "params")
    assert {key: again["compressed"][key] for key in counted} == {key: fresh["compressed"][key] for key in counted}
    assert again["compressed"]["params"] < first["compressed"]["params"]
    for other, words in (
        (("--samples", 5), "another number of samples"),
        (("--method", "truncate"), "another method"),
        (("--method", "sequential"), "fits layer after layer"),
        (("--windows", 3), "another training data"),
        (("--exclude", "lm_head"), "another choice of layers"),
    ):
        assert words in failed(*asked, "params=0.8", "-o", "n", "--profile", "measured", *other)
    assert "another model, or its weights" in failed(
        "compress", "encoder", "--data", "text:corpus.txt", "--budget", "params=0.8", "-o", "n", "--profile", "measured"
    )
    assert "there is no run/profile.safetensors" in failed(*asked, "params=0.8", "-o", "n", "--profile", "encoder")
    assert not (place / "n").exists()
