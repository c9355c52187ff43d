"""The errors that every site would make at every rank, with the moments of a few sites in memory at a time.

What a plan needs of a decomposition are a few numbers for each rank; the moments they come from are d² each. As many
sites are measured at a time as the memory limit allows; the numbers are kept, and the moments let go.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from rankfold.compress.affordable import FREE, bytes_together, moments_bytes
from rankfold.compress.layerwise.curves import Measured, joined, measured, read_part, write_part
from rankfold.compress.layerwise.layers import partition
from rankfold.compress.layerwise.pairs import bytes_needed
from rankfold.compress.measured import Statistics
from rankfold.compress.methods.method import Method
from rankfold.compress.planning.candidates import decompose
from rankfold.compress.statistics import calibrate
from rankfold.objectives import Objective
from rankfold.observe import Samples
from rankfold.run.processes.memory import available
from rankfold.run.progress import Progress
from rankfold.sites import SiteList, sites


def memory_needed(model: nn.Module, memory: int | None = None, where: Any = None) -> tuple[int, int, list[str]]:
    """What second moments of all reducible sites take together in bytes, in how many passes they are taken within
    ``memory``, and the sites that alone need more: these are truncated without data. Nothing is computed.
    """
    found = sites(model, where)
    sizes = {site.name: max(moments_bytes(site), bytes_needed(site, 1)) for site in found.reducible}
    runs = partition(found.reducible, moments_bytes, memory)
    beyond = [name for name, size in sizes.items() if memory is not None and size > memory]
    return sum(sizes.values()), len(runs), beyond


def affordable(found: SiteList, memory: int | None) -> int | None:
    """``memory``, or where none was given and the moments would not fit into what is free here, half of that."""
    free = available()
    if memory is not None or free is None:
        return memory
    together, alone = bytes_together(found.reducible), max(map(bytes_needed, found.reducible), default=0)
    return max(free // 2, 1) if max(together, alone) > FREE * free else None


def measure_in_parts(
    root: nn.Module,
    found: SiteList,
    method: Method,
    seen: Samples,
    objective: Objective | None = None,
    *,
    metric_samples: int = 1024,
    directory: Path | None = None,
    progress: Progress,
) -> Measured:
    """Curves of all reducible sites; attention must be split. A site beyond the limit is decomposed without data.

    ``directory``: finished parts are kept there and read back. Cost: for each part one pass over the samples.
    """
    runs = partition(found.reducible, moments_bytes, seen.memory)
    done: list[Measured] = []
    for number, run in enumerate(runs):
        file = None if directory is None else directory / f"measured-{number:04d}.safetensors"
        part = SiteList(tuple(run))
        known = read_part(file, part) if file is not None else None
        if known is None:
            known = _measured(root, part, method, seen, objective, metric_samples, progress)
            if file is not None and seen.team.first:
                write_part(file, known)
        done.append(known)
        if len(runs) > 1:
            progress("measuring part after part", number + 1, len(runs))
    return joined(done)


def _measured(
    root: nn.Module,
    part: SiteList,
    method: Method,
    seen: Samples,
    objective: Objective | None,
    metric_samples: int,
    tell: Progress,
) -> Measured:
    statistics: Statistics | None = None
    if seen.memory is None or sum(map(moments_bytes, part)) <= seen.memory:
        statistics = calibrate(
            root, seen.data, part, samples=seen.samples, batch_size=seen.batch_size, metric_samples=metric_samples,
            objective=objective, progress=tell, team=seen.team,
        )  # fmt: skip
    return measured(part, decompose(root, part, method, statistics, tell), statistics, seen.memory is not None)
