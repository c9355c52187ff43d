"""Memory that is given back, and memory that is kept: when it is worth it, and not at every call."""

import gc
import subprocess
import sys

import numpy as np
import pytest

from rankfold.run.processes import memory

MIB = 2**20


@pytest.fixture
def collections(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What each collection was asked for; none of them is carried out."""
    seen: list[int] = []
    monkeypatch.setattr(gc, "collect", lambda *generation: seen.append(1))
    monkeypatch.setattr(memory, "_left", 0)
    return seen


def test_it_collects_when_the_process_has_grown_and_not_again_at_once(collections, monkeypatch) -> None:
    size = 500 * MIB
    monkeypatch.setattr(memory, "_resident", lambda: size)
    memory.give_back()
    assert len(collections) == 1
    size += 63 * MIB
    memory.give_back()
    assert len(collections) == 1
    size += 2 * MIB
    memory.give_back()
    assert len(collections) == 2


def test_it_collects_every_time_where_the_system_does_not_tell(collections, monkeypatch) -> None:
    monkeypatch.setattr(memory, "_resident", lambda: None)
    for _ in range(3):
        memory.give_back()
    assert len(collections) == 3


def test_within_a_bound_whatever_is_free_goes_back(collections, monkeypatch) -> None:
    size, trimmed = 500 * MIB, []
    monkeypatch.setattr(memory, "_resident", lambda: size)
    monkeypatch.setattr(memory, "_of_glibc", lambda name: lambda *asked: trimmed.append(name))
    memory.give_back()
    trimmed.clear()
    size += MIB
    memory.give_back()
    assert not trimmed
    with memory.steady(10**9):
        trimmed.clear()
        memory.give_back()
    assert trimmed.count("malloc_trim") == 1
    assert len(collections) == 1  # which takes longer: only where much has grown


@pytest.mark.skipif(memory._resident() is None, reason="this system does not tell what lies in memory")
def test_what_lies_in_memory_is_counted_in_bytes() -> None:
    before = memory._resident()
    held = np.ones(200 * MIB // 8)
    after = memory._resident()
    assert 190 * MIB < after - before < 260 * MIB
    assert held.nbytes == 200 * MIB


FAULTS = """
import resource, torch
from rankfold.run.processes import memory

MIB, PASSES = 2**20, 20

def faults():  # pages that the system was asked for by tensors of 4 MiB, one after another, after eight others
    return min(counted() for _ in range(3))  # one that is short of memory takes some away in between

def counted():
    for number in range(PASSES + 8):
        if number == 8:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(MIB)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / (PASSES * 4 * MIB / resource.getpagesize())

with memory.steady(2**30):
    print(faults())
    with memory.steady(None):  # within the same promise
        print(faults())
    memory.settled()
    print(faults())
print(faults())
with memory.steady(None):
    print(faults())
"""


@pytest.mark.skipif(memory._of_glibc("mallopt") is None, reason="this system's allocator is another one")
def test_pages_of_tensors_stay_unless_memory_was_promised_to_keep_within_a_bound() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    promised, within, again, after, unbound = map(float, done.stdout.split())
    assert min(promised, within, again) >= 1
    assert max(after, unbound) < 0.1
