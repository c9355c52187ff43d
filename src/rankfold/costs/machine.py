"""What a measured time depends on besides the network: the machine, the version of torch, threads, the arithmetic."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch


@dataclass(frozen=True)
class Machine:
    """``device``: the name of the processor or GPU; ``version``: of torch; ``threads`` of the processor, 0 on a GPU."""

    device: str
    version: str
    threads: int

    @classmethod
    def here(cls, device: torch.device | str = "cpu") -> Machine:
        """This machine as torch computes now, on ``device``."""
        place = torch.device(device)
        if place.type == "cuda":
            return cls(torch.cuda.get_device_name(place), torch.__version__, 0)
        if place.type != "cpu":
            return cls(f"{_processor()}, {place.type}", torch.__version__, 0)
        return cls(_processor(), torch.__version__, torch.get_num_threads())

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' if self.threads > 1 else ''}" if self.threads else ""
        return f"{self.device}{threads}, torch {self.version}"

    @property
    def digest(self) -> str:
        """A short name for files."""
        return sha256(str(self).encode()).hexdigest()[:16]


def arithmetic(weight: torch.Tensor) -> str:
    """In what products with ``weight`` are computed here and now: its dtype, or that of autocast."""
    kind, own = weight.device.type, str(weight.dtype).removeprefix("torch.")
    if not torch.is_autocast_enabled(kind):
        return own
    return f"{own} by {str(torch.get_autocast_dtype(kind)).removeprefix('torch.')}"


def _processor() -> str:
    """Its name as the system tells it, with the instructions that torch uses of it."""
    name = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    return f"{name or platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"
