"""What a person sees when a command fails: one line on standard error and an exit code."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

import typer

from rankfold.run.errors import UsageError

FAILED, INTERRUPTED = 1, 130


class Interrupted(Exception):
    """The person stopped the command; the text says how to go on."""


def stopped(kept: bool) -> Interrupted:
    """``kept``: whether the same command finds anything to go on from."""
    return Interrupted("The same command continues from here." if kept else "Nothing was kept yet.")


def told(verb: Callable[..., None]) -> Callable[..., None]:
    """``verb`` with expected errors told in one line, exit code 1; wrong usage is 2, Ctrl-C is 130.

    On a terminal the first line says what the command does, before anything slow is loaded. What is neither a
    ValueError nor an OSError is a fault of this program, and keeps its traceback.
    """

    name, (does, *_) = verb.__name__.rstrip("_"), (inspect.getdoc(verb) or "").split("\n\n")

    @functools.wraps(verb)
    def command(*args: Any, **kwargs: Any) -> None:
        from rankfold.run.processes.memory import settled  # help does without

        if sys.stderr.isatty():  # a person waits, and torch takes seconds to load
            print(f"rankfold {name}: {' '.join(does.split())}", file=sys.stderr, flush=True)
        settled()
        try:
            verb(*args, **kwargs)
        except BrokenPipeError:
            raise  # typer ends silently when the reader of a pipe has gone
        except UsageError as error:
            raise typer.BadParameter(one_line(error)) from None
        except (ValueError, OSError) as error:
            print(f"error: {one_line(error)}", file=sys.stderr)
            raise typer.Exit(FAILED) from None
        except (KeyboardInterrupt, Interrupted) as error:
            print(f"interrupted{'. ' if str(error) else ''}{error}", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None

    return command


def one_line(error: BaseException) -> str:
    """The text of an error without line breaks; for files, the name and the reason."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
