"""What to try next, where the best of several settings may not be the best there is."""

from __future__ import annotations

from collections.abc import Sequence

from rankfold.recover import Candidate, Tried
from rankfold.recover.implicit.search import Ranked

NUMBERS = {"als": ("rank", "regularization"), "regression": ("regularization",), "neighbours": ("count",)}


def other_ranks(tried: Sequence[Tried], most: int) -> str:
    """A sentence where ranks beside the best one, up to ``most``, were not tried, or times and side tables not at the
    best rank of plain ratings; else an empty text.

    The ranks that it names hold the neighbours that were tried, so that doing as it says ends where these are adjacent.
    """
    best = tried[0].choice
    plain = next((one.choice for one in tried if one.choice.method == "ratings" and not one.choice.beside), None)
    elsewhere = [one.choice for one in tried if one.choice.beside and plain and one.choice.rank != plain.rank]
    if plain and elsewhere:
        ways = " and ".join(dict.fromkeys(one.name for one in elsewhere))
        return (
            f"{ways} were tried at rank {elsewhere[0].rank} alone, and of ratings without them rank {plain.rank} is "
            f"the best that was tried: --ranks {plain.rank} tries all there"
        )
    alike = [one.choice for one in tried if (one.choice.time, one.choice.sides) == (best.time, best.sides)]
    ranks = sorted({one.rank for one in alike if one.method == best.method and one.rank is not None})
    if best.rank is None or len(ranks) < 2:
        return ""
    at = ranks.index(best.rank)
    below, above = ranks[:at][-1:], ranks[at + 1 :][:1]
    some = {*below, best.rank, *above}
    some |= {*_between(below[0], best.rank)} if below else {1, (best.rank + 1) // 2}
    some |= {*_between(best.rank, above[0])} if above else {min(2 * best.rank, most)}
    if some <= {*ranks}:
        return ""
    if below and above:
        told = f"rank {best.rank} is the best of those tried, and one of the others between {below[0]} and {above[0]}"
    elif below:
        told = f"rank {best.rank} is the largest that was tried, and another one above {below[0]}"
    else:
        told = f"rank {best.rank} is the smallest that was tried, and another one below {above[0]}"
    return f"{told} may be better: try --ranks {','.join(map(str, sorted(some)))}"


def _between(low: int, high: int) -> set[int]:
    """Up to two ranks that part what lies between two."""
    third = (high - low) / 3
    return {round(low + third), round(high - third)} if high - low > 1 else set()


def same_lists(tried: Sequence[Ranked]) -> str:
    """A sentence where the best candidate, the first, has one list for all rows, and one where least squares of several
    ranks rank alike; else an empty text."""
    told = []
    if tried[0].candidate.method == "popularity":
        told.append(
            "popularity has the same list for every row, but for what the row has taken: for lists that follow tastes "
            "compare --methods als,regression,neighbours"
        )
    found: dict[tuple[float, float, bytes], list[int]] = {}
    for one in tried:
        if one.candidate.method == "als" and one.ranking.ndcg.any():
            key = one.candidate.alpha, one.candidate.regularization, one.ranking.ndcg.tobytes()
            found.setdefault(key, []).append(one.candidate.rank)
    for (_, weight, _), ranks in found.items():
        if len(ranks) > 1:
            told.append(
                f"als of ranks {' and '.join(map(str, sorted(ranks)))} rank alike at regularization {weight:g}, which "
                f"leaves fewer than {min(ranks)} factors: a larger rank adds nothing there"
            )
    return "\n".join(told)


def other_settings(tried: Sequence[Candidate]) -> str:
    """A sentence where a number of the best candidate, the first, is the largest or the smallest that was tried; else
    an empty text."""
    best, told = tried[0], []
    for name in NUMBERS.get(best.method, ()):
        numbers = sorted({getattr(one, name) for one in tried if one.method == best.method})
        mine = getattr(best, name)
        if len(numbers) > 1 and mine in (numbers[0], numbers[-1]):
            which, other = ("smallest", mine / 3) if mine == numbers[0] else ("largest", 3 * mine)
            other = max(1, round(other)) if isinstance(mine, int) else other
            told.append(
                f"{name} {mine:g} is the {which} that was tried of {best.method}, and {other:.4g} may be better"
            )
    if not told:
        return ""
    return f"{'; '.join(told)}: compare it in Python, with more of Candidate(...) for rankfold.recover.choose"
