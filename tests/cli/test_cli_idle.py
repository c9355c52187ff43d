"""Options that would do nothing beside the others are wrong usage, and nothing is begun."""

import numpy as np
import pandas as pd
import pytest
from commands import rankfold, succeeded

ENTRIES = pd.DataFrame({"user": [f"u{at % 6}" for at in range(24)], "item": [f"i{at // 6}" for at in range(24)]})


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rated = ENTRIES.assign(rating=np.arange(24.0) % 7, time=np.arange(24))
    rated.to_csv("e.csv", index=False)
    rated.to_parquet("e.parquet")
    ENTRIES.iloc[np.r_[:24:2, 0, 2]].to_csv("plays.csv", index=False)
    np.save("e.npy", np.arange(24.0).reshape(6, 4) % 7)
    np.savez("e.npz", rows=ENTRIES["user"].tolist(), columns=ENTRIES["item"].tolist(), values=np.arange(24.0))
    np.savez("measured.npz", y=np.ones(12), A=np.random.default_rng(0).random((12, 3, 3)))
    (tmp_path / "users.csv").write_text("user,old\nu0,1\nu1,0\n")
    return tmp_path


RECOVER = [
    ("e.csv --methods low-rank --rows users.csv", "rows"),
    ("e.csv --methods low-rank,nuclear --items users.csv", "items"),
    ("e.csv --methods low-rank --time", "time"),
    ("e.npz --columns foo,bar,baz", "columns"),
    ("e.npy --predict e.npz --columns foo,bar,baz", "columns"),
    ("e.npz --no-header", "header"),
    ("e.parquet --predict e.parquet --header", "header"),
    ("e.npy --duplicates mean", "duplicates"),
]
OTHERS = [
    ("slice DIR --budget params=0.2 --objective nonsense:foo", "objective"),
    ("slice DIR --budget params=0.2 --download", "download"),
    ("apply digits-cnn p.json -o ap --objective causal-lm", "objective"),
    ("apply digits-cnn p.json -o ap --no-slices", "no-slices"),
    ("apply digits-cnn p.json -o ap --seed 4", "seed"),
    ("apply digits-cnn p.json -o ap --download", "download"),
    ("analyze digits-cnn --no-plots --download", "download"),
    ("export DIR --to onnx -o x.onnx --download", "download"),
    ("plan DIR --method truncate --budget params=0.5 -o p.json --seed 3", "seed"),
    ("compress DIR --memory 1GB --budget params=0.5 -o x --no-curve", "no-curve"),
    ("compress DIR --memory 1GB --budget params=0.5 -o x --no-slices", "no-slices"),
    ("evaluate digits-cnn --model a:b", "model"),
    ("robustness digits-cnn --model a:b", "model"),
    ("doctor --table times.json", "table"),
    ("doctor --precision bfloat16", "precision"),
    ("sweep grid.yaml --scheduler tcp://host:1 --jobs 3", "jobs"),
    ("extract a b --budget rank=1 -o x --seed 3", "seed"),
    ("extract ADAPTER --budget rank=1 -o x --download", "download"),
    ("reproduce --list --seeds 0,1", "seeds"),
    ("reproduce --list --threads 2", "threads"),
]


@pytest.mark.parametrize(("words", "named"), [(f"recover {words} -o out", named) for words, named in RECOVER] + OTHERS)
def test_what_would_do_nothing_is_wrong_usage(here, words, named):
    (here / "DIR").mkdir()
    (here / "DIR" / "config.json").write_text('{"model_type": "llama"}')  # a folder of transformers
    (here / "ADAPTER").mkdir()
    (here / "ADAPTER" / "adapter_config.json").write_text("{}")
    before = {path.name for path in here.iterdir()}
    result = rankfold(*words.split())
    assert result.exit_code == 2, result.output
    assert f"--{named}" in result.stderr
    assert "does nothing" in result.stderr
    assert {path.name for path in here.iterdir()} - before <= {"out"}
    assert not (here / "out" / "recover.json").exists()


def test_what_is_for_one_kind_of_entries_or_one_rank_is_wrong_usage(here):
    for words, said in (
        ("plays.csv --implicit --folds 3", "--folds does not go with --implicit: leave one of the two out"),
        ("measured.npz --ranks 1,3", "give --ranks 3 instead of --ranks 1,3"),
    ):
        result = rankfold("recover", *words.split(), "-o", "out")
        assert result.exit_code == 2, result.output
        assert said in result.stderr
    assert not (here / "out" / "recover.json").exists()


def test_defaults_of_plays_are_told_from_what_was_given(here):
    """``refuse`` and 0 were the defaults of ratings, and could not be asked for."""
    asked = ("recover", "plays.csv", "--implicit", "--methods", "popularity", "-o", "out")
    done = succeeded(*asked)
    assert any("duplicate entries" in remark and remark.endswith("summed") for remark in done["remarks"])
    assert (here / "out" / "top.csv").exists()
    done = succeeded(*asked, "--duplicates", "refuse", "--top", 0)
    assert done["remarks"][-1].endswith("equal, kept once")
    assert not (here / "out" / "top.csv").exists()
    help_text = " ".join(rankfold("recover", "--help").stdout.replace("│", " ").split())
    assert "sum (the default with --implicit)" in help_text
    assert "with --implicit 10" in help_text


def test_times_and_names_that_are_used_after_all_are_taken(here):
    small = ("--folds", 2, "--ranks", 1, "-o", "out")
    succeeded("recover", "e.csv", "--methods", "low-rank", "--time", "--predict", "e.csv", *small)
    assert (here / "out" / "predictions.csv").read_text().splitlines()[1].startswith("u0,i0,0")
    succeeded("recover", "e.csv", "--methods", "low-rank", "--time", "--duplicates", "last", *small)
    succeeded("recover", "e.npz", "--test", "e.csv", "--columns", "user,item,rating", "--methods", "low-rank", *small)
