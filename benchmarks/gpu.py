"""What needs a GPU, in stages that each fit one call of at most nine minutes.

    python benchmarks/gpu.py --out RESULTS [--stages equal,vgg16] [--minutes 9] [--data FOLDER] [--wheels FOLDER]
    python benchmarks/gpu.py --dry --out RESULTS        # tiny sizes, on the CPU: what continuous integration runs
    python benchmarks/gpu.py --pack FOLDER              # with RANKFOLD_DATA: the arrays that --data takes
    python benchmarks/gpu.py --gather FOLDER            # with a network: the wheels that --wheels takes
    python benchmarks/gpu.py --list

Needs no network, and of Python packages torch and what rankfold imports; on a bare machine those that are missing are
named, or, with `--wheels`, installed from the wheels in FOLDER into a folder that is removed at the end. Stages run in
the order of their worth; each writes RESULTS/STAGE.json, and weights of at most 16 MB beside it. One that fails, or
whose estimate does not fit into what is left of `--minutes`, is told in one line, and the others go on; one that
RESULTS has already is not run again, so that the same call goes on where the last one ended. Exit code 1 if one failed.
A further stage is one function in `gpu_stages/`, registered by `@stage(name, minutes)`, with a place in `ORDER`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# imported by rankfold for what the stages do; the name of the package where it is another
NEEDED = {
    "torch": "torch",
    "numpy": "numpy",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "safetensors": "safetensors",
    "pydantic": "pydantic",
    "typing_extensions": "typing_extensions",
    "tensorly": "tensorly",
    "threadpoolctl": "threadpoolctl",
    "pandas": "pandas",
}
# what those import in turn, without which they do not start
WITH_THEM = (
    "pydantic-core",
    "annotated-types",
    "typing-inspection",
    "joblib",
    "python-dateutil",
    "pytz",
    "tzdata",
    "six",
)


def missing() -> list[str]:
    return [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]


def gathering(folder: Path) -> list[str]:
    """The command that downloads the wheels of everything but torch, with what they need themselves."""
    names = [*(name for name in NEEDED.values() if name != "torch"), *WITH_THEM]
    pip = [sys.executable, "-m", "pip", "download", "--only-binary", ":all:", "--no-deps", "--dest", str(folder)]
    return [*pip, *names]


def install(wheels: Path, target: Path) -> None:
    """The wheels of a folder, without their dependencies, behind everything that is there already."""
    files = [str(file) for file in sorted(wheels.glob("*.whl")) if not file.name.startswith(("torch-", "nvidia"))]
    if not files:
        raise SystemExit(f"{wheels}: holds no wheel (*.whl)")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(target)]
    done = subprocess.run([*pip, *files], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{wheels}: cannot be installed: {' '.join(done.stderr.split())[:300]}")
    sys.path.append(str(target))
    importlib.invalidate_caches()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of the results, a JSON file for each stage")
    parser.add_argument("--stages", help="names, separated by commas; all by default")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all stages of this call together")
    parser.add_argument("--dry", action="store_true", help="tiny sizes, on the CPU")
    parser.add_argument("--device", help="cuda by default, cpu with --dry")
    parser.add_argument("--data", type=Path, help="folder that --pack wrote")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install what is missing from")
    parser.add_argument("--again", action="store_true", help="run also the stages that --out has finished")
    parser.add_argument(
        "--gather", type=Path, metavar="FOLDER", help="download the wheels that --wheels takes, and end"
    )
    parser.add_argument("--pack", type=Path, metavar="FOLDER", help="write cifar10 as arrays, and end")
    parser.add_argument("--list", action="store_true", help="print the stages and their minutes")
    given = parser.parse_args()
    if given.gather is not None:
        return subprocess.run(gathering(given.gather), check=False).returncode
    if importlib.util.find_spec("rankfold") is None:
        sys.path.insert(0, str(HERE.parent / "src"))
    sys.path.insert(0, str(HERE))
    installed = Path(tempfile.mkdtemp(prefix="rankfold-wheels-"))
    try:
        if given.wheels is not None and missing():
            install(given.wheels, installed)
        if missing():
            print(f"missing: {', '.join(missing())}; pip install them, or give their wheels with --wheels FOLDER")
            return 2
        return _with_packages(given, parser)
    finally:
        shutil.rmtree(installed, ignore_errors=True)


def _with_packages(given: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    import torch
    from gpu_stages import STAGES
    from gpu_stages.arrays import pack

    if given.list:
        print(
            "\n".join(
                f"{stage.name:10} {stage.needs:g} to {stage.minutes:g} min: {stage.says}" for stage in STAGES.values()
            )
        )
        return 0
    if given.pack is not None:
        print(f"wrote {', '.join(pack(given.pack))} to {given.pack}")
        return 0
    if given.out is None:
        parser.error("--out says where the results go")
    names = list(STAGES) if given.stages is None else given.stages.split(",")
    unknown = [name for name in names if name not in STAGES]
    if unknown:
        parser.error(f"no stage {', '.join(unknown)}; there are {', '.join(STAGES)}")
    device = torch.device(given.device or ("cpu" if given.dry else "cuda"))
    if device.type == "cuda" and not torch.cuda.is_available():
        print("torch sees no CUDA device here: --dry runs the stages at tiny sizes on the CPU")
        return 2
    given.out.mkdir(parents=True, exist_ok=True)
    return run(names, given, device)


def run(names: list[str], given: argparse.Namespace, device: Any) -> int:
    """The stages one after the other; 1 if one failed."""
    import torch
    from gpu_stages import STAGES, Context

    began, failed = time.monotonic(), False
    for name in names:
        stage = STAGES[name]
        left = given.minutes - (time.monotonic() - began) / 60
        if not given.again and (done := _done(given.out, name, given.dry)):
            print(f"{name}: done before, by {done}: --again runs it once more", flush=True)
            continue
        needed = stage.needs if not given.dry else 0.5
        if needed > left:
            _tell(given.out, name, "left out", f"needs about {needed:g} min, {left:.1f} are left")
            continue
        start = time.monotonic()
        deadline = start + 60 * min(left, stage.minutes if not given.dry else left)
        try:
            found = stage.run(Context(device, given.dry, deadline, given.data, given.out))
        except Exception as error:  # whatever it is, the other stages go on
            failed = True
            if device.type == "cuda":  # what a stage that ran out of memory had taken is there for the next
                torch.cuda.empty_cache()
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            _tell(given.out, name, "failed", why, traceback=traceback.format_exc().splitlines()[-12:])
            continue
        wrong = found.pop("wrong", [])
        failed = failed or bool(wrong)
        facts = {"seconds": round(time.monotonic() - start, 1), "dry": given.dry, **_machine(device)}
        said = f"{len(wrong)} of its comparisons are off: {'; '.join(wrong)}"[:400] if wrong else found.get("said", "")
        _tell(given.out, name, "failed" if wrong else "done", said, **facts, wrong=wrong, found=found)
    return int(failed)


def _done(out: Path, name: str, dry: bool) -> str:
    """The device on which the stage was done already, as its file in ``out`` says; "" where it was not."""
    try:
        row = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
        return row["device"] if row["state"] == "done" and row["dry"] == dry else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _tell(out: Path, name: str, state: str, said: str, **rest: Any) -> None:
    print(f"{name}: {state}{': ' if said else ''}{said}", flush=True)
    text = json.dumps({"stage": name, "state": state, "said": said} | rest, indent=1)
    unfinished = out / f".{name}.json"
    unfinished.write_text(text + "\n", encoding="utf-8")
    unfinished.replace(out / f"{name}.json")


def _machine(device: Any) -> dict[str, str]:
    import torch

    named = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"device": named, "torch": torch.__version__, "python": platform.python_version()}


if __name__ == "__main__":
    sys.exit(main())
