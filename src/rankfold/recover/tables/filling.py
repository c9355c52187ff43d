"""A table with its gaps filled: names and lines as in its file, and known cells as they were written there."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rankfold.recover.model import FactorModel
from rankfold.recover.tables.columns import split_names
from rankfold.recover.tables.layout import UNKNOWN, Layout, Wanted
from rankfold.recover.tables.lines import records
from rankfold.recover.tables.reading import TEXT, layout_of

MOST = 10_000_000  # cells: about 100 MB of text


@dataclass(frozen=True)
class Table:
    """A text with a row of the matrix in each line."""

    path: Path
    form: Layout

    def filled(self, model: FactorModel) -> tuple[bytes, int, int]:
        """(CSV, how many cells were filled, how many of them lie in rows or columns without any known cell). Eight
        digits are told of a prediction. Cost O(cells k)."""
        names = (self.form.header or ())[1:]
        row_at, column_at = ({name: at for at, name in enumerate(of)} for of in (model.row_names, model.column_names))
        columns = np.array([column_at[name] for name in names])
        text, filled, bare = io.StringIO(), 0, 0
        known, open_in = np.zeros(len(names), bool), np.zeros(len(names), int)
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.form.header or ())
        for line, (row, *cells) in records(self.path, self.form):
            if line == self.form.first:
                continue
            gaps = [at for at, cell in enumerate(cells) if cell.lower() in UNKNOWN]
            told = model.at(np.array(row_at[row]), columns[gaps]) if gaps else ()
            for at, value in zip(gaps, told, strict=True):
                cells[at] = f"{value:.8g}"
            filled += len(gaps)
            if len(gaps) == len(cells):
                bare += len(gaps)
            else:
                open_in[gaps] += 1
                known |= ~np.isin(np.arange(len(names)), gaps)
            writer.writerow([row, *cells])
        return text.getvalue().encode(), filled, bare + int(open_in[~known].sum())


def table_of(
    path: Path, *, columns: str | Sequence[str] | None = None, time: bool = False, header: bool | None = None
) -> Table | None:
    """The table that a file of entries is; None for one with an entry a line, and for what is no text."""
    if path.suffix.lower() not in TEXT:
        return None
    form = layout_of(path, Wanted(split_names(columns), time=time, header=header))
    return Table(path, form) if form.columns is None else None
