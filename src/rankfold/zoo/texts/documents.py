"""Files of text, and data sets of the hub, in pieces of whole lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from rankfold.zoo.errors import ZooError
from rankfold.zoo.texts.tables import columns, is_table, records

_CHUNK = 1 << 20  # characters of a piece, which are tokenised at once


def documents(file: Path) -> Iterator[str]:
    """The text of a file in pieces, each whole lines: plain text, or the column ``text`` of a table."""
    with readable(file):
        if is_table(file):
            yield from _chunked(_of_table(file))
        else:
            with file.open(encoding="utf-8", newline="") as opened:
                while lines := opened.readlines(_CHUNK):
                    yield "".join(lines)


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Within the block what cannot be read is said in one line."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ZooError(f"{file}: not text in UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from None
    except OSError as error:
        raise ZooError(f"{file}: {error.strerror or error}: give --data text:FILE with a file that exists") from None


def _chunked(rows: Iterable[str]) -> Iterator[str]:
    """Rows, each on lines of its own, in pieces of about as many characters as are tokenised at once."""
    kept: list[str] = []
    size = 0
    for row in rows:
        kept.append(row if row.endswith("\n") else f"{row}\n")
        size += len(kept[-1])
        if size >= _CHUNK:
            yield "".join(kept)
            kept, size = [], 0
    if kept:
        yield "".join(kept)


def _of_table(file: Path) -> Iterator[str]:
    there = columns(file)
    if "text" not in there:
        raise ZooError(
            f"{file}: a column named text was expected, and there are {', '.join(there)}: rename the column of texts"
        )
    for number, (value,) in enumerate(records(file, ("text",)), 1):
        if not isinstance(value, str | None):
            raise ZooError(f"{file}, row {number}: the column text holds {str(value)[:40]!r}, which is no text")
        if value:
            yield value


def of_hub(name: str, download: bool) -> Iterator[str]:
    """The training split of a data set of the hub, OWNER/NAME or OWNER/NAME@CONFIGURATION, in pieces."""
    try:
        import datasets
    except ImportError:
        raise ZooError(f"{name}: data sets of the hub need the package datasets: pip install 'rankfold[hf]'") from None
    path, _, configuration = name.partition("@")
    try:
        with _offline() if not download else nullcontext():
            found = datasets.load_dataset(path, configuration or None, split="train")
    except Exception as error:  # the library raises exceptions of many kinds, with pages of text
        remedy = "check the name" if download else "add --download to fetch it, or give a file"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ZooError(
            f"text:{name}: this is neither a file nor in the cache of the hub ({reason}): {remedy}"
        ) from None
    if "text" not in found.column_names:
        raise ZooError(f"text:{name}: a column named text was expected, and there are {', '.join(found.column_names)}")
    return _chunked(str(text) for text in found["text"] if text)


@contextmanager
def _offline() -> Iterator[None]:
    """Within the block the libraries of the hub read their cache alone."""
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
