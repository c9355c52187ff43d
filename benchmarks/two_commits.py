"""Two commits of this repository side by side: processor time, wall time, peak memory, counts.

    python benchmarks/two_commits.py 0fbd5c7 HEAD [--jobs "analyze digits-cnn,compress resnet56"] [--rounds 3]
                                     [--threads 1] [--out FILE.json] [--list]

A commit is whatever git understands, or a folder with a checkout, as it is (`.`). Each is put into a git worktree of
its own in a temporary folder, and imported from there (PYTHONPATH=…/src) by this interpreter: both meet the same
installed dependencies, and nothing is installed. Jobs run in turns, A B A B, on one thread, each in a process of its
own; before the first round each short job runs once unmeasured. Figures are those of the operating system for that
process and its children: user + system seconds, wall seconds, the largest resident set. A ratio is B over A, pair by
pair. The inputs (weights, a plan) are made once, by A, from seeds. `RANKFOLD_DATA` must name the data of cifar10 for
jobs of resnet56; without it they are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MEASURED = str(Path(__file__).with_name("measured.py"))


@dataclass(frozen=True)
class Job:
    """`{out}` in `arguments` is a folder that does not exist yet, `{inputs}` that of weights and plan.

    `repeated`: worth repeating; counts are the same every time. `long`: takes minutes, so that no warm-up precedes it.
    """

    name: str
    arguments: tuple[str, ...]
    repeated: bool = True
    long: bool = False
    needs_data: bool = False


def _rankfold(text: str) -> tuple[str, ...]:
    return ("-m", "rankfold", *text.split())


def _measured(text: str) -> tuple[str, ...]:
    return (MEASURED, *text.split())


_DIGITS = "compress digits-cnn --weights {inputs}/digits.safetensors --budget flops=0.5 -o {out} --threads 1"
_RESNET = "compress resnet56 --weights {inputs}/resnet56.safetensors --budget flops=0.5 -o {out} --threads 1"
JOBS = (
    Job("help", _rankfold("--help")),
    Job("analyze digits-cnn", _rankfold("analyze digits-cnn -o {out}")),
    Job("show", _rankfold("show {inputs}/plan.json")),
    Job("evaluate digits-cnn", _rankfold("evaluate digits-cnn --weights {inputs}/digits.safetensors --threads 1")),
    Job(
        "plan digits-cnn",
        _rankfold("plan digits-cnn --weights {inputs}/digits.safetensors --budget flops=0.5 -o {out} --threads 1"),
    ),
    Job("compress digits-cnn", _rankfold(_DIGITS)),
    Job("counts digits-cnn", _measured("counts " + _DIGITS), repeated=False),
    Job("compress resnet56", _rankfold(_RESNET), long=True, needs_data=True),
    Job("stages resnet56", _measured("stages " + _RESNET), repeated=False, long=True, needs_data=True),
    Job("second budget", _measured("second {inputs}/resnet56.safetensors"), False, long=True, needs_data=True),
    Job("sweep resnet56", _measured("sweep {inputs}/resnet56.safetensors"), False, long=True, needs_data=True),
)


@contextmanager
def checked_out(commit: str, place: Path) -> Iterator[tuple[Path, str]]:
    """(a folder with the commit's files, what git calls it). A folder that exists is taken as it is."""
    if Path(commit).is_dir():
        named = _git("describe", "--always", "--dirty", cwd=Path(commit))
        yield Path(commit).resolve(), named
        return
    _git("worktree", "add", "--quiet", "--detach", str(place), commit, cwd=ROOT)
    try:
        yield place, _git("rev-parse", "--short", "HEAD", cwd=place)
    finally:
        _git("worktree", "remove", "--force", str(place), cwd=ROOT)


def _git(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def run(tree: Path, arguments: tuple[str, ...], inputs: Path, threads: int) -> dict[str, Any]:
    """One process; its figures, and what it printed as JSON on its last line where it did. `failed`: its last words."""
    with tempfile.TemporaryDirectory() as folder:
        filled = [part.replace("{inputs}", str(inputs)).replace("{out}", f"{folder}/out") for part in arguments]
        environment = os.environ | {
            "PYTHONPATH": str(tree / "src"),
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
        }
        with open(f"{folder}/said", "w+b") as said, open(f"{folder}/talk", "w+b") as talk:
            began = time.perf_counter()
            process = subprocess.Popen([sys.executable, *filled], cwd=folder, env=environment, stdout=said, stderr=talk)
            _, status, used = os.wait4(process.pid, 0)
            wall = time.perf_counter() - began
            process.returncode = os.waitstatus_to_exitcode(status)
            said.seek(0)
            lines = said.read().decode(errors="replace").splitlines()
            talk.seek(0)
            last = talk.read().decode(errors="replace").strip().splitlines()[-1:]
    if process.returncode:
        return {"failed": f"exit {process.returncode}: {' '.join(last)}"}
    scale = 1 << 20 if sys.platform == "darwin" else 1 << 10  # bytes there, KB on Linux
    figures: dict[str, Any] = {
        "seconds": round(used.ru_utime + used.ru_stime, 3),
        "wall": round(wall, 3),
        "peak_mb": round(used.ru_maxrss / scale, 1),
    }
    if arguments[0] == MEASURED and lines:
        figures["found"] = json.loads(lines[-1])
    return figures


def measure(job: Job, trees: dict[str, Path], inputs: Path, rounds: int, threads: int) -> dict[str, Any]:
    """A B A B …: the figures of every round, the medians, and the ratios pair by pair."""
    if not job.long and job.repeated:
        for tree in trees.values():
            run(tree, job.arguments, inputs, threads)
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in trees}
    for _ in range(rounds if job.repeated else 1):
        for side, tree in trees.items():
            found[side].append(run(tree, job.arguments, inputs, threads))
    if any("failed" in row for rows in found.values() for row in rows):
        return {"rounds": found}
    kinds = ("seconds", "wall", "peak_mb")
    ratios = {kind: [b[kind] / a[kind] for a, b in zip(found["a"], found["b"], strict=True)] for kind in kinds}
    return {
        "rounds": found,
        "median": {side: {kind: _median(rows, kind) for kind in kinds} for side, rows in found.items()},
        "ratio": {kind: round(statistics.median(values), 3) for kind, values in ratios.items()},
        "ratios": {kind: [round(value, 3) for value in values] for kind, values in ratios.items()},
    }


def _median(rows: list[dict[str, Any]], kind: str) -> float:
    return round(statistics.median(row[kind] for row in rows), 3)


def told(name: str, result: dict[str, Any]) -> str:
    """A few lines for a person."""
    if "median" not in result:
        return f"{name}: " + "; ".join(
            f"{side.upper()} {row['failed']}"
            for side, rows in result["rounds"].items()
            for row in rows
            if "failed" in row
        )
    lines = [name]
    for kind, unit in (("seconds", "s processor time"), ("wall", "s wall"), ("peak_mb", "MB peak")):
        a, b = (result["median"][side][kind] for side in ("a", "b"))
        each = ", ".join(f"{ratio:.2f}" for ratio in result["ratios"][kind])
        lines.append(f"  {a:>9.2f} → {b:>9.2f} {unit:<17} {result['ratio'][kind]:.2f}×  (pairs {each})")
    sides = [result["rounds"][side][0].get("found") for side in ("a", "b")]
    for key in dict.fromkeys(key for side in sides if side for key in side):
        lines.append("  " + " → ".join(str((side or {}).get(key, "–")) for side in sides) + f"  {key}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commits", nargs="*", metavar="COMMIT", help="A and B")
    parser.add_argument("--jobs", help="names of jobs, separated by commas; all by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--list", action="store_true", help="print the jobs' names")
    given = parser.parse_args()
    if given.list:
        print("\n".join(job.name for job in JOBS))
        return
    if len(given.commits) != 2:
        parser.error(f"two commits are compared, got {len(given.commits)}")
    names = [job.name for job in JOBS] if given.jobs is None else [name.strip() for name in given.jobs.split(",")]
    unknown = [name for name in names if name not in {job.name for job in JOBS}]
    if unknown:
        parser.error(f"no job {', '.join(unknown)}; there are {', '.join(job.name for job in JOBS)}")
    place = Path(tempfile.mkdtemp(prefix="two-commits-"))
    try:
        with (
            checked_out(given.commits[0], place / "a") as (a, name_a),
            checked_out(given.commits[1], place / "b") as (b, name_b),
        ):
            compare(names, {"a": a, "b": b}, {"a": name_a, "b": name_b}, place, given)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def compare(names: list[str], trees: dict[str, Path], called: dict[str, str], place: Path, given: Any) -> None:
    inputs = place / "inputs"
    inputs.mkdir()
    made = run(trees["a"], (MEASURED, "inputs", str(inputs)), inputs, given.threads)
    if "failed" in made:
        raise SystemExit(f"the inputs of the jobs could not be made: {made['failed']}")
    result: dict[str, Any] = {
        "commits": called,
        "threads": given.threads,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "jobs": {},
    }
    print(f"A {called['a']}   B {called['b']}   {result['machine']}")
    for job in JOBS:
        if job.name not in names:
            continue
        if job.needs_data and not os.environ.get("RANKFOLD_DATA"):
            print(f"{job.name}: left out, RANKFOLD_DATA is not set")
            continue
        result["jobs"][job.name] = measure(job, trees, inputs, given.rounds, given.threads)
        print(told(job.name, result["jobs"][job.name]), flush=True)
        if given.out is not None:
            given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
