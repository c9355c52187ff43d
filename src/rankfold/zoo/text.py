"""Text as data: windows of a corpus for models that predict the next token, single lines for encoders."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from rankfold.objectives import CausalLanguageModel, Embedding, Objective
from rankfold.run.disk.files import ARRAY_FAULTS
from rankfold.zoo.errors import ZooError
from rankfold.zoo.pretrained import NAME
from rankfold.zoo.samples import Samples
from rankfold.zoo.split import Data, held_indices, hold_out
from rankfold.zoo.texts.documents import documents, of_hub
from rankfold.zoo.texts.labelled import Answers, Table, answers_of, table

LENGTH = 256
TEXT, TOKENS = "text:", "tokens:"
_SCORES = 1 << 25  # numbers that a model may give at once: 128 MB
_HELD = 0.1  # of a text, for validation, and as much for test


@dataclass(frozen=True, eq=False)
class Texts(Samples):
    """Samples of tokens, as mappings that a model takes by name. Batches are as large as asked, or smaller where
    scores over ``vocabulary`` for all their positions would take much memory. ``cut``: how the text became samples."""

    vocabulary: int = 0
    cut: str = ""

    def __repr__(self) -> str:
        return f"Texts({len(self):,} samples, {self.cut})"

    def first(self, count: int) -> Texts:
        """The first ``count`` of them, or all where there are no more."""
        return self.between(0, count)

    def some(self, count: int) -> Texts:
        """The first ``count``, or with labels so many by lot: those are often in the order of their classes."""
        if self.labels is None or count >= len(self):
            return self.first(count)
        return self.subset(held_indices(self.labels, len(self), count))

    def between(self, first: int, last: int | None) -> Texts:
        labels = None if self.labels is None else self.labels[first:last]
        return replace(self, inputs_of=self.inputs_of[first:last], labels=labels)

    def batches(self, batch_size: int) -> Iterator[Any]:
        """Batches of at most so many samples, in order, with labels where there are any."""
        positions = max(x.numel() for x in self.inputs_of[0].values()) if len(self) else 1
        size = max(1, min(batch_size, _SCORES // max(1, positions * self.vocabulary)))
        for start in range(0, len(self), size):
            inputs = default_collate(list(self.inputs_of[start : start + size]))
            yield inputs if self.labels is None else (inputs, self.labels[start : start + size])


@dataclass(frozen=True)
class Reader:
    """How text becomes samples. ``tokenizer``: of transformers, or None for text that is tokenised already.

    ``length``: tokens of a window, or at most of a line. ``windows``: at most so many samples of each part, the first.
    ``lines``: each line is a sample, padded, with special tokens; else the text is cut into windows without any.
    ``vocabulary``: tokens that the model knows; 0 where that is not known. ``positions``: the most that it takes at
    once; None where that is not known. ``objective``: what the model's outputs are.
    ``answers``: for a whole text, so that a table's labels are read too.
    """

    tokenizer: Any
    length: int = LENGTH
    windows: int | None = None
    lines: bool = False
    vocabulary: int = 0
    positions: int | None = None
    objective: Objective | None = None
    answers: Answers | None = None

    def read(self, file: str | Path, most: int | None = None) -> Texts:
        """The samples of one file of text, at most the first ``most``. Raises ``ZooError``, one line."""
        labelled = None if self.answers is None else table(Path(file), self.answers)
        if labelled is not None:
            found = self._of_texts(file, labelled)
            return found if most is None else found.some(most)
        return self.of_documents(file, documents(Path(file)), most)

    def of_documents(self, name: str | Path, pieces: Iterator[str], most: int | None = None) -> Texts:
        """The samples of pieces of text, each whole lines; ``name`` is what they are called in errors."""
        found = self._of_lines(name, pieces, most) if self.lines else None
        if found is None:
            found = self._of_tokens(name, self._tokens(pieces, most))
        return found if most is None else found.first(most)

    def read_tokens(self, file: str | Path) -> Texts:
        """The samples of an ``.npy`` of token numbers (N,), or of windows (N, length). Raises ``ZooError``."""
        try:
            found = np.load(file, allow_pickle=False)
        except OSError as error:
            raise ZooError(f"{file}: {error.strerror or error}") from None
        except ARRAY_FAULTS as error:
            raise ZooError(f"{file}: this is no .npy of numbers ({error})") from None
        if not isinstance(found, np.ndarray) or found.dtype.kind not in "iu" or found.ndim not in (1, 2):
            raise ZooError(f"{file}: whole numbers of shape (N,) were expected, or windows of them, (N, length)")
        ids = torch.from_numpy(found.astype(np.int64))
        if ids.dim() == 2:
            self.checked(file, ids)
            if self.positions is not None and ids.shape[1] > self.positions:
                raise ZooError(
                    f"{file}: its windows are {ids.shape[1]} tokens long, and the model takes at most "
                    f"{self.positions}: give shorter windows, or the tokens in one row (N,), which --length cuts"
                )
            return self._limited([{"input_ids": row} for row in ids], f"windows of {ids.shape[1]} tokens")
        return self._of_tokens(file, ids)

    def checked(self, file: str | Path, ids: Tensor) -> None:
        """``ZooError`` for tokens that the model does not know."""
        if self.vocabulary and ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocabulary:
            worst = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
            raise ZooError(
                f"{file}: it holds the token {worst}, and the model knows tokens below {self.vocabulary}: it was "
                "made with the tokenizer of another model"
            )

    def _of_tokens(self, file: str | Path, ids: Tensor) -> Texts:
        self.checked(file, ids)
        if len(ids) < self.length:
            raise ZooError(
                f"{file}: its {len(ids):,} tokens are fewer than one window of {self.length}: give a longer "
                "text, or a shorter --length"
            )
        windows = ids[: len(ids) // self.length * self.length].view(-1, self.length)
        return self._limited([{"input_ids": row} for row in windows], f"windows of {self.length} tokens")

    def _tokens(self, pieces: Iterator[str], most: int | None) -> Tensor:
        """The pieces, one after another, without special tokens; no more of them than the windows need."""
        found: list[Tensor] = []
        with _no_remarks():
            for piece in pieces:
                ids = self.tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]
                found.append(torch.tensor(ids, dtype=torch.long))
                if most is not None and sum(map(len, found)) >= most * self.length:
                    break
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.long)

    def _of_lines(self, file: str | Path, pieces: Iterator[str], most: int | None) -> Texts:
        lines: list[str] = []
        for piece in pieces:
            lines += [line.strip() for line in piece.splitlines() if line.strip()]
            if most is not None and len(lines) >= most:
                break
        lines = lines[:most]
        if not lines:
            raise ZooError(f"{file}: it holds no line of text")
        return self._of_texts(file, Table([(line,) for line in lines]))

    def _of_texts(self, file: str | Path, found: Table) -> Texts:
        if getattr(self.tokenizer, "pad_token", None) is None:
            raise ZooError(
                f"{file}: the tokenizer has no padding token, which lines of different length need: set its pad_token"
            )
        columns = [list(column) for column in zip(*found.texts, strict=True)]
        with _no_remarks():
            made = self.tokenizer(*columns, truncation=True, max_length=self.length, padding=True, return_tensors="pt")
        self.checked(file, made["input_ids"])
        rows = [dict(zip(made, values, strict=True)) for values in zip(*made.values(), strict=True)]
        kind = "lines" if found.labels is None else "labelled texts"
        return replace(self._limited(rows, f"{kind} of at most {self.length} tokens, padded"), labels=found.labels)

    def _limited(self, rows: list[dict[str, Tensor]], cut: str) -> Texts:
        return Texts(rows, None, self.vocabulary, cut)

    def data(self, spec: str, *, download: bool = False) -> Data:
        """The data that ``text:FILE`` or ``tokens:FILE`` name, in three parts.

        One file is cut into the first four fifths to learn from, then a tenth to choose and a tenth to test; of two,
        with a comma between, the last tenth of the first is held out, and the second tests; of three each is a part.
        """
        kind, _, names = spec.partition(":")
        files = [names] if Path(names).exists() else names.split(",")
        if len(files) > 3 or not all(files):
            raise ZooError(
                f"{spec}: give one file, two (train, test), or three (train, validation, test), with commas between "
                "them"
            )
        found = []
        for index, file in enumerate(files):
            alone = len(files) == 3 or index > 0  # nothing else is held out of it
            found.append(self.read_tokens(file) if kind == TOKENS[:-1] else self._given(file, download, alone))
        labels = [part.labels is not None for part in found]
        if any(labels) and not all(labels):
            lacking = files[labels.index(False)]
            raise ZooError(f"{lacking}: it has no labels, and another file of {spec} has: give it a column label too")
        parts = _three(found, spec)
        if self.windows is not None:
            parts = [part.some(self.windows) for part in parts]
        train, validation, test = parts
        length = self.length if kind == TEXT[:-1] else _widest(train)
        cut = {"length": length} | ({} if self.windows is None else {"windows": self.windows})
        if self.answers is not None and any(labels):
            return Data(spec, train, validation, test, len(self.answers.classes) or None, self.answers.objective, cut)
        return Data(spec, train, validation, test, None, self.objective, cut)

    def _given(self, file: str, download: bool, alone: bool) -> Texts:
        if self.tokenizer is None:
            raise ZooError(
                f"text:{file}: the model has no tokenizer: give a folder of transformers with one (its files lie "
                "beside the weights), or text that is already tokenised (--data tokens:FILE.npy)"
            )
        most = self.windows if alone else None
        if not Path(file).exists() and NAME.fullmatch(file.partition("@")[0]):
            return self.of_documents(file, of_hub(file, download), most)
        return self.read(file, most)


def _widest(part: Texts) -> int:
    """Tokens of a window, which a file of windows tells itself."""
    return max(row["input_ids"].numel() for row in part.inputs_of)


def _three(read: Sequence[Texts], spec: str) -> list[Texts]:
    """Train, validation and test of the files that were read, without a random choice: neighbours are alike. Texts with
    labels are drawn, in the proportions of their classes."""
    whole = read[0]
    held = max(1, round(_HELD * len(whole)))
    if len(read) == 3:
        return list(read)
    rest = len(whole) - held * (3 - len(read))
    if rest < 1:
        raise ZooError(
            f"{spec}: {len(whole)} {whole.cut} are too few to learn from, to choose on and to test on: give a "
            "longer text or a shorter --length, or a file for each, with commas between them"
        )
    if whole.labels is not None:  # files of those are often in the order of their classes
        learnt, tests = (whole, read[1]) if len(read) == 2 else hold_out(whole, held)
        return [*hold_out(learnt, held), tests]
    tests = read[1] if len(read) == 2 else whole.between(rest + held, None)
    return [whole.first(rest), whole.between(rest, rest + held), tests]


@contextmanager
def _no_remarks() -> Iterator[None]:
    """Tokenizers remark on every text that is longer than the model's input, which windows are not."""
    logger = logging.getLogger("transformers.tokenization_utils_base")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def text(
    tokenizer: Any,
    file: str | Path,
    *,
    length: int = LENGTH,
    samples: int | None = None,
    lines: bool = False,
    model: Any = None,
) -> Texts:
    """Text as data for a model of transformers: a data set of mappings, to plan, evaluate and train with.

    Args:
        tokenizer: the model's own.
        file: plain text in UTF-8, or the column ``text`` of .csv, .tsv, .parquet or .jsonl.
        length: tokens of a window; windows do not overlap and have no special tokens.
        samples: at most so many, the first, or of a table with labels so many by lot, in the proportions of its
            classes; None for all.
        lines: each line is a sample of at most ``length`` tokens, with special tokens, padded; ``attention_mask`` says
            what is padding.
        model: one that answers for a whole text (…ForSequenceClassification): each row of a table is a sample, with
            its ``label`` where there is such a column (a class by name or number, a list of them, or a number) and a
            second text where there is ``text_pair``.

    Returns:
        A data set of ``{"input_ids": …}``, or with labels of pairs of that and a label.

    Raises:
        ZooError: a file that cannot be read, or a text shorter than one window.

    Cost: the text once through the tokenizer.

    Example:
        >>> from pathlib import Path
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> words = Tokenizer(models.WordLevel({"a": 0, "cat": 1, "sat": 2}, unk_token="a"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> _ = Path("notes.txt").write_text("a cat sat " * 20)
        >>> rf.text(PreTrainedTokenizerFast(tokenizer_object=words), "notes.txt", length=10)
        Texts(6 samples, windows of 10 tokens)
    """
    if not callable(tokenizer) or not hasattr(tokenizer, "__len__"):
        raise ZooError(
            f"{file}: tokenizer must be one of transformers, and is a {type(tokenizer).__name__}: give "
            "AutoTokenizer.from_pretrained(FOLDER) of the model's own folder"
        )
    answers = None if model is None else answers_of(model)
    reader = Reader(tokenizer, length, lines=lines or answers is not None, vocabulary=len(tokenizer), answers=answers)
    return reader.read(file, samples)


def reader_for(model: Any, tokenizer: Any, length: int | None, windows: int | None) -> Reader:
    """How ``model`` reads text: windows where it gives next tokens, otherwise lines. ``ZooError`` where it cannot."""
    from rankfold.zoo.pretrained import reads

    how = reads(model)
    longest = how.positions if how.positions is not None else length or LENGTH
    if length is not None and length > longest:
        raise ZooError(f"--length {length}: the model takes at most {longest} tokens")
    objective = CausalLanguageModel() if how.generates else Embedding() if how.vectors else None
    lines, answers = not how.generates, answers_of(model)
    return Reader(
        tokenizer, length or min(LENGTH, longest), windows, lines, how.vocabulary, how.positions, objective, answers
    )
