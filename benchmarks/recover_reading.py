"""A million entries from a file, beside pandas: `python benchmarks/recover_reading.py`.

Each reader in a process of its own, one thread, three times in turn: processor time of the first and the least of five
readings, and the peak of memory above what the process held before (imports done). `arrays` is what an entry takes in
the result: two indices and a value, 24 bytes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from rankfold.run.processes.process import ends_with

COUNT = 1_000_000
READERS = (
    "pandas, ids as strings",
    "pandas, ids as objects",
    "rankfold",
    "rankfold, quoted",
    "rankfold, ::",
    "parquet",
)


def write(folder: Path) -> None:
    import pandas as pd

    rng = np.random.default_rng(0)
    cells = np.unique(rng.integers(0, 60_000 * 20_000, COUNT + COUNT // 50))
    rng.shuffle(cells)
    cells = cells[:COUNT]
    values = rng.integers(1, 11, COUNT) / 2
    rows = [(f"u{cell // 20_000}", cell % 20_000, value) for cell, value in zip(cells.tolist(), values.tolist())]
    for name, line in (
        ("plain.csv", "{},{},{}\n"),
        ("quoted.csv", '"{}","{}",{}\n'),
        ("colons.dat", "{}::{}::{}::9\n"),
    ):
        with (folder / name).open("w") as opened:
            opened.write("" if name == "colons.dat" else "user,item,rating\n")
            opened.writelines(line.format(*row) for row in rows)
    table = pd.DataFrame(rows, columns=["user", "item", "rating"])
    table["item"] = table["item"].astype(str)
    table.to_parquet(folder / "plain.parquet")


def memory(what: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(one.split()[1]) / 1024 for one in lines if one.startswith(what))


def read(reader: str, folder: Path) -> None:
    import pandas as pd

    from rankfold.recover import read_triplets

    file = folder / {"rankfold, quoted": "quoted.csv", "rankfold, ::": "colons.dat", "parquet": "plain.parquet"}.get(
        reader, "plain.csv"
    )
    kinds = {"pandas, ids as strings": str, "pandas, ids as objects": object}
    (folder / "small.csv").write_text("a,b,1\n")
    pd.read_csv(folder / "small.csv")
    read_triplets(folder / "small.csv")  # imports and pools
    Path("/proc/self/clear_refs").write_text("5")
    before, seconds = memory("VmRSS"), []
    for number in range(5):
        begun = time.process_time()
        if reader in kinds:
            found = pd.read_csv(file, dtype={"user": kinds[reader], "item": kinds[reader]})
        else:
            found = read_triplets(file)
        seconds.append(time.process_time() - begun)
        if not number:
            peak = memory("VmHWM") - before
        assert len(found) == COUNT
    arrays = 24 * COUNT / 1e6 / 1.048576
    print(
        f"{reader:24} first {seconds[0]:.2f} s, least {min(seconds):.2f} s of processor, peak +{peak:.0f} MB "
        f"({peak - arrays:.0f} beside the arrays)",
        flush=True,
    )


if __name__ == "__main__":
    if len(sys.argv) > 2:
        ends_with(int(sys.argv[3]))  # a run that is ended from outside leaves nothing behind
        read(sys.argv[1], Path(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as place:
            write(Path(place))
            for _ in range(3):
                for one in READERS:
                    subprocess.run([sys.executable, __file__, one, place, str(os.getpid())], check=True, env=os.environ)
