"""Where a run tells what it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rankfold.train import Progress, ProgressCallback


@dataclass(frozen=True)
class Tell:
    """``progress(what, done, total)`` often, ``say(sentence)`` at each result; silent by default."""

    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    say: Callable[[str], None] = lambda sentence: None

    def training(self, what: str) -> ProgressCallback:
        """For ``rankfold.train.fit``: batches as progress, and a sentence for each epoch."""

        def tell(now: Progress) -> None:
            done = (now.epoch - 1) * now.batches + now.batch
            self.progress(what, done, now.epochs * now.batches)
            if now.finished is None:
                return
            end = now.finished
            reached = "" if end.validation is None else f", validation {end.validation.judged}"
            self.say(f"  epoch {now.epoch} of {now.epochs}: loss {end.train_loss:.4f}{reached}, {end.seconds:.1f} s")

        return tell
