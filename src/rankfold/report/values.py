"""What a report is made of: plain values, measured elsewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class FigureKind:
    """How a figure is called and written. `unit`: "fraction" for per cent, "nats", or "" for a plain number."""

    name: str
    unit: str = ""


@dataclass(frozen=True)
class LayerRow:
    """One layer's part in the result.

    `form` is what it became (`keep`, `dense`, `factored`, …), `rank` its rank (None: kept) out of `full_rank`,
    the largest of the matrix that this form parts: a spatial pair folds a convolution's anew.
    Errors are relative to the output that the layer had, on held-out data: 0 is exact. `spectrum`: descending
    singular values on which the rank was chosen; may be empty. FLOPs are for one sample. `tied_to`: the row that has
    the parameters already, where both are one tensor. `rounding`: up to which error a layer is exact, as it computes.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    form: str
    rank: int | None
    full_rank: int
    params_before: int
    params_after: int
    flops_before: int | None
    flops_after: int | None
    predicted_error: float | None
    measured_error: float | None
    spectrum: Sequence[float] = ()
    note: str = ""
    tied_to: str = ""
    rounding: float = 0.0


class _Kept:
    """What a network keeps of the original's costs."""

    kept_flops: float | None
    kept_params: float | None

    def kept_of(self, sought: str) -> float | None:
        return self.kept_params if sought == "params" else self.kept_flops


@dataclass(frozen=True)
class CurvePoint(_Kept):
    """What `method` reaches: `value` of the judging figure at the kept fractions of FLOPs and parameters of the
    model."""

    method: str
    kept_flops: float | None
    kept_params: float | None
    value: float


@dataclass(frozen=True)
class TriedPoint(_Kept):
    """A network that a search tried: `value` of the judging figure, and whether that was good enough."""

    kept_flops: float | None
    kept_params: float | None
    value: float
    met: bool
    chosen: bool = False


@dataclass(frozen=True)
class OfferedLayer:
    """What would become of one layer: its form, its rank (None: kept), its predicted error, its own costs."""

    form: str
    rank: int | None
    error: float | None
    params: int
    flops: int


@dataclass(frozen=True)
class Offer:
    """A plan for another budget: the shares of FLOPs, parameters and bytes of the whole model that it keeps, what it is
    expected to lose (None where that is not known), and its layers in the order of ``ReportData.layers``."""

    flops: float
    params: float
    bytes: float
    loss: float | None
    layers: Sequence[OfferedLayer]


@dataclass(frozen=True)
class SearchShown:
    """A search for the smallest network that is good enough. `told`: sentences on what was allowed and what was found;
    `limit` and `start`: the figure that is allowed, and that of the original, where the `points` were measured;
    `figure`: which one it is, None for the judging one."""

    told: Sequence[str]
    limit: float
    start: float
    points: Sequence[TriedPoint]
    figure: FigureKind | None = None


@dataclass(frozen=True)
class ReportData:
    """Everything that one report shows; a part that was not measured is None, empty or absent.

    `asked` is a sentence. `figures` are those that were measured, the judging one first. `before`, `compressed`,
    `finetuned` map the name of each figure, `loss`, `params`, `flops` (one sample, two per multiply-add), `bytes` to
    numbers and `latency_ms` to {batch size: milliseconds}. `history` holds a mapping per epoch of fine-tuning with
    `epoch` and any of `train_loss`, `validation_loss` and `validation_` with the name of the judging figure;
    `best_epoch` is the one whose weights were kept. `skipped`: (name, reason). `curve_on` says on which data the curve
    was measured, `curve_start` is the judging figure before compression there (None: that of `before`). `search`: what
    was tried, where a drop was allowed. `offers`: plans for other budgets, the smallest first, and in what their loss
    is expressed; `sought`: what was to be made small, "flops" or "params", and `called` how a reader calls it.
    `forecast`: a sentence on what the whole network was expected to lose and what it has lost. `promised`: on which
    data a drop was allowed, where those of the table fall further. `settings` (what the run was given) and
    `environment` (where it ran) are shown as they are.
    """

    title: str
    asked: str
    before: Mapping[str, Any]
    compressed: Mapping[str, Any]
    finetuned: Mapping[str, Any] | None = None
    layers: Sequence[LayerRow] = ()
    skipped: Sequence[tuple[str, str]] = ()
    curve: Sequence[CurvePoint] = ()
    history: Sequence[Mapping[str, Any]] = ()
    best_epoch: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    curve_on: str = ""
    curve_start: float | None = None
    figures: Sequence[FigureKind] = (FigureKind("accuracy", "fraction"),)
    search: SearchShown | None = None
    offers: Sequence[Offer] = ()
    offers_lose: str = ""
    sought: str = "flops"
    called: str = "FLOPs"
    forecast: str = ""
    promised: str = ""

    @property
    def judged(self) -> FigureKind:
        """The figure that decides which of two networks is better."""
        return self.figures[0]
