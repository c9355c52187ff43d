"""The chain of theorem 3.4 over a whole experiment: how often it was asked, how tight it is, whether it held."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def tightness(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of many ``LayerBound.to_dict``: how many, violations, vacuous ones, and how far bounds are above the distance.

    ``printed``: C·TCV/κ with the constant of the theorem over the same, where it was measured (``theorem_value``).
    """
    known = sorted(row["tightness"] for row in rows if row["tightness"] is not None)
    joint = sorted(row["joint"] / row["distance"] for row in rows if row["distance"] > 0)
    printed = sorted(
        row["theorem_value"] / row["distance"]
        for row in rows
        if row.get("theorem_value") is not None and row["distance"] > 0
    )
    return {
        "bounds": len(rows),
        "violations": sum(not row["holds"] for row in rows),
        "vacuous": sum(row["vacuous"] for row in rows),
        "least": known[0] if known else None,
        "median": known[len(known) // 2] if known else None,
        "largest": known[-1] if known else None,
        "median_joint": joint[len(joint) // 2] if joint else None,
        "printed": len(printed),
        "printed_least": printed[0] if printed else None,
        "printed_median": printed[len(printed) // 2] if printed else None,
    }


def chain_remark(rows: Sequence[dict[str, Any]]) -> str:
    """The chain of theorem 3.4 over an experiment, in a sentence."""
    found = tightness(rows)
    told = f"Theorem 3.4, chain at {found['bounds']} recorded layers and moments: {found['violations']} violations; "
    if found["median"] is None:
        return told + "no distance to compare with."
    beside = (
        f" C·TCV/κ, with the smallest constant C that the proof allows, at the last {found['printed']} of them: "
        f"{found['printed_least']:.3g} times the distance at best, {found['printed_median']:.3g} in the median."
        if found["printed"]
        else ""
    )
    return (
        f"{told}bound over distance {found['least']:.3g} at best, {found['median']:.3g} in the median, "
        f"{found['largest']:.2g} at most; {found['vacuous']} are vacuous (not below the norm of the weight).{beside}"
    )
