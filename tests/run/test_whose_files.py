"""Whose the files in the directory of a run are, and what counts as the same request."""

from pathlib import Path

import pytest
import torch
from test_resume import BUDGET, SETTINGS, Data, elsewhere, network

import rankfold as rf
import rankfold.pipeline.compression.job as job_module
from rankfold.pipeline import ConfigError, Settings, compress, train
from rankfold.pipeline.compression.asked import valued
from rankfold.pipeline.compression.request import PLACE, request_of
from rankfold.pipeline.trainings.config import parse, read
from rankfold.pipeline.trainings.rundir import forget
from rankfold.run.claim import ClaimError, claimed
from rankfold.sites import Names
from rankfold.store import StoreError
from rankfold.train import checkpoint


def files(place: Path) -> dict[str, bytes]:
    return {str(each.relative_to(place)): each.read_bytes() for each in place.rglob("*") if each.is_file()}


def config(out: Path):
    return parse({"model": "digits-cnn", "data": "digits", "epochs": 1, "out": str(out)})


@pytest.mark.parametrize("theirs", ["checkpoint-best.pt", "metrics.jsonl", "checkpoint-500/weights.bin", "config.yaml"])
@pytest.mark.parametrize("restart", [False, True])
def test_a_training_takes_no_directory_with_files_that_it_did_not_write(tmp_path, theirs, restart):
    file = tmp_path / "run" / theirs
    file.parent.mkdir(parents=True)
    file.write_text("# my notes\nmodel: digits-cnn\ndata: digits\nout: run\n")
    (tmp_path / "run" / ".notes").write_text("hidden")
    before = files(tmp_path)
    for _ in range(2):  # the first attempt leaves nothing that makes the second one a run of ours
        with pytest.raises(ConfigError, match=f"holds no run of rankfold \\(it holds {theirs}\\)"):
            train(config(tmp_path / "run"), restart=restart)
    assert files(tmp_path) == before


def test_a_failed_start_is_in_nobodys_way_and_a_restart_removes_what_was_written(tmp_path):
    from rankfold.pipeline.trainings.rundir import PLACE as TRAINED

    asked = config(tmp_path).to_dict()
    TRAINED.take(tmp_path, asked)
    for name in ("inputs.json", "spectra.safetensors", "checkpoint-0001.pt", "metrics.jsonl"):
        (tmp_path / name).write_text("ours")
    (tmp_path / "checkpoint-best.pt").write_text("theirs")
    with pytest.raises(ConfigError, match=r"it holds checkpoint-best\.pt"):
        TRAINED.take(tmp_path, asked | {"epochs": 2})
    forget(tmp_path)
    assert sorted(files(tmp_path)) == ["checkpoint-best.pt", "config.yaml"]
    (tmp_path / "checkpoint-best.pt").unlink()
    TRAINED.take(tmp_path, asked | {"epochs": 2})
    assert read(tmp_path / "config.yaml")["epochs"] == 2


def test_checkpoints_replace_those_of_their_own_kind_alone(tmp_path):
    (tmp_path / "checkpoint-best.pt").write_text("theirs")
    for epoch in (1, 2):
        checkpoint.save(tmp_path, epoch, {})
    assert sorted(files(tmp_path)) == ["checkpoint-0002.pt", "checkpoint-best.pt", "checkpoint.json"]


@pytest.mark.parametrize("restart", [False, True])
def test_a_compression_takes_no_folder_named_run_that_is_somebody_elses(tmp_path, restart):
    (tmp_path / "run" / "data").mkdir(parents=True)
    (tmp_path / "run" / "data" / "labels.csv").write_text("mine")
    with pytest.raises(StoreError, match=r"holds no run of rankfold \(it holds run/data/labels\.csv\)"):
        compress(network(), Data(), BUDGET, settings=SETTINGS, directory=tmp_path, restart=restart)
    assert files(tmp_path) == {"run/data/labels.csv": b"mine"}


def test_a_restart_leaves_what_was_put_beside_the_state_of_a_compression(tmp_path):
    compress(network(), Data(), BUDGET, settings=SETTINGS, directory=tmp_path)
    (tmp_path / "run" / "mine.txt").write_text("mine")
    PLACE.forget(tmp_path)
    assert {name for name in files(tmp_path) if name.startswith("run/")} == {"run/mine.txt", "run/request.json"}


def test_a_job_that_is_refused_leaves_the_request_of_the_one_at_work(tmp_path, monkeypatch):
    """The second one looks when nothing is there yet, and is refused once the first has written its request."""
    take, seen = job_module.take, []

    def job() -> None:
        compress(network(), Data(), BUDGET, settings=SETTINGS, directory=tmp_path / "run")

    def while_another_starts(directory, *rest):
        def claiming(place, **settings):
            take(directory, *rest)  # by the first one, meanwhile
            return claimed(place, **settings)

        monkeypatch.setattr(job_module, "claimed", claiming)
        seen.extend([type(elsewhere(job)), (directory / PLACE.file).exists()])
        raise KeyboardInterrupt

    monkeypatch.setattr(job_module, "take", while_another_starts)
    with pytest.raises(KeyboardInterrupt):
        job()
    assert seen == [ClaimError, True]
    assert not (tmp_path / "run").exists()  # nothing was measured


def asked(**settings) -> dict:
    return request_of(network(), Data(), (), Settings(**settings))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"where": lambda name, module: name == "2"}, {"where": lambda name, module: name == "0"}),
        ({"method": rf.Sequential(damping=1e-8)}, {"method": rf.Sequential(damping=1.0, one_shot=False)}),
        ({"method": "sequential"}, {"method": rf.Sequential(damping=1.0)}),
        ({"objective": "classification"}, {"objective": rf.Classification(ignore=2)}),
        (
            {"objective": rf.objective("mine", loss=lambda output, batch: output.sum())},
            {"objective": rf.objective("mine", loss=lambda output, batch: output.mean())},
        ),
    ],
    ids=["layers", "method", "settings beside a name", "objective", "own objective"],
)
def test_another_object_of_the_same_name_is_another_request(one, other):
    assert asked(**one) != asked(**other)
    assert asked(**one) == asked(**one)
    assert {name for name in asked(**one) if asked(**one)[name] != asked(**other)[name]} == set(one)


def test_what_a_name_stands_for_is_written_as_by_earlier_versions():
    for method in ("project", rf.Sequential()):
        assert asked(method=method)["method"] == getattr(method, "name", method)
    assert asked(objective=rf.Classification())["objective"] == "classification"
    assert asked(objective="segmentation")["objective"] == "segmentation"
    assert asked(where="2")["where"] == "2"
    assert asked(where=Names(only="2"))["where"] == {"only": ["2"], "exclude": []}
    assert asked(where=lambda name, module: name == "2")["where"] == ["2"]
    damped = valued(rf.Sequential(damping=0.5), ())
    assert (damped["name"], damped["damping"], damped["class"].endswith("Sequential")) == ("sequential", 0.5, True)


def test_a_finished_run_is_not_handed_out_for_other_layers_nor_is_its_profile(tmp_path):
    def run(place: str, name: str, **more):
        settings = Settings(curve=False, samples=64, slices=False, where=lambda each, module: each == name, **more)
        return compress(network(), Data(), "params=0.9", settings=settings, directory=tmp_path / place)

    first = run("first", "0")
    assert [entry.site for entry in run("first", "0").plan.changed] == [entry.site for entry in first.plan.changed]
    with pytest.raises(StoreError, match="where was"):
        run("first", "2")
    with pytest.raises(StoreError, match="another choice of layers"):
        run("second", "2", profile=tmp_path / "first")
    x, again = torch.ones(1, 16), run("third", "0", profile=tmp_path / "first")
    assert torch.equal(again.model(x), first.model(x))
