"""A watch over the other processes of a run, for those that vanish without a word.

A process whose machine is gone closes no connection, and a collective of nccl waits for it for ten minutes or more,
in which no error can be raised. A thread in every process therefore marks a store, where all meet, and ends its own
process with one line when the mark of another stays away. Long work of one
process, for which the others wait, is no reason.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist

MARK, GONE = 5.0, 45.0  # seconds between marks; seconds without one after which a process is gone
_LEFT = b"left"  # the mark of one that has ended in order

_watching: list[Watch] = []


class Watch:
    """The watch of one process over ``size - 1`` others, of which it is number ``rank``."""

    def __init__(self, marks: dist.Store, rank: int, size: int) -> None:
        self.marks, self.rank, self.size = marks, rank, size
        self.seen = {other: (b"", time.monotonic()) for other in range(size) if other != rank}
        self.ended, self.looking, self.number = threading.Event(), threading.Lock(), 0

    def run(self) -> None:
        """Mark and look until ``end``, or until somebody is gone."""
        while not self.ended.is_set():
            with self.looking:
                if not self.ended.is_set() and (why := self.missing()):
                    print(f"error: {why}; the same command continues from what was kept", file=sys.stderr, flush=True)
                    os._exit(1)
            self.ended.wait(MARK)

    def missing(self) -> str:
        """Who is gone, in words; "" for nobody."""
        self.number += 1
        try:
            self.marks.set(f"{self.rank}", f"{self.number}")
            for other, (before, since) in self.seen.items():
                mark = self.marks.get(f"{other}") if self.marks.check([f"{other}"]) else b""
                if mark != before:
                    self.seen[other] = (mark, time.monotonic())
                elif mark != _LEFT and time.monotonic() - since > GONE:
                    return f"process {other + 1} of {self.size} is gone: it has given no sign for {GONE:.0f} s"
        except RuntimeError:  # the store is gone, and with it the process or the agent that kept it
            if self.seen.get(0, (b"", 0.0))[0] != _LEFT:
                return f"process 1 of {self.size}, or the agent of torchrun, is gone"
        return ""

    def end(self) -> None:
        """Tell the others that this process ends in order."""
        with self.looking:
            self.ended.set()
            with suppress(RuntimeError):
                self.marks.set(f"{self.rank}", _LEFT.decode())


def watch_peers(rank: int, size: int) -> None:
    """Start the watch of this process. Nothing is done where the processes met otherwise than at torchrun's address."""
    try:
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False,
            timeout=timedelta(seconds=GONE),
        )  # fmt: skip
    except (KeyError, ValueError, RuntimeError):
        return
    watch = Watch(dist.PrefixStore("rankfold-peers", store), rank, size)
    _watching.append(watch)
    threading.Thread(target=watch.run, daemon=True, name="rankfold-peers").start()


def leave_peers() -> None:
    """End the watch of this process, so that the others do not miss it."""
    while _watching:
        _watching.pop().end()
