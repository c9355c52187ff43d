"""Activations that are kept between two passes: in memory, or where that is short in files of their own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from rankfold.batches import tensors_in
from rankfold.observe import State, rebuilt
from rankfold.run.disk.container import read_tensors, write_tensors
from rankfold.run.disk.files import check_room
from rankfold.run.processes.memory import available

SHARE = 0.5  # of the memory that is free: what activations may take


@dataclass
class Kept:
    """Tensors by key and name. ``directory`` None: in memory."""

    directory: Path | None = None
    known: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    forms: dict[str, State] = field(default_factory=dict)

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        if self.directory is None:
            self.known[key] = dict(tensors)
        else:
            write_tensors(self.directory / f"{key}.safetensors", tensors, settled=False)

    def get(self, key: str) -> dict[str, Tensor]:
        return self.known[key] if self.directory is None else read_tensors(self.directory / f"{key}.safetensors")

    def holds(self, key: str) -> bool:
        return key in self.known if self.directory is None else (self.directory / f"{key}.safetensors").exists()

    def drop(self, key: str) -> None:
        if self.directory is None:
            self.known.pop(key, None)
        else:
            (self.directory / f"{key}.safetensors").unlink(missing_ok=True)

    def move(self, key: str, to: str) -> None:
        """What is kept under ``key`` takes the place of what was under ``to``."""
        if key in self.forms:
            self.forms[to] = self.forms.pop(key)
        if self.directory is None:
            self.known[to] = self.known.pop(key)
        else:
            (self.directory / f"{key}.safetensors").replace(self.directory / f"{to}.safetensors")

    def put_state(self, key: str, state: State) -> None:
        """What calls have given: their tensors here, the rest of what they are made of in memory."""
        self.forms[key] = rebuilt(state, lambda x: x.new_zeros(()).expand(x.shape))
        self.put_row(key, list(tensors_in(state)))

    def state(self, key: str) -> State:
        tensors = iter(self.row(key))
        place = {}
        for like in tensors_in(self.forms[key]):
            place[id(like)] = next(tensors).to(like.device)
        return rebuilt(self.forms[key], lambda x: place[id(x)])

    def put_row(self, key: str, tensors: Sequence[Tensor]) -> None:
        self.put(key, {str(number): tensor for number, tensor in enumerate(tensors)})

    def row(self, key: str) -> list[Tensor]:
        """What ``put_row`` was given, in its order."""
        found = self.get(key)
        return [found[str(number)] for number in range(len(found))]


@contextmanager
def keeping(needed: int, limit: int | None, directory: Path | None) -> Iterator[Kept]:
    """A place for ``needed`` bytes: in memory where they are no more than ``limit`` (None: ``SHARE`` of what is free),
    else in a folder of its own in ``directory`` (None: where the system keeps temporary files), which is empty again at
    the end. Raises ``OSError`` in one line where the disk has no room for them either."""
    free = available()
    if limit is None:
        limit = needed if free is None else int(SHARE * free)
    if needed <= limit:
        yield Kept()
        return
    place = Path(tempfile.gettempdir()) if directory is None else directory
    check_room(place, needed)
    place.mkdir(parents=True, exist_ok=True)
    own = Path(tempfile.mkdtemp(prefix="activations-", dir=place))
    try:
        yield Kept(own)
    finally:
        shutil.rmtree(own, ignore_errors=True)
