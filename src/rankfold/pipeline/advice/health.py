"""What this machine and this installation offer: versions, devices, data, what is missing for what, known times."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any

import torch

from rankfold.costs.machine import Machine
from rankfold.costs.table import file_of
from rankfold.run.disk.cache import cache_folder
from rankfold.run.processes.memory import available
from rankfold.zoo.images import IMAGE_SETS, folder_of


@dataclass(frozen=True)
class Health:
    """``devices``: what torch can compute on, and their memory in bytes (None where it does not tell); ``data``: the
    folder of every published image set, None where it is not here; ``missing``: the packages that each extra of
    rankfold still needs; ``latency_table``: where the times of this machine are kept, None where none were measured."""

    versions: dict[str, str]
    system: str
    cores: int
    threads: int
    memory: int | None
    devices: tuple[tuple[str, int | None], ...]
    data: dict[str, Path | None]
    data_folder: Path | None
    cache: Path
    missing: dict[str, tuple[str, ...]]
    latency_table: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            **vars(self), "data": {name: None if path is None else str(path) for name, path in self.data.items()},
            "data_folder": None if self.data_folder is None else str(self.data_folder), "cache": str(self.cache),
            "latency_table": None if self.latency_table is None else str(self.latency_table),
            "devices": [{"name": name, "memory": memory} for name, memory in self.devices],
            "missing": {name: list(lacking) for name, lacking in self.missing.items()},
        }  # fmt: skip


def examine() -> Health:
    """What is here. Computes nothing and asks no network; imports nothing that was not imported."""
    folder = os.environ.get("RANKFOLD_DATA")
    root = Path(folder) if folder else None
    found = {name: folder_of(name) for name in IMAGE_SETS}
    versions = {"rankfold": _version("rankfold"), "python": platform.python_version(), "torch": torch.__version__}
    for name in ("numpy", "transformers", "peft", "onnxruntime"):
        versions |= {name: known} if (known := _version(name)) else {}
    table = file_of(Machine.here())
    return Health(
        versions, platform.platform(), os.cpu_count() or 1, torch.get_num_threads(), available(), tuple(_devices()),
        found, root, cache_folder(), dict(_missing()), table if table.is_file() else None,
    )  # fmt: skip


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _devices() -> Iterator[tuple[str, int | None]]:
    yield "cpu", None
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        found = torch.cuda.get_device_properties(index)
        yield f"cuda:{index} ({found.name})", found.total_memory


def _missing() -> Iterator[tuple[str, tuple[str, ...]]]:
    """(extra, packages that it needs and that are not here), from what the installed package says of itself."""
    from packaging.requirements import Requirement

    try:
        needed = [Requirement(line) for line in requires("rankfold") or ()]
    except PackageNotFoundError:  # run from a folder
        return
    for extra in metadata("rankfold").get_all("Provides-Extra") or ():
        wanted = [one for one in needed if one.marker is not None and one.marker.evaluate({"extra": extra})]
        lacking = tuple(one.name for one in wanted if not _version(one.name))
        if wanted:
            yield extra, lacking
