"""Entries that are given more than once: which of them counts, at which time, and which lines are asked for."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rankfold.pipeline.recovery.writing import predictions
from rankfold.recover import FactorModel, read_pairs, read_triplets, triplets

LINES = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.integers(0, 4), st.integers(0, 3)), min_size=1
)


@settings(max_examples=60, deadline=None)
@given(lines=LINES)
def test_the_last_is_the_last_in_time_and_has_the_time_of_its_line(lines):
    rows, columns, values, times = zip(*lines, strict=True)
    found = triplets(rows, columns, np.array(values, float), duplicates="last", times=np.array(times, float))
    told = {
        tuple(pair): (value, when) for pair, value, when in zip(found.pairs(), found.values, found.times, strict=True)
    }
    latest = {}
    for row, column, value, when in lines:
        if (row, column) not in latest or when >= latest[row, column][1]:
            latest[row, column] = (value, when)
    assert told == latest


def test_the_last_of_a_file_without_times_is_its_last_line(tmp_path):
    file = tmp_path / "e.csv"
    file.write_text("user,item,rating,timestamp\na,x,5,2000\na,x,1,1000\nb,x,2,5\n")
    assert read_triplets(file, duplicates="last").values.tolist() == [1, 2]
    found = read_triplets(file, duplicates="last", time=True)
    assert (found.values.tolist(), found.times.tolist()) == ([5, 2], [2000, 5])


def test_each_line_that_is_asked_for_is_answered_in_its_place(tmp_path):
    asked = [("u3", "i1", 300), ("u0", "i0", 100), ("u3", "i1", 900), ("new", "i2", 100), ("u3", "i1", 300)]
    file = tmp_path / "ask.csv"
    file.write_text("user,item,timestamp\n" + "".join(f"{row},{column},{when}\n" for row, column, when in asked))
    found = read_pairs(file, time=True)
    drift = Drift(np.ones((5, 1)), np.ones((1, 4)), 0.0, -9e9, 9e9, ("u0", "u1", "u2", "u3"), ("i0", "i1", "i2"))
    lines = [line.split(",") for line in predictions(drift, found, ("user", "item")).decode().splitlines()]
    assert lines[0] == ["user", "item", "time", "predicted", "unknown"]
    known = {"u0", "u3"}
    assert lines[1:] == [
        [row, column, str(when), str(when), "" if row in known else "row"] for row, column, when in asked
    ]
    plain = predictions(drift, read_pairs(file), ("user", "item")).decode().splitlines()
    assert [tuple(line.split(",")[:2]) for line in plain[1:]] == [pair[:2] for pair in asked]
    assert plain[0] == "user,item,predicted,unknown"


class Drift(FactorModel):
    """Predicts the time."""

    def at(self, rows, columns, times=None):
        return np.zeros(len(rows)) if times is None else times


def test_arrays_of_pairs_stay_in_their_order_too(tmp_path):
    file = tmp_path / "ask.npz"
    np.savez(file, rows=["b", "a", "b"], columns=["x", "x", "x"], values=[1.0, 2.0, 3.0])
    assert read_pairs(file).pairs().tolist() == [["b", "x"], ["a", "x"], ["b", "x"]]
    assert read_triplets(file, duplicates="last").pairs().tolist() == [["a", "x"], ["b", "x"]]
