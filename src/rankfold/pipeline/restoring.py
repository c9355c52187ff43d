"""A compressed network that is given back some of what it lost: an adapter trained to the original, merged, judged."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from rankfold.adapt.restore import Restored, restore_
from rankfold.compress.repair.natural import SHARE
from rankfold.objectives import Evaluation, Objective
from rankfold.run.disk.files import write_atomically
from rankfold.run.progress import Tell
from rankfold.sites import unwrap
from rankfold.store import UNFINISHED, Stored, StoreError, save
from rankfold.train import choose, evaluate
from rankfold.zoo import Data

REPORT = "restored.json"


@dataclass(frozen=True)
class RestoreSettings:
    """``params``: numbers of the adapter, as a share of the model's up to 1, as a count above. ``batch_size``: None for
    two windows of a language model, else 32 samples."""

    params: float = 0.01
    steps: int = 200
    learning_rate: float = SHARE
    batch_size: int | None = None


@dataclass(frozen=True)
class Restoration:
    """``before``, ``after``: of the compressed network without and with its adapter, on the ``split``."""

    adapter: Restored
    before: Evaluation
    after: Evaluation
    split: str
    objective: str
    directory: str

    def to_dict(self) -> dict[str, Any]:
        """A report as plain values."""
        return {
            "objective": self.objective, "split": self.split, "adapter": asdict(self.adapter),
            "before": self.before.values | {"loss": self.before.loss},
            "after": self.after.values | {"loss": self.after.loss}, "directory": self.directory,
        }  # fmt: skip


def restore(
    stored: Stored,
    original: nn.Module,
    data: Data,
    settings: RestoreSettings,
    directory: str | Path,
    *,
    objective: Objective | str | None = None,
    tell: Tell | None = None,
) -> Restoration:
    """Train an adapter of the compressed network ``stored`` to ``original`` (``rankfold.restore_``), merge it, and save
    the network, with the plan that it has, to ``directory``, which must be empty or missing.

    Trained on the train split, without labels; the figures are those of the test split, or of validation where there is
    none. Raises ``ValueError`` and
    ``StoreError`` in one line.
    """
    tell, place = tell or Tell(), Path(directory)
    if settings.batch_size is not None and settings.batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {settings.batch_size}")
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise StoreError(f"{place}: there are files already: give a directory that is empty or missing")
    root = unwrap(stored.model).eval()
    chosen = choose(root, data.train, objective, said=data.objective)
    tell.say(str(chosen))

    split = "validation" if data.test is None else "test"

    def judged() -> Evaluation:
        return evaluate(root, getattr(data, split), role=split, objective=chosen.objective, teacher=original)

    before = judged()
    found = restore_(
        root, original, data.train, objective=chosen.objective, params=settings.params, steps=settings.steps,
        learning_rate=settings.learning_rate, samples=None, progress=tell.progress,
        batch_size=settings.batch_size or (2 if chosen.objective.by_token else 32),
    )  # fmt: skip
    told = Restoration(found, before, judged(), split, chosen.objective.name, str(place))
    save(root, stored.plan, place, notes={key: value for key, value in stored.notes.items() if key != UNFINISHED})
    write_atomically(place / REPORT, (json.dumps(told.to_dict(), indent=1) + "\n").encode())
    return told
