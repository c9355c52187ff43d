"""Standard error: progress bars and sentences on a terminal, plain lines where it is piped."""

from __future__ import annotations

import sys
import time
import warnings
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

_EVERY = 10.0  # seconds between lines about the same piece of work where nothing can be drawn


class Talk:
    """A context: ``progress`` and ``say`` as the library calls them. One bar at a time, gone when its work is done."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.what = ""
        self.last = 0.0
        self.bar: Progress | None = None
        self.noted: set[str] = set()

    def __enter__(self) -> Talk:
        from rankfold.batches import LeftOut

        show = warnings.showwarning

        def told(message: Any, category: Any, *rest: Any, **more: Any) -> None:
            if issubclass(category, LeftOut):
                if str(message) not in self.noted:
                    self.noted.add(str(message))
                    self.say(f"note: {message}")
            else:
                show(message, category, *rest, **more)

        self.told = warnings.catch_warnings()
        self.told.__enter__()
        warnings.simplefilter("default", LeftOut)
        warnings.showwarning = told
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.told.__exit__(None, None, None)
        self.clear()

    def say(self, sentence: str) -> None:
        """One line."""
        self.clear()
        self.console.print(sentence, markup=False)

    def progress(self, what: str, done: int, total: int) -> None:
        """Tell how far ``what`` is."""
        if self.console.is_terminal:
            self._draw(what, done, total)
        else:
            self._line(what, done, total)
        if done >= total:
            self.clear()

    def clear(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.stop()
        self.bar, self.what = None, ""

    def _draw(self, what: str, done: int, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        if self.bar is None or what != self.what:
            self.clear()
            self.what = what
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True),
                console=self.console,
                transient=True,
            )
            self.bar.add_task(what, total=total)
            self.bar.start()
        self.bar.update(self.bar.task_ids[0], completed=done, total=total)

    def _line(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what != self.what:
            self.what, self.last = what, now
            return
        if now - self.last > _EVERY and done < total:
            self.last = now
            print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)
