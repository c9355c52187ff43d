"""A table of gaps in, the same table without them out."""

import csv
import io

import numpy as np
from commands import failed, rankfold, succeeded

from rankfold.recover.tables import filling

FAST = ("--folds", "2", "--methods", "ratings", "--ranks", "2")


def _written(file, delimiter=",", gap=""):
    rng = np.random.default_rng(0)
    truth = 20 + rng.standard_normal((30, 2)) @ rng.standard_normal((2, 12))
    known = rng.random(truth.shape) < 0.8
    known[3] = False  # nothing is known of one time
    cells = [[f"{value:.3f}0" if there else gap for value, there in zip(*row)] for row in zip(truth, known)]
    names = [f"s{number}" for number in range(12, 0, -1)]  # not in the order of their names
    lines = [["time", *names], *([f"day {30 - at}, noon", *row] for at, row in enumerate(cells))]
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows(lines)
    file.write_text(text.getvalue())
    return lines, truth, known


def test_a_table_comes_back_whole_with_its_known_cells_as_they_were_written(tmp_path):
    lines, truth, known = _written(tmp_path / "sensors.csv", ";", "NA")
    report = succeeded("recover", tmp_path / "sensors.csv", *FAST, "-o", tmp_path / "out")
    with (tmp_path / "out" / "completed.csv").open(newline="") as opened:
        whole = list(csv.reader(opened))
    assert whole[0] == lines[0]
    assert [row[0] for row in whole] == [row[0] for row in lines]
    cells, before = (np.array([row[1:] for row in table[1:]]) for table in (whole, lines))
    assert (cells[known] == before[known]).all()
    filled = ~known
    filled[3] = False
    assert np.sqrt(np.mean((cells.astype(float) - truth)[filled] ** 2)) < 0.5 < truth.std()
    bare = sum(1 for at in np.argwhere(~known) if not known[at[0]].any() or not known[:, at[1]].any())
    assert bare >= 12
    assert report["completed"] == {"cells": known.size, "filled": int((~known).sum()), "bare": bare}
    assert "completed.csv" in report["files"]


def test_what_became_of_the_gaps_is_said_last(tmp_path, monkeypatch):
    _, _, known = _written(tmp_path / "sensors.csv")
    call = ("recover", tmp_path / "sensors.csv", *FAST, "-o", tmp_path / "out")
    lines = rankfold(*call).stdout.splitlines()
    assert lines[-2].startswith(f"completed.csv is sensors.csv with {(~known).sum()} gaps filled"), lines
    assert "gaps filled" in (tmp_path / "out" / "report.html").read_text()
    monkeypatch.setattr("rankfold.pipeline.recovery.completing.MOST", 100)
    assert "not written: sensors.csv has 360 cells" in rankfold(*call).stdout
    assert not (tmp_path / "out" / "completed.csv").exists()  # that of the earlier run is no result of this one
    assert filling.MOST >= 1_000_000


def test_a_completed_table_of_somebody_else_is_not_replaced_and_entries_leave_none(tmp_path):
    _written(tmp_path / "sensors.csv")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "completed.csv").write_text("mine")
    failed("recover", tmp_path / "sensors.csv", "-o", tmp_path / "out")
    (tmp_path / "list.csv").write_text("row,column,value\n" + "".join(f"{i % 5},{i % 7},{i}\n" for i in range(30)))
    report = succeeded("recover", tmp_path / "list.csv", *FAST, "-o", tmp_path / "list")
    assert "completed" not in report
    assert "completed.csv" not in report["files"]
