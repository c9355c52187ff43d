"""The plan of an interrupted run: taken up as it was left, and looked at again where somebody has changed it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from rankfold.batches import copied
from rankfold.compress.applying.apply import shape_
from rankfold.compress.methods.method import Method
from rankfold.compress.planning.plan import Plan, check_fingerprint, decisions
from rankfold.compress.ranks.asked import multiple_of
from rankfold.compress.ranks.budget import Budget, Bytes, Flops, Params
from rankfold.costs import Example, model_cost
from rankfold.pipeline.quality.value import Quality
from rankfold.report.quantities import percent
from rankfold.run.disk.container import FAULTS, read_object, said
from rankfold.run.disk.files import sha256, write_atomically
from rankfold.run.progress import Tell
from rankfold.store import StoreError


def keep_plan(made: Plan, file: Path) -> None:
    """Save ``made``, and beside it the hash by which a change is noticed."""
    made.save(file)
    write_atomically(_mark(file), f"{sha256(file.read_bytes())}\n".encode())


def kept_plan(
    file: Path, model: nn.Module, budgets: Sequence[Budget], method: Method, example: Example, tell: Tell
) -> Plan:
    """The plan that ``keep_plan`` saved. One that was changed since is told, and its costs are counted again.

    Raises ``StoreError`` for a plan of another request, and for one whose changes break a budget of parameters, FLOPs
    or bytes. A plan of the first release has no hash; forms, ranks and biases that were changed are noticed all the
    same.
    """
    made, mark = Plan.load(file), _mark(file)
    same = mark.exists() and mark.read_text(encoding="utf-8").strip() == sha256(file.read_bytes())
    if same or (not mark.exists() and not made.edited):
        return made
    anew = "--restart (restart=True) makes a new one"
    if made.method != method.name or tuple(made.budgets) != tuple(budgets):
        raise StoreError(
            f"{file} was changed since it was made, and now names another method or budget: undo that, or {anew}"
        )
    check_fingerprint(made, model)
    before, after = model_cost(model, example), model_cost(shape_(copied(model), made), example)
    kept = []
    for budget in budgets:
        if not isinstance(budget, Params | Flops | Bytes):
            continue
        fraction = getattr(after, budget.kind) / max(getattr(before, budget.kind), 1)
        kept.append(f"{percent(fraction)} of the {budget.kind}")
        if fraction > budget.keep * (1 + 1e-9):
            raise StoreError(
                f"{file} was changed since it was made, and now keeps {kept[-1]}, where {budget.describe()} was "
                f"asked for: give smaller ranks there, or {anew}"
            )
    multiple = multiple_of(budgets)
    for entry in made.changed:
        if entry.rank % multiple:
            raise StoreError(
                f"{file} was changed since it was made, and {entry.site} now has rank {entry.rank}, where ranks "
                f"in multiples of {multiple} were asked for: correct it there, or {anew}"
            )
    tell.say(
        f"the plan was changed since it was made, and keeps {' and '.join(kept) or 'what was asked for'}, which is "
        "allowed"
    )
    return replace(made, after=after, decided=decisions(made.entries))


def keep_quality(quality: Quality, file: Path) -> None:
    """Save what a search found; before the plan, so that there is no plan of a search without it."""
    write_atomically(file, (json.dumps(quality.kept(), indent=1, ensure_ascii=False) + "\n").encode())


def kept_quality(file: Path) -> Quality:
    """What ``keep_quality`` saved; ``StoreError`` where it is missing or damaged."""
    again = "--restart (restart=True) searches again"
    try:
        return Quality.read(read_object(file, "what a search found", again))
    except FAULTS as error:
        raise StoreError(f"{file}: damaged ({said(error)}): {again}") from None
    except (OSError, ValueError) as error:
        raise StoreError(str(error)) from None


def _mark(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")
