"""Damaged files of every kind: each is read as it was meant, or refused in one line that a person can use.

A short run by default; ``RANKFOLD_DAMAGED=1000`` damages so many files, ``RANKFOLD_FUZZ_SEED`` draws others.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from damage import damage, signed_anew
from jobs import sequences, streaming
from safetensors.torch import load, save_file
from torch import nn
from torch.utils.data import TensorDataset

import rankfold as rf
from rankfold.pipeline import Settings, Tell, compress
from rankfold.pipeline.trainings.config import parse, read
from rankfold.recover import FactorModel
from rankfold.recover.tables.reading import read_triplets
from rankfold.run.disk.container import metadata
from rankfold.zoo import load_weights

DAMAGED = int(os.environ.get("RANKFOLD_DAMAGED", "60"))
SEED = int(os.environ.get("RANKFOLD_FUZZ_SEED", "0"))
LONGEST = 2500  # characters of a line that a person reads


class Data:
    def __init__(self) -> None:
        x = torch.randn(192, 12, generator=torch.Generator().manual_seed(0))
        parts = [TensorDataset(part, torch.arange(len(part)) % 3) for part in x.split((96, 64, 32))]
        self.train, self.validation, self.test = parts


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(12, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 3)).eval()


X = torch.randn(5, 12, generator=torch.Generator().manual_seed(3))
INPUTS = torch.randn(64, 12, generator=torch.Generator().manual_seed(4))
QUICK = Settings(curve=False, samples=64, slices=False)
DROP = Settings(curve=False, samples=64, slices=False, max_drop=20.0)
RECIPE = rf.Recipe(epochs=2, batch_size=32, learning_rate=0.01)


def stopped(at: str, run: Callable[[Tell], Any]) -> None:
    """A run that is interrupted where it says ``at``."""

    def say(sentence: str) -> None:
        if sentence.startswith(at):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Tell(say=say))


def outputs(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():  # in float64: weights keep the type that they were saved in
        return copy.deepcopy(model).double().eval()(X.double())


# ---- what is written, and how it is read -----------------------------------------------------------------------------


def write_plan(place: Path) -> None:
    rf.plan(network(), "params=0.7", "project", INPUTS).save(place / "plan.json")


def read_plan(place: Path) -> torch.Tensor:
    return outputs(rf.apply_(network(), rf.Plan.load(place / "plan.json")))


def write_fitted(place: Path) -> None:
    rf.plan(network(), "params=0.7", "sequential", list(INPUTS.split(16))).save(place / "plan.json")


def write_saved(place: Path) -> None:
    model = network()
    plan = rf.plan(model, "params=0.8", "project", INPUTS)
    rf.apply_(model, plan)
    rf.save(model, plan, place, notes={"model": "mine", "input": {"shape": [12], "dtype": "float32"}},
            bottlenecks=rf.bottlenecks(model, INPUTS))  # fmt: skip


def read_saved(place: Path) -> torch.Tensor:
    stored = rf.load(place, network())
    found = outputs(stored.model)
    if stored.bottlenecks is not None:
        rf.slice_(stored, "params=0.6", example=X[:1])
    return found


def write_quantised(place: Path) -> None:
    model = network().bfloat16()
    plan = rf.plan(model, "bytes=0.75", data=INPUTS.bfloat16(), forms="residual,int8")
    assert {entry.form.value for entry in plan.changed} == {"residual", "int8"}
    rf.save(rf.apply_(model, plan), plan, place)


def read_quantised(place: Path) -> torch.Tensor:
    return outputs(rf.load(place, network()).model)


def write_streamed(place: Path) -> None:
    streaming(place)


def read_streamed(place: Path) -> torch.Tensor:
    """The folder, and that the run in it is finished."""
    with torch.no_grad():
        found = rf.load(place).model(**sequences(4, 3)[0]).logits
    streaming(place)
    return found


def write_interrupted_stream(place: Path) -> None:
    stopped("plan: ", lambda tell: streaming(place, tell))


def read_interrupted_stream(place: Path) -> torch.Tensor:
    with torch.no_grad():
        return streaming(place)(**sequences(4, 3)[0]).logits


def write_profile(place: Path) -> None:
    rf.profile(network(), INPUTS).save(place / "profile.safetensors")


def read_profile(place: Path) -> torch.Tensor:
    known = rf.Profile.load(place / "profile.safetensors", network(), INPUTS)
    return outputs(rf.apply_(network(), known.plan("params=0.7"), known))


def write_parts(place: Path) -> None:
    """What a fit layer after layer keeps."""
    rf.plan(network(), "params=0.7", "sequential", list(INPUTS.split(16)), directory=place)


def read_parts(place: Path) -> torch.Tensor:
    plan = rf.plan(network(), "params=0.7", "sequential", list(INPUTS.split(16)), directory=place)
    return outputs(rf.apply_(network(), plan))


def run(place: Path, settings: Settings, **more: Any) -> torch.Tensor:
    budget = () if settings.max_drop is not None else "params=0.7"
    return outputs(compress(network(), Data(), budget, settings=settings, directory=place, **more).model)


def write_finished(place: Path) -> None:
    run(place, QUICK)


def read_finished(place: Path) -> torch.Tensor:
    return run(place, QUICK)


def write_interrupted(place: Path) -> None:
    stopped("plan: ", lambda tell: run(place, QUICK, tell=tell))


def write_searched(place: Path) -> None:
    stopped("plan: ", lambda tell: run(place, DROP, tell=tell))


def read_searched(place: Path) -> torch.Tensor:
    return run(place, DROP)


def write_checkpoint(place: Path) -> None:
    """A training that was interrupted after its first epoch."""

    def stop(now: Any) -> None:
        if now.epoch == 2:
            raise KeyboardInterrupt

    data = Data()
    with pytest.raises(KeyboardInterrupt):
        rf.fit(network(), data.train, data.validation, RECIPE, directory=place, progress=stop)


def read_checkpoint(place: Path) -> torch.Tensor:
    data, model = Data(), network()
    rf.fit(model, data.train, data.validation, RECIPE, directory=place)
    return outputs(model)


def write_recording(place: Path) -> None:
    recorder = rf.SpectrumRecorder(network(), rank=3)
    for epoch in range(3):
        recorder.step(epoch)
    recorder.save(place / "spectra.safetensors")


def read_recording(place: Path) -> torch.Tensor:
    return torch.tensor(len(rf.SpectrumRecorder.load(place / "spectra.safetensors").frame()))


def write_weights(place: Path) -> None:
    save_file(network().state_dict(), place / "weights.safetensors")
    torch.save({"state_dict": network().state_dict()}, place / "weights.pt")


def read_weights(place: Path) -> None:
    for file in ("weights.safetensors", "weights.pt"):
        load_weights(network(), place / file)


def write_factors(place: Path) -> None:
    rows = [(f"u{i}", f"i{j}", float(i + j % 3)) for i in range(6) for j in range(5) if (i + j) % 4]
    (place / "ratings.csv").write_text("user,item,rating\n" + "".join(f"{u},{i},{r}\n" for u, i, r in rows))
    np.savez(
        place / "ratings.npz",
        rows=np.arange(6),
        columns=np.arange(6) % 3,
        values=np.arange(6.0),
        shape=np.array([6, 3]),
    )
    pd.DataFrame(rows, columns=["user", "item", "rating"]).to_parquet(place / "ratings.parquet")
    users, items = (tuple(sorted({row[at] for row in rows})) for at in (0, 1))
    left, right = np.ones((len(users) + 1, 2)), np.ones((2, len(items) + 1))
    (place / "factors.safetensors").write_bytes(FactorModel(left, right, 0.0, 0.0, 5.0, users, items).to_bytes())


def read_factors(place: Path) -> None:
    for ending in ("csv", "npz", "parquet"):
        read_triplets(place / f"ratings.{ending}")
    FactorModel.from_bytes((place / "factors.safetensors").read_bytes(), "factors.safetensors")


def write_config(place: Path) -> None:
    (place / "train.yaml").write_text(
        "model: digits-cnn\ndata: digits\nout: x\nepochs: 2\nlearning_rate: 1e-3\ndepth: 2\nschedule: cosine\n"
    )


def read_config(place: Path) -> None:
    parse(read(place / "train.yaml"), place / "train.yaml")


@dataclass(frozen=True)
class Kind:
    """``held``: every file is under a hash, so that damage which nobody signs is noticed or without effect. ``remade``:
    what is damaged is made again, so that nothing need be refused."""

    write: Callable[[Path], None]
    read: Callable[[Path], Any]
    held: bool = True
    remade: bool = False


KINDS = {
    "plan": Kind(write_plan, read_plan, held=False),
    "plan with factors": Kind(write_fitted, read_plan, held=False),
    "saved network": Kind(write_saved, read_saved),
    "quantised network": Kind(write_quantised, read_quantised),
    "streamed folder": Kind(write_streamed, read_streamed),
    "interrupted stream": Kind(write_interrupted_stream, read_interrupted_stream, held=False, remade=True),
    "profile": Kind(write_profile, read_profile),
    "parts of a fit": Kind(write_parts, read_parts, remade=True),
    "finished run": Kind(write_finished, read_finished, held=False),  # figures in result.json are under none
    "interrupted run": Kind(write_interrupted, read_finished, held=False),
    "interrupted search": Kind(write_searched, read_searched, held=False),
    "checkpoint": Kind(write_checkpoint, read_checkpoint, held=False),
    "recording": Kind(write_recording, read_recording),
    "weights": Kind(write_weights, read_weights, held=False),
    "ratings and factors": Kind(write_factors, read_factors, held=False),
    "configuration": Kind(write_config, read_config, held=False),
}


@cache
def made(kind: str, base: Path) -> tuple[Path, Any]:
    """A directory with the files of a kind, and what is read from it."""
    place = base / kind
    place.mkdir()
    with quiet():
        KINDS[kind].write(place)
        again = base / f"{kind} as it is"
        shutil.copytree(place, again)
        return place, KINDS[kind].read(again)


class quiet(warnings.catch_warnings):
    """Numbers that are none warn in many places; that is no error of reading."""

    def __enter__(self) -> Any:
        found = super().__enter__()
        warnings.simplefilter("ignore")
        return found


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("kinds")


def damaged(kind: str, number: int, base: Path, place: Path) -> tuple[str, bool]:
    """One damaged copy in ``place``: the name of the file, and whether its hashes were made right again."""
    draw = random.Random(f"{SEED} {kind} {number}")
    shutil.copytree(made(kind, base)[0], place)
    files = sorted(path for path in place.rglob("*") if path.is_file() and path.suffix not in (".html", ".sha256"))
    file = draw.choice(files)
    damage(file, draw)
    signed = draw.random() < 0.5
    if signed:
        signed_anew(place)
    return str(file.relative_to(place)), signed


@pytest.mark.timeout(0 if DAMAGED > 100 else 300)
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_read_as_it_was_meant_or_refused_in_one_line(kind, base, tmp_path):
    expected = made(kind, base)[1]
    share = DAMAGED // len(KINDS) + (list(KINDS).index(kind) < DAMAGED % len(KINDS))
    refused, wrong = 0, list[str]()
    for number in range(share):
        place = tmp_path / str(number)
        name, signed = damaged(kind, number, base, place)
        about = f"{kind} {number}: {name}{', signed anew' if signed else ''} (seed {SEED})"
        try:
            with quiet():
                found = KINDS[kind].read(place)
        except (ValueError, OSError) as error:
            refused += 1
            if not str(error) or "\n" in str(error).strip() or len(str(error)) > LONGEST:
                wrong.append(f"{about}: no line for a person: {error}")
        except Exception as error:
            wrong.append(f"{about}: {type(error).__name__}: {error}")
        else:
            meant = not KINDS[kind].held or signed or not isinstance(expected, torch.Tensor)
            if not meant and _untouched(place, name) and not torch.allclose(found, expected, atol=1e-5):
                wrong.append(f"{about}: read as something else without a word")
        shutil.rmtree(place, ignore_errors=True)
    assert not wrong, "\n".join(wrong)
    assert share < 20 or refused > 0 or KINDS[kind].remade


def _untouched(place: Path, name: str) -> bool:
    """Whether the hash of a file is still in it; without, it counts as one of the first release."""
    file = place / name
    if file.suffix != ".safetensors" or not file.exists():
        return True
    try:
        return "rankfold.sha256" in metadata(file.read_bytes())
    except ValueError:
        return True


def test_the_damage_is_no_illusion(base, tmp_path):
    """A reader that takes what it finds lets some of it pass, and ends in other errors."""
    passed = other = 0
    for number in range(40):
        place = tmp_path / str(number)
        damaged("profile", number, base, place)
        data = (place / "profile.safetensors").read_bytes()
        try:
            json.loads(metadata(data)["rankfold.profile"])["method"].upper()
            sum(float(value.sum()) for value in load(data).values())
            passed += 1
        except ValueError:
            continue
        except Exception:
            other += 1
    assert passed > 0
    assert other > 0
