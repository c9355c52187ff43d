"""Memory that is given back, and memory that is kept: when it is worth it, and not at every call."""

import gc
import resource

import numpy as np
import pytest
import torch

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


@pytest.mark.skipif(memory._resident() is None, reason="this system does not tell what lies in memory")
def test_what_lies_in_memory_is_counted_in_bytes() -> None:
    before = memory._resident()
    held = np.ones(200 * MIB // 8)
    after = memory._resident()
    assert 190 * MIB < after - before < 260 * MIB
    assert held.nbytes == 200 * MIB


def faults(passes: int = 20) -> int:
    """Pages that the system was asked for by as many tensors of 4 MiB, one after another, after two others."""
    for number in range(passes + 2):
        if number == 2:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(MIB)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(memory._of_glibc("mallopt") is None, reason="this system's allocator is another one")
def test_pages_of_tensors_stay_unless_memory_was_promised_to_keep_within_a_bound() -> None:
    pages = 20 * 4 * MIB // resource.getpagesize()
    memory.settled()
    assert faults() < pages / 2
    with memory.steady(2**30):
        assert faults() >= pages
        with memory.steady(None):  # within the same promise
            assert faults() >= pages
        memory.settled()
        assert faults() >= pages
    assert faults() < pages / 2
    with memory.steady(None):
        assert faults() < pages / 2
