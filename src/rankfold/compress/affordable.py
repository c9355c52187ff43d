"""Whether the moments of sites, and what is made of them, fit into memory; said before any sample is seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rankfold.compress.gradients import FULL
from rankfold.compress.metric import inside
from rankfold.run.processes.memory import amount, at_least, available
from rankfold.sites import Form, Site

Need = Callable[[Sequence[Site]], int]  # bytes that sites take together
FREE = 0.9  # of the memory that is free: what moments may take


def moments_bytes(site: Site) -> int:
    """Memory of the moments of one site at its ``side``, and of decomposing them."""
    m, n = site.shape
    side = _side(site)
    return 8 * site.groups * (4 * side * side + m * n)


def moments_alone(found: Sequence[Site]) -> int:
    return sum(map(moments_bytes, found))


def bytes_together(found: Sequence[Site], tokens: bool = False) -> int:
    """Memory of sites that are measured and decomposed together: what stays of each until the last is done, and what
    one at a time takes beside it; what lives at once, in doubles, was counted. ``tokens``: metrics are of tokens."""
    needs = [_need(site, tokens) for site in found]
    return sum(staying for staying, _ in needs) + max((passing for _, passing in needs), default=0)


def _need(site: Site, tokens: bool) -> tuple[int, int]:
    """Of one site: its moments (of two parts of the samples, and of all), vectors, and metrics in two halves; and while
    the metric is shrunk or the weight decomposed in it. A spatial pair keeps what it was made from."""
    m, n = site.shape
    least, metric, square, spatial = min(m, n), _metric(site, tokens), _side(site) ** 2, Form.SPATIAL in site.forms
    staying = (6 if spatial else 3) * square + least * least + 2 * metric
    passing = max(10 * metric, (9 if spatial else 4) * square + 2 * least * least + 5 * m * n // 2 + 5 * metric)
    return 8 * site.groups * staying, 8 * site.groups * passing


def _side(site: Site) -> int:
    m, n = site.shape
    return m if site.layer.side == "output" else n


def _metric(site: Site, tokens: bool) -> int:
    """Numbers of the metric of the outputs, for each group."""
    m, n = site.shape
    if site.layer.tapped == "input" or (inside(site) and (tokens or m > FULL)):
        return n * n
    return m * m if m <= FULL else m


def is_affordable(need: int) -> bool:
    """Whether so many bytes are free."""
    free = available()
    return free is None or need <= FREE * free


def check_affordable(found: Sequence[Site], bound: int | None = None, of: Need = moments_alone) -> None:
    """``ValueError`` where these sites need more memory than is free, or than ``bound``; names the largest."""
    need = of(found)
    within = bound is None or need <= bound
    if within and is_affordable(need):
        return
    there = f"{amount(available() or 0)} are free" if within else f"{amount(bound or 0)} are allowed"
    more = "" if within else f"give at least {at_least(need)}; "
    largest = max(found, key=lambda site: of([site]))
    raise ValueError(
        f"the second moments of {len(found)} layers and what is made of them would take {amount(need)}, and {there} "
        f"({largest.title} alone takes {amount(of([largest]))}): {more}leave layers out (--exclude, where=); or use "
        "method 'sequential', which measures a few at a time (--memory, Calibration(memory=…)), or 'truncate', which "
        "needs no moments"
    )
