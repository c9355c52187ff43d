"""Whether a wheel holds every file of the package, templates and the mark of types too, and nothing else."""

import sys
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parents[1] / "src"

wheel = {name for name in ZipFile(sys.argv[1]).namelist() if not name.split("/")[0].endswith(".dist-info")}
source = {
    file.relative_to(ROOT).as_posix()
    for file in (ROOT / "rankfold").rglob("*")
    if file.is_file() and "__pycache__" not in file.parts
}
if wheel != source:
    sys.exit(f"missing in the wheel: {sorted(source - wheel)}; foreign to the package: {sorted(wheel - source)}")
if not {"rankfold/py.typed", "rankfold/report/pages/report.html.j2", "rankfold/report/pages/budget.js"} <= wheel:
    sys.exit("templates or the mark of types are not where they are read from")
