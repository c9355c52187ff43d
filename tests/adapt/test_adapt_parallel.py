"""Two processes adapt as one does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from two_adapting import adapted


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    place = tmp_path_factory.mktemp("pair")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    script = str(Path(__file__).parent / "two_adapting.py")
    running = [
        subprocess.Popen(
            [sys.executable, script, str(place), str(rank)],
            env=os.environ | common | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        told = [process.communicate(timeout=240)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], told
    return [json.loads((place / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("kind", ["debora", "geolora"])
def test_two_processes_adapt_as_one_does(pair, kind):
    single = adapted(kind)
    assert pair[0][kind] == pair[1][kind]
    moved = 0.0
    for name, values in single.items():
        torch.testing.assert_close(
            torch.tensor(pair[0][kind][name], dtype=torch.float64),
            torch.tensor(values, dtype=torch.float64), rtol=1e-6, atol=1e-8,
        )  # fmt: skip
        moved += sum(map(abs, values)) if name.endswith(("gains", "core")) else 0.0
    assert moved > 0.01
