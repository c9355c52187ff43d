"""Keep what a finished `rankfold reproduce` found, for pages to quote: benchmarks/results/NAME.json.

    python benchmarks/store.py DIRECTORY --command "rankfold reproduce cdln-svd" --seeds 0 [--name NAME] [--tables svd]

The first table is kept, or those named, and the sentences. tests/test_quoted.py compares pages with it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--command", required=True, help="that made it")
    parser.add_argument("--seeds", required=True, help="0,1,2")
    parser.add_argument("--name", help="of the file; by default the experiment's")
    parser.add_argument("--tables", help="names, separated by commas; the first by default")
    given = parser.parse_args()
    found = json.loads((given.directory / "result.json").read_text(encoding="utf-8"))
    tables = given.tables.split(",") if given.tables else list(found["tables"])[:1]
    kept = {
        "command": given.command,
        "seeds": [int(seed) for seed in given.seeds.split(",")],
        "versions": found["versions"],
        "tables": {name: found["tables"][name] for name in tables},
        "remarks": found["remarks"],
    }
    file = RESULTS / f"{given.name or found['experiment']}.json"
    file.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {file}")


if __name__ == "__main__":
    main()
