"""What this machine and this installation offer: versions, devices, data, what is missing for what, and which form pays
in time at which width."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rankfold.costs import latencies
from rankfold.run.memory import available
from rankfold.sites import Form, sites
from rankfold.zoo.images import IMAGE_SETS, folder_of
from rankfold.zoo.kept import cache_folder

WIDTHS = (256, 768, 2048)
BATCHES = (1, 64)
FRACTIONS = (0.125, 0.25, 0.375, 0.5, 0.75)  # of the full rank
FASTER = 0.95  # of the dense layer's time, from which on a form is called faster: less is noise


@dataclass(frozen=True)
class Health:
    """``devices``: what torch can compute on, and their memory in bytes (None where it does not tell); ``data``: the
    folder of every published image set, None where it is not here; ``missing``: the packages that each extra of
    rankfold still needs."""

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

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            **vars(self), "data": {name: None if path is None else str(path) for name, path in self.data.items()},
            "data_folder": None if self.data_folder is None else str(self.data_folder), "cache": str(self.cache),
            "devices": [{"name": name, "memory": memory} for name, memory in self.devices],
            "missing": {name: list(lacking) for name, lacking in self.missing.items()},
        }  # fmt: skip


@dataclass(frozen=True)
class Pays:
    """One square linear layer of ``width`` at ``batch``: milliseconds of it and of each form by its fraction of the
    full rank, and the largest of these fractions at which the form is faster; None where it is at none."""

    width: int
    batch: int
    form: str
    dense_ms: float
    ms: dict[float, float]

    @property
    def up_to(self) -> float | None:
        found = None
        for fraction, ms in sorted(self.ms.items()):
            if ms >= FASTER * self.dense_ms:
                break
            found = fraction
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self), "ms": {str(key): ms for key, ms in self.ms.items()}, "faster_up_to": self.up_to}


def examine() -> Health:
    """What is here. Computes nothing and asks no network; imports nothing that was not imported."""
    folder = os.environ.get("RANKFOLD_DATA")
    root = Path(folder) if folder else None
    found = {name: folder_of(name) for name in IMAGE_SETS}
    versions = {"rankfold": _version("rankfold"), "python": platform.python_version(), "torch": torch.__version__}
    for name in ("numpy", "transformers", "peft", "onnxruntime"):
        versions |= {name: known} if (known := _version(name)) else {}
    return Health(
        versions, platform.platform(), os.cpu_count() or 1, torch.get_num_threads(), available(), tuple(_devices()),
        found, root, cache_folder(), dict(_missing()),
    )  # fmt: skip


def paying(
    widths: Sequence[int] = WIDTHS, batches: Sequence[int] = BATCHES, *, dtype: torch.dtype = torch.float32,
    device: str = "cpu", rounds: int = 30, seconds: float = 0.3,
) -> Iterator[Pays]:  # fmt: skip
    """Which form of a square linear layer takes less time than the dense one, at which rank; one line for each width,
    batch and form. All ranks are timed in turns with the dense layer. Cost: about ``seconds`` for each of them."""
    for width in widths:
        for batch in batches:
            dense = nn.Linear(width, width, dtype=dtype, device=device)
            layer = sites(nn.Sequential(dense))[0].layer
            for form in sorted(layer.forms - {Form.KEEP, Form.DENSE}):
                models = {"dense": dense} | {
                    str(part): layer.skeleton(dense, form, max(1, int(part * width)), bias=True) for part in FRACTIONS
                }
                x = torch.randn(1, width, dtype=dtype, device=device)
                times = latencies(models, x, batch=batch, rounds=rounds, seconds=seconds)
                whole = times.pop("dense")
                yield Pays(width, batch, str(form), whole, {float(key): ms for key, ms in times.items()})


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
