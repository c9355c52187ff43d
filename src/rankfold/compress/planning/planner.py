"""Making a plan in one call: a profile, asked once. The model is not changed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import nn

from rankfold.compress.methods import method_named
from rankfold.compress.methods.method import Method, fits_layers
from rankfold.compress.planning.choice import Forms, asked_forms
from rankfold.compress.planning.decide import check_rule
from rankfold.compress.planning.plan import Plan
from rankfold.compress.planning.profile import Calibration
from rankfold.compress.planning.profiling import profiled
from rankfold.compress.planning.reachable import refused_early
from rankfold.compress.ranks.asked import parsed
from rankfold.compress.ranks.budget import Budget
from rankfold.compress.ranks.rules import RankRule, rule_named
from rankfold.objectives import Objective
from rankfold.run.claim import claimed
from rankfold.run.digest import digest
from rankfold.run.ordinary import ordinarily
from rankfold.run.processes.team import first_process
from rankfold.run.progress import Progress, showing
from rankfold.sites import SiteList, fingerprint, sites, unwrap


@showing
@ordinarily
def plan(
    model: nn.Module,
    budget: str | Budget | Sequence[str | Budget],
    method: str | Method = "project",
    data: Any = None,
    *,
    rule: str | RankRule = "optimal",
    objective: Objective | str | None = None,
    example: Any = None,
    where: Any = None,
    forms: Forms | None = None,
    calibration: Calibration | None = None,
    directory: str | Path | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Decide what becomes of every site of ``model`` within ``budget``: the short way through ``rankfold.profile``.

    Args:
        model: any module, left as it is.
        budget: one or several of ``Params``, ``Flops``, ``Bytes``, ``Latency``, ``KeepEnergy``, ``Ranks`` and others,
            or their text (``"flops=0.5"``); all must hold.
        method: how matrices are factored, by name or as an object.
        data: a loader, data set or batches; needed by methods that use data and by the iterative rule. Labels are not
            needed.
        rule: how ranks are shared out between sites, by name or as an object.
        objective: what the outputs mean; told from the first samples by default.
        example: one input, for counting; taken from the data by default.
        where: narrows the sites, as in ``rankfold.sites``.
        forms: those that are weighed, by name, or "all"; by default all but the quantised ones.
        calibration: which part of the data is used.
        directory: where methods that fit layer after layer keep what is finished; the same call takes up an interrupted
            one, and another job at the same time is refused.
        progress: called as ``progress(what, done, total)`` as the work goes on.

    Returns:
        A ``Plan``; nothing is changed before ``apply_``.

    Raises:
        BudgetError: nothing fits; names what stands in the way and the smallest budget that can be met, before anything
            is measured where shapes alone tell it.
        ClaimError: another job works in ``directory``.
        ValueError: as in ``rankfold.profile``.

    Cost: that of a profile, and the probes of the rank rule.

    Example:
        >>> net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        >>> plan = rf.plan(net, "params=0.5", data=torch.randn(64, 16))
        >>> plan.after.params <= 0.5 * plan.before.params
        True
    """
    root, how = unwrap(model), calibration or Calibration()
    method, rule, budgets = method_named(method), rule_named(rule), parsed(budget)
    check_rule(rule, method, data)
    place = None
    if directory is not None and data is not None:
        place = Path(directory) / _digest(root, sites(root, where), data, method, rule, how, forms)
    with _held(None if place is None or not fits_layers(method) else Path(directory or ""), how):
        known = profiled(
            root, data, method=method, objective=objective, example=example, where=where, forms=forms, calibration=how,
            directory=place, progress=progress, check=refused_early(budgets, rule),
        )  # fmt: skip
        return known.plan(budgets, rule)


def _held(directory: Path | None, how: Calibration) -> AbstractContextManager[None]:
    """The claim of a directory in which something is kept; of processes that share the work the first one has it."""
    if directory is None or (how.distributed and not first_process()):
        return nullcontext()
    return claimed(directory, what="plan")


def _digest(
    root: nn.Module, found: SiteList, data: Any, method: Method, rule: RankRule, how: Calibration, forms: Forms | None
) -> str:
    """A name for everything that a profile and its fits depend on."""
    names = [site.name for site in found.reducible]
    asked: tuple[object, ...] = (
        fingerprint(root),
        names,
        method,
        rule,
        how.samples,
        how.batch_size,
        how.memory,
        digest(data),
    )
    asked += () if forms is None else (sorted(asked_forms(forms) or ()),)
    return sha256(repr(asked).encode()).hexdigest()[:16]
