"""What a folder without factors that have names holds instead, and what reads that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rankfold.run.disk.container import parsed

REPORT = "recover.json"
_NAMED = 5  # files that are named of a folder of something else


def check_factors(folder: Path, wanted: str) -> None:
    """Raises ``ValueError`` or ``FileNotFoundError`` where ``folder`` has no ``wanted`` file, or one without names."""
    report = _held(folder / REPORT)
    if report.get("implicit"):
        raise ValueError(
            f"{folder} holds a ranking of implicit feedback, of which no model is kept: top.csv has the best columns "
            f"of each row, and ImplicitFeedback fitted again to the entries (read_plays) recommends more; {REPORT} "
            f"says how: {report.get('chosen')}"
        )
    if "measurements" in report:
        raise ValueError(
            f"{folder} holds factors of measurements, of rows and columns without names: their matrix is left @ right "
            f"of safetensors.numpy.load_file({str(folder / wanted)!r})"
        )
    if (folder / wanted).exists():
        return
    if str(_held(folder / "entries.json").get("kind", "")).startswith("rankfold entries"):
        raise ValueError(
            f"{folder} holds entries, which rankfold.recover.read_mapped reads: give the folder above it, or fit "
            "LowRank to them"
        )
    names = sorted(path.name for path in folder.iterdir())
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    holds = f"it holds {', '.join(names[:_NAMED])}{more}" if names else "it is empty"
    raise FileNotFoundError(
        f"{folder} has no {wanted}, and {holds}: give the folder that rankfold recover wrote (-o DIR), or the file"
    )


def _held(file: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where there is none, or something else in it."""
    try:
        found = parsed(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
