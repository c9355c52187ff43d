"""A plan: which site becomes what, as data that can be read, edited, diffed and replayed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError
from torch import nn

from rankfold.compress.planning.forecast import Total, total_of
from rankfold.compress.ranks.asked import budget_from
from rankfold.costs import Cost
from rankfold.run.disk.container import parsed, said
from rankfold.run.disk.files import by_digest, read_whole, sha256, undisturbed, write_atomically, write_together
from rankfold.sites import Form, architecture, fingerprint

if TYPE_CHECKING:
    from rankfold.compress.measured import Statistics
    from rankfold.compress.planning.fitted import Fitted

FORMAT = 1
_STATISTICS = ".statistics.safetensors"
_FACTORS = ".factors.safetensors"


@dataclass(frozen=True)
class Entry:
    """The decision for one site.

    Attributes:
        site: its name.
        form: what it becomes.
        rank: in that form.
        shape: (m, n).
        groups: number of such matrices.
        predicted_error: relative error of the layer's output (of its weight where no data was used), Frobenius.
        predicted_loss: what this layer alone is expected to cost one sample, in the unit in which the sites of this
            plan were compared (``Plan.total``): squared change of the model's outputs, KL divergence in nats (for one
            token of a language model), or lost energy without data.
        params: of the site, in the new form.
        flops: of the site, in the new form, for one sample.
        bias: whether the new layer carries one.
        note: what is particular about it.
        certificate: how well the program behind the factors was solved, in words.
        ridge: of the method, where held-out samples have chosen one.
        members: sites that read one tensor and share their first factor in this form; the first of them holds it. Loss
            and error are those of all of them, and stand at the first.
        rows: how many outputs of this site the shared factor gives itself.
        few: the calibration samples were too few for this layer at this rank.

    Example:
        >>> plan = rf.plan(nn.Sequential(nn.Linear(8, 8)), rf.Ranks({"0": 2}), "truncate", example=torch.randn(1, 8))
        >>> plan.entries[0].rank, plan.entries[0].params
        (2, 40)
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    site: str
    form: Form
    rank: int
    shape: tuple[int, int]
    groups: int = 1
    predicted_error: float = 0.0
    predicted_loss: float = 0.0
    params: int = 0
    flops: int = 0
    bias: bool = False
    note: str = ""
    certificate: str = ""
    ridge: float = 0.0
    members: tuple[str, ...] = ()
    rows: int = 0
    few: bool = False


@dataclass(frozen=True)
class Plan:
    """What becomes of every site, as data that can be read, edited, saved and applied again.

    Attributes:
        entries: one for each site, in the order of the model's modules.
        budgets: that were asked.
        method: how the matrices are factored.
        rule: how ranks were chosen.
        fingerprint: of the weights that it was made for.
        before: cost of the whole model as it was.
        after: cost of the whole model as planned.
        calibration: the data that were used, by name and number.
        left_out: (parameter, reason) of what no site covers.
        notes: sentences on what is odd.
        format: version of the file.
        decided: hash of the decision, to notice edits.
        statistics_sha256: hash of the file of second moments beside it.
        factors_sha256: hash of the file of factors beside it.
        factorable: cost of the layers that can be factored.
        statistics: second moments that the method needs to factor again, kept in a file of their own.
        factors: by site, where they were fitted layer after layer.

    Example:
        >>> plan = rf.plan(nn.Sequential(nn.Linear(16, 16)), "params=0.7", "truncate", example=torch.randn(1, 16))
        >>> again = rf.Plan.from_json(plan.to_json())
        >>> again.entries == plan.entries, again.asked()
        (True, 'params ≤ 0.7 of dense')
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    entries: tuple[Entry, ...]
    budgets: tuple[Annotated[Any, BeforeValidator(budget_from)], ...]
    method: str
    rule: str
    fingerprint: str
    before: Cost
    after: Cost
    calibration: Mapping[str, Any] = field(default_factory=dict)
    left_out: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    format: int = FORMAT
    decided: str = field(default="", compare=False)  # hash of the decisions that the costs are counted for
    statistics_sha256: str = field(default="", compare=False)  # of the file beside a saved plan

    factors_sha256: str = field(default="", compare=False)

    factorable: Cost | None = field(default=None, compare=False)  # the layers that can be factored, as they were

    statistics: Statistics | None = field(default=None, compare=False, repr=False)
    factors: Mapping[str, Fitted] | None = field(default=None, compare=False, repr=False)

    def __repr__(self) -> str:
        sizes = f"{self.before.params:,} → {self.after.params:,} parameters"
        changed = f"{len(self.changed)} of {len(self.entries)} sites change"
        told = f"{changed}; {sizes}; forecast {self.total.brief}"
        return f"Plan({self.asked()}; method {self.method}, ranks {self.rule}; {told})"

    def __getitem__(self, site: str) -> Entry:
        for entry in self.entries:
            if entry.site == site:
                return entry
        raise KeyError(f"the plan has no entry for {site!r}")

    @property
    def changed(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.form is not Form.KEEP)

    def kept_of_factorable(self, kind: str = "params") -> float | None:
        """The kept fraction of the layers that can be factored, of "params", "flops" or "bytes", as many papers count
        it: without tables that are looked up, save where the plan factors some. None where that is not known."""
        whole = 0 if self.factorable is None else getattr(self.factorable, kind)
        return 1 - (getattr(self.before, kind) - getattr(self.after, kind)) / whole if whole else None

    @property
    def total(self) -> Total:
        """What the network as planned is expected to lose, in which unit, how far the samples differ in that, or why
        nothing is known."""
        return total_of(self)

    @property
    def forecast(self) -> float | None:
        """The number of ``total``: what each site alone costs, added up, in ``total.unit``. None where there is none,
        as without data or where sites were edited since."""
        return self.total.value

    @property
    def edited(self) -> bool:
        """Whether forms, ranks or biases were changed since the costs were counted (never known of older plans)."""
        return self.decided not in ("", decisions(self.entries))

    def with_entries(self, entries: tuple[Entry, ...]) -> Plan:
        return replace(self, entries=entries)

    def to_json(self) -> str:
        """One JSON object, readable and stable: equal plans give equal text. Statistics and factors are not in it."""
        data = asdict(replace(self, statistics=None, factors=None))
        del data["statistics"], data["factors"]
        for entry in data["entries"]:
            if not entry["members"]:
                del entry["members"], entry["rows"]
            if not entry["few"]:
                del entry["few"]
        return json.dumps(data, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan; ``ValueError`` with one line that names the field if it is not one."""
        try:
            data = parsed(text)
        except ValueError as error:
            raise ValueError(f"this is not a plan: it is not JSON ({error})") from None
        if not isinstance(data, dict) or "entries" not in data:
            raise ValueError("this is not a plan: a JSON object with 'entries' was expected")
        if data.get("format") != FORMAT:
            given = str(data.get("format"))[:80]
            raise ValueError(
                f"the plan has format {given}, and this version reads format {FORMAT}: make the plan again"
            )
        try:
            return _adapter().validate_python(data)
        except ValidationError as error:
            raise ValueError(f"this is not a valid plan: {said(error)}") from None

    def save(self, path: str | Path) -> None:
        """Write ``plan.json``, and beside it ``plan.statistics.safetensors`` and ``plan.factors.safetensors`` where
        the plan has them."""
        from rankfold.compress.planning.fitted import to_bytes

        path, beside, statistics, factors = Path(path), {}, "", ""
        if self.statistics is not None:
            data = beside[statistics_path(path).name] = self.statistics.to_bytes()
            statistics = sha256(data)
        if self.factors is not None:
            data = beside[factors_path(path).name] = to_bytes(self.factors)
            factors = sha256(data)
        text = replace(self, statistics_sha256=statistics, factors_sha256=factors).to_json().encode()
        if not beside:
            write_atomically(path, text)
            return
        write_together(path.parent, beside, path.name, text)

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan with its statistics and factors, if they are still beside it; ``ValueError`` in one line.

        The files of a plan that was renamed are found by their hashes.
        """
        from rankfold.compress.measured import Statistics
        from rankfold.compress.planning.fitted import read

        path = Path(path)

        def whole() -> Plan:
            try:
                plan = cls.from_json(path.read_text(encoding="utf-8"))
            except OSError as error:
                raise ValueError(
                    f"{path}: {error.strerror or error}: give a plan.json that rankfold plan wrote"
                ) from None
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}: this is not a plan, which would be text ({error})") from None
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
            places = statistics_path(path), factors_path(path)
            statistics = _beside(places[0], _STATISTICS, plan.statistics_sha256, "statistics")
            factors = _beside(places[1], _FACTORS, plan.factors_sha256, "factors")
            return replace(
                plan,
                statistics=None if statistics is None else Statistics.load(statistics, str(places[0])),
                factors=None if factors is None else read(factors, str(places[1]))[0],
            )

        return undisturbed(path, whole, ValueError)

    def table(self) -> list[dict[str, Any]]:
        """One row for each site, for a person or a data frame."""
        return [
            {
                "site": e.site,
                "shape": f"{e.shape[0]}×{e.shape[1]}" + (f" ×{e.groups}" if e.groups > 1 else ""),
                "form": e.form.value,
                "rank": e.rank,
                "predicted error": e.predicted_error,
                "predicted loss": e.predicted_loss,
                "params": e.params,
                "flops": e.flops,
                "note": e.note,
            }
            for e in self.entries
        ]

    def asked(self) -> str:
        return ", ".join(budget.describe() for budget in self.budgets)


def decisions(entries: tuple[Entry, ...]) -> str:
    """A hash of what is decided for every site."""
    return sha256(json.dumps([(e.site, e.form, e.rank, e.bias) for e in entries]).encode())[:16]


def _adapter() -> TypeAdapter[Plan]:
    adapter = TypeAdapter(Plan)
    # statistics and factors live in files of their own: in the JSON there can be none
    adapter.rebuild(_types_namespace={"Statistics": type(None), "Fitted": type(None)}, raise_errors=True)
    return adapter


def statistics_path(plan_path: Path) -> Path:
    return plan_path.with_name(plan_path.stem + _STATISTICS)


def factors_path(plan_path: Path) -> Path:
    return plan_path.with_name(plan_path.stem + _FACTORS)


def _beside(file: Path, ending: str, digest: str, what: str) -> bytes | None:
    """What is in the file beside a plan with this hash; None if the plan has none, or if it is gone."""
    if not digest:
        return None
    try:
        found, missing = read_whole(file.parent, file.name, digest), False
    except FileNotFoundError:
        found, missing = None, True
    found = found or by_digest(file.parent, f"*{ending}", digest)
    if found is None and not missing:
        raise ValueError(
            f"{file}: its sha256 is not the one that the plan names: it is damaged, or holds the {what} of another plan"
        )
    return found


def other_weights(plan: Plan, model: nn.Module) -> bool:
    """Whether ``model`` has the architecture that the plan was made for, with other weights."""
    theirs, ours = plan.fingerprint.split(":"), fingerprint(model).split(":")
    return theirs[0] == ours[0] and theirs != ours


def _precision(plan: Plan, model: nn.Module) -> str | None:
    """The precision in which ``model`` would have the architecture that the plan was made for."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        if architecture(model, dtype) == plan.fingerprint.split(":")[0]:
            return str(dtype).removeprefix("torch.")
    return None


def check_fingerprint(plan: Plan, model: nn.Module) -> None:
    """``ValueError`` if the plan was made for another model, saying whether architecture or weights differ."""
    here = fingerprint(model)
    if here == plan.fingerprint:
        return
    what, load = "another architecture, or is applied already", ""
    if other_weights(plan, model):
        what, load = "other weights of the same architecture", ", or load the weights that the plan was made for"
    elif (made_for := _precision(plan, model)) is not None:
        raise ValueError(
            f"this plan was made for the same network in {made_for}: apply it there, and convert the result (as "
            f"small.half() does), or make a new plan for this model"
        )
    raise ValueError(
        f"this plan was made for {what} (plan {plan.fingerprint}, model {here}): make a new plan for this model{load}"
    )
