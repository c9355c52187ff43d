"""What one job measures is measured once: decompositions, searches for sites and evaluations are counted."""

import importlib
import re
from collections import Counter

import pytest
import torch
from digits import digits, trained

import rankfold as rf
from rankfold.pipeline import Settings, Tell, compress
from rankfold.pipeline.compression.outcome.curve import KEPT
from rankfold.pipeline.compression.repair import compressed_copy

DECOMPOSITIONS = ("eigh", "svd", "svdvals", "eigvalsh")


class Counts(Counter):
    @property
    def decompositions(self) -> int:
        return sum(self[name] for name in DECOMPOSITIONS)


@pytest.fixture
def counts(monkeypatch):
    """Every decomposition of torch, search for sites by root, evaluation by network and split, fit of a sweep."""
    found = Counts()

    def counted(owner, name, key):
        real = getattr(owner, name)

        def wrapper(*args, **kwargs):
            found[key(*args, **kwargs) if callable(key) else key] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapper)

    for name in DECOMPOSITIONS:
        counted(torch.linalg, name, name)
    kept: list[object] = []  # so that no identity is used twice

    def who(model, *rest, **more):
        kept.append(model)
        return "sites", id(model)

    counted(importlib.import_module("rankfold.sites.find"), "_sites", who)
    data = digits()
    splits = {id(data.train): "train", id(data.validation): "validation", id(data.test): "test"}

    def what(model, split, *rest, **more):
        kept.append(model)
        return "evaluate", id(model), splits[id(split)]

    for place in (
        "pipeline.compression.job",
        "pipeline.compression.repair",
        "pipeline.compression.outcome.measure",
        "train.fit",
    ):
        counted(importlib.import_module(f"rankfold.{place}"), "evaluate", what)
    counted(rf.Sequential, "solve", "fits")
    return found


def job(network, directory, **how) -> tuple[object, list[str]]:
    said: list[str] = []
    settings = Settings(model="digits-cnn", **how)
    return compress(
        network, digits(), "flops=0.5", settings=settings, directory=directory, tell=Tell(say=said.append)
    ), said


def evaluations(counts, *, split: str) -> list[int]:
    return sorted(times for key, times in counts.items() if key[0] == "evaluate" and key[2] == split)


def test_one_compress(counts, tmp_path):
    network = trained()
    result, said = job(network, tmp_path / "run")
    assert counts.decompositions <= 24
    (told,) = [text for text in said if "decompositions of" in text]
    total, matrices, weighed = map(int, re.findall(r"\d+", told))
    assert counts.decompositions == total
    assert matrices == len(result.plan.entries)
    assert weighed < total
    # the original is searched once, its copies not at all, the compressed network when it is measured and when saved
    searches = {key[1]: times for key, times in counts.items() if key[0] == "sites"}
    assert searches == {id(network): 1, id(result.model): 2}
    # before, and one network for each point of the curve, of which the result is one; each stage once on test
    assert evaluations(counts, split="validation") == [1] * (1 + len(KEPT))
    assert evaluations(counts, split="test") == [1, 1]


def test_fine_tuning_evaluates_once_an_epoch_and_once_at_the_end(counts, tmp_path):
    network = trained()
    job(network, tmp_path / "run", finetune=2, curve=False, samples=256)
    assert evaluations(counts, split="test") == [1, 1, 1]
    tuned = max(evaluations(counts, split="validation"))
    assert evaluations(counts, split="validation") == [1, 1, tuned]
    assert tuned <= 3  # its start and each epoch


def test_nothing_is_decomposed_after_the_profile(counts):
    network, data = trained(), digits()
    known = rf.profile(network, data.train, calibration=rf.Calibration(samples=256))
    made = known.plan("flops=0.5")
    first = counts.decompositions
    assert first == known.decomposed
    for budget in ("flops=0.3", "params=0.5", ["flops=0.6", "params=0.4"], "energy=0.9"):
        for rule in ("optimal", "local", "global"):
            known.plan(budget, rule)
    copy, _ = compressed_copy(
        network, made, data.train.take(64, torch.Generator().manual_seed(0)), data.validation, profile=known
    )
    assert rf.model_cost(copy, torch.zeros(1, 1, 8, 8)) == made.after
    assert counts.decompositions == first
    rf.apply_(trained(), made)  # without the profile they are made again, once for each site that changes
    assert counts.decompositions == first + len(made.changed)


def test_an_interrupted_run_decomposes_again_only_what_it_factors(counts, tmp_path, monkeypatch):
    """Its profile is read back."""

    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    network, module = trained(), importlib.import_module("rankfold.pipeline.compression.job")
    with monkeypatch.context() as patch:
        patch.setattr(module, "save_result", stopped)
        with pytest.raises(KeyboardInterrupt):
            job(network, tmp_path / "run", samples=256, curve=False)
    first = counts.decompositions
    result, said = job(network, tmp_path / "run", samples=256, curve=False)
    assert any("resuming" in text for text in said)
    assert counts.decompositions <= first + len(result.plan.changed)


def test_layers_that_are_fitted_one_after_another_tell_their_count_beforehand(counts, tmp_path):
    result, said = job(trained(), tmp_path / "run", method="sequential", samples=256)
    (told,) = [text for text in said if text.endswith("fits")]
    layers, most = map(int, re.findall(r"\d+", told))
    assert "one after another, once: " in told
    assert most == layers
    assert 0 < counts["fits"] <= most
    assert said.index(told) < next(at for at, text in enumerate(said) if text.startswith("plan: "))
    (told,) = [text for text in said if "decompositions of" in text]
    assert counts.decompositions >= int(re.findall(r"\d+", told)[0])
    assert evaluations(counts, split="test") == [1, 1]
    assert len(result.plan.entries) == layers


def test_the_count_notices_a_job_that_decomposes_again(counts, tmp_path, monkeypatch):
    """What the counts above are worth: without the profile the copies are factored anew."""
    real = compressed_copy
    for place in ("pipeline.compression.job", "pipeline.compression.outcome.curve"):
        module = importlib.import_module(f"rankfold.{place}")
        monkeypatch.setattr(module, "compressed_copy", lambda *a, profile, **k: real(*a, profile=None, **k))
    with pytest.raises(AssertionError):
        test_one_compress(counts, tmp_path)
