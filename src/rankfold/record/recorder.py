"""SpectrumRecorder: spectra, updates and subspaces of every site during any training loop; never owns the loop."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from rankfold.record.measure import measure, missing
from rankfold.record.reading import GONE, read
from rankfold.record.recording import Recording, Track
from rankfold.sites import Site, sites
from rankfold.sites.wish import Where

if TYPE_CHECKING:
    import pandas as pd


class RecordError(RuntimeError):
    """Measuring failed in the background; names the epoch and the site."""


class Probe(Protocol):
    """What else to measure at every record: site → column → number, of ``columns``; see ``rankfold.collapse``."""

    @property
    def columns(self) -> Sequence[str]: ...
    def __call__(self, model: nn.Module) -> Mapping[str, Mapping[str, float]]: ...


class SpectrumRecorder:
    """Measure every site of ``model`` whenever ``step`` is called; the decompositions run beside the training.

    W(0) is what ``model`` holds now: make the recorder before training. The model may be wrapped
    (``DistributedDataParallel``: record in one process), and may become over-parametrised, folded or factored in
    between: sites are found by name, and of a product it is the product that is measured.

    Args:
        model: to be watched.
        where: narrows the sites, as in ``rankfold.sites``.
        rank: dimension r of the leading subspaces.
        every: measure the first of this many calls.
        pending: how many copies of the weights may wait or be in work; with more, ``step`` waits for one to be done.
        probe: called with the model at every record, in the hot path; its columns stand behind the others in ``frame``
            (``rankfold.collapse.CollapseProbe``: clusters, neural collapse and bounds of every layer). One that has
            ``check(model)`` is asked at once whether it fits.

    Raises:
        ValueError: nothing can be recorded, or a number is out of range.
        RecordError: at the next call, where a decomposition in the background failed.

    Cost: in the loop one copy of the weights to the CPU. Beside it, for each matrix two singular value decompositions
    in float64, in one thread. Memory: W(0), ``pending`` + 1 copies, subspaces (m + n)·r, and 16·min(m, n) bytes for
    each record of a site.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 8))
        >>> with rf.SpectrumRecorder(net, rank=2) as recorder:
        ...     recorder.step(0)
        ...     _ = net[0].weight.data.mul_(0.5)
        ...     recorder.step(1)
        >>> sorted(set(recorder.frame().epoch))
        [0.0, 1.0]
    """

    def __init__(
        self,
        model: nn.Module,
        where: Where | None = None,
        *,
        rank: int = 10,
        every: int = 1,
        pending: int = 2,
        probe: Probe | None = None,
    ) -> None:
        for name, value in (("rank", rank), ("every", every), ("pending", pending)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        found = tuple(sites(model, where))
        if not found:
            chosen = "" if where is None else f" that where={where!r} selects"
            raise ValueError(f"{type(model).__name__} has no site{chosen}: rankfold.sites(model).left_out tells why")
        tracks = {}
        for site, matrix in zip(found, read(model, found).values(), strict=True):
            if isinstance(matrix, str):
                raise ValueError(f"{site.title}: {matrix}")
            tracks[site.name] = Track(site.kind, matrix, layer=site.layer)
        columns = () if probe is None else tuple(probe.columns)
        check = getattr(probe, "check", None)
        if check is not None:
            check(model)  # before the training, whose first record it would end
        self._begin(model, found, Recording(rank, every, tracks, columns=columns), pending, probe)

    def _begin(
        self,
        model: nn.Module | None,
        found: tuple[Site, ...],
        recording: Recording,
        pending: int,
        probe: Probe | None,
    ) -> None:
        self._model, self._sites, self._recording, self._pending = model, found, recording, pending
        self._probe = probe
        self._waiting: deque[Future[None]] = deque()
        self._worker: ThreadPoolExecutor | None = None

    def step(self, epoch: float) -> None:
        """Record the model as it is now, labelled ``epoch`` (or a count of iterations: any number that grows).

        Raises ``ValueError`` for a label that does not grow, and ``RecordError`` for what went wrong in the background
        since the last call.
        """
        epoch = float(epoch)  # a number of numpy or torch is none that the file can hold
        if self._model is None:
            raise ValueError(
                "this recording was loaded without a model, so that it cannot go on: use "
                "SpectrumRecorder.load(path, model)"
            )
        while self._waiting and self._waiting[0].done():
            self._waiting.popleft().result()
        due = self._recording.calls % self._recording.every == 0
        if due and not self._recording.last < epoch < math.inf:
            raise ValueError(
                f"epoch {epoch} comes after {self._recording.last:g}, and labels of epochs must grow: when "
                "resuming, load the recording that was saved with the checkpoint"
            )
        self._recording.calls += 1
        if not due:
            return
        while len(self._waiting) >= self._pending:
            self._waiting.popleft().result()
        self._recording.last = epoch
        copies = read(self._model, self._sites)
        extra = {} if self._probe is None else self._probe(self._model)
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, "rankfold-record")
        self._waiting.append(self._worker.submit(self._measure, epoch, copies, extra))

    @property
    def last(self) -> float:
        """The label of the last record; below any number before the first."""
        return self._recording.last

    def callback(self, steps: int | None = None) -> Any:
        """A ``TrainerCallback`` for the Trainer of transformers, which records at the start and after every epoch, or
        every so many ``steps``, in the first process, with the ``probe`` if there is one.

            recorder = SpectrumRecorder(model)
            Trainer(model, …, callbacks=[recorder.callback()]).train()

        The recording goes into each checkpoint, ``spectra.safetensors``: load it with the model to resume from there
        (``SpectrumRecorder.load(checkpoint / "spectra.safetensors", model)``), and it goes on behind what is recorded.
        Raises ``ValueError`` for ``steps`` below 1, ``ImportError`` without transformers.
        """
        from rankfold.record.trainer import trainer_callback

        return trainer_callback(self, steps)

    def _measure(self, epoch: float, copies: dict[str, Tensor | str], extra: Mapping[str, Mapping[str, float]]) -> None:
        failures: list[tuple[str, Exception]] = []
        for site, matrix in copies.items():
            track = self._recording.tracks[site]
            if isinstance(matrix, Tensor) and matrix.shape != track.start.shape:
                matrix = f"its shape is {tuple(matrix.shape)} now and was {tuple(track.start.shape)} at the start"
            try:
                if isinstance(matrix, str):
                    row, track.before = missing(epoch, matrix), None
                else:
                    row, track.before = measure(epoch, matrix, track.start, track.before, self._recording.rank)
            except Exception as cause:
                failures.append((site, cause))
                row, track.before = missing(epoch, f"{type(cause).__name__}: {cause}"), None
            track.rows.append(replace(row, extra=dict(extra.get(site, {}))))
        if failures:
            site, first = failures[0]
            more = f", and {len(failures) - 1} more" if len(failures) > 1 else ""
            raise RecordError(
                f"epoch {epoch:g}: measuring {site}{more} failed ({type(first).__name__}: {first})"
            ) from first

    def frame(self, eps: float = 1e-3) -> pd.DataFrame:
        """One row for each epoch and site: ranks, norms, update, distances; the columns are in docs/recording.md.

        ``eps``: singular values of at least this fraction of the largest count for ``numerical_rank``. Waits for the
        measurements under way. Raises ``RecordError``.
        """
        self._settle()
        return self._recording.frame(eps)

    def singular_values(self) -> pd.DataFrame:
        """Columns epoch, site, of (``weight`` or ``update``), index (from 1), value. Waits; raises ``RecordError``."""
        self._settle()
        return self._recording.singular_values()

    def plot(self, path: str | Path, where: str | None = None) -> None:
        """Draw singular values of weights and updates, and subspace distances, over the epochs; a row for each site.

        The ending of ``path`` says the format (svg, png, pdf). ``where``: a glob over the names of sites.
        Waits; raises ``RecordError``, and ``ValueError`` where there is nothing to draw.
        """
        from rankfold.record.plot import draw  # brings matplotlib

        self._settle()
        draw(self._recording, Path(path), where)

    def save(self, path: str | Path) -> None:
        """Write everything, W(0) included, into one safetensors file, atomically. Waits; raises ``RecordError``."""
        self._settle()
        self._recording.save(Path(path))

    @classmethod
    def load(
        cls, path: str | Path, model: nn.Module | None = None, *, pending: int = 2, probe: Probe | None = None
    ) -> SpectrumRecorder:
        """The inverse of ``save``, exact. With the ``model`` it was recorded from, or what that has become since, it
        goes on, from the same W(0).

        Raises ``ValueError`` for a damaged or foreign file, for a model without one of the sites, and for a ``probe``
        with other columns.
        """
        recording = Recording.load(Path(path))
        if probe is not None and tuple(probe.columns) != recording.columns:
            raise ValueError(f"{path}: it was recorded with {'another' if recording.columns else 'no'} probe")
        found: tuple[Site, ...] = ()
        if model is not None:
            found = recording.sites_in(model)
            now = read(model, found)
            tracks = recording.tracks.items()
            lost = [name for name, track in tracks if name not in now or (now[name] is GONE and track.is_there)]
            if lost:
                raise ValueError(f"{path}: it recorded {lost[0]}, which is no site of this {type(model).__name__}")
        recorder = cls.__new__(cls)
        recorder._begin(model, found, recording, pending, probe)
        return recorder

    def close(self) -> None:
        """Finish the measurements under way and end the thread. Raises ``RecordError``."""
        if self._worker is not None:
            self._worker.shutdown()
            self._worker = None
        self._settle()

    def __enter__(self) -> SpectrumRecorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except RecordError:
            if error is None:  # else the error of the training is what must be seen
                raise

    def _settle(self) -> None:
        while self._waiting:
            self._waiting.popleft().result()
