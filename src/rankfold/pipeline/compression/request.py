"""What one run was asked for, written into its directory: the same request resumes, another one is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from rankfold.compress.methods import METHODS, method_named
from rankfold.compress.methods.method import Method
from rankfold.compress.planning.choice import Forms, asked_forms
from rankfold.compress.ranks.budget import Budget
from rankfold.compress.ranks.rules import RankRule, described, rule_named
from rankfold.compress.repair.finetune import finetune_recipe
from rankfold.objectives import Objective, objective_named
from rankfold.objectives.names import BUILT_IN
from rankfold.pipeline.compression.asked import layers_of, valued
from rankfold.pipeline.quality.value import MaxDrop
from rankfold.run.digest import digest
from rankfold.run.disk.container import read_object
from rankfold.run.disk.files import write_atomically
from rankfold.run.place import Place
from rankfold.sites import fingerprint
from rankfold.sites.wish import Where
from rankfold.store import StoreError
from rankfold.train import Recipe

FORMAT = 2  # 1 knew data by their length and labels
_DECIDES = {"budgets", "max_drop", "smallest", "rule", "finetune", "tune", "tune_by"}  # what no measurement depends on
_JUDGES = ("figure", "higher", "unit")  # of an objective of one's own: what no plan depends on
_MEASURED = "profile.safetensors"
_STATE = (_MEASURED, "plan.json", "plan.json.sha256", "quality.json", "tried.json")
_WORK = ("finetune", "fits", "shards", "sweep")  # folders; the last one as the first release named it


@dataclass(frozen=True)
class Settings:
    """How ``compress`` works; the defaults are those of the command line.

    Args:
        method: how matrices are factored, by name or as an object.
        rule: how ranks are shared out between sites.
        samples: calibration samples, drawn from the training split with ``seed``.
        finetune: epochs of the default recipe, or a recipe; 0 for none.
        curve: also measure the judging figure at other budgets, for the report.
        seed: of every random choice.
        model: the name from which the original can be built again, kept in the manifest.
        slices: keep what is needed to slice the result later; it takes disk space.
        memory: bytes that second moments may take, for methods that fit layer after layer.
        tune: steps of training to what the original gives, before fine-tuning.
        objective: what outputs and targets mean; told from data and model by default.
        max_drop: a budget in quality besides, or instead: how far the judging figure may fall, in points of a
            percentage or in its own unit; of another figure by its name, such as "kl=0.02".
        smallest: what is then to be small, "flops", "params", "bytes" or "latency".
        where: which layers may be factored, as in ``rankfold.sites``.
        forms: which forms are weighed, as in ``rankfold.profile``.
        tune_by: what ``tune`` trains at once, the "whole" or "blocks"; by default the whole of a language model.
        profile: the directory of an earlier run of the same model, data, method and samples, or its profile: what it
            measured is taken, for another budget.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> rf.pipeline.Settings(samples=256).method
        'project'
    """

    method: str | Method = "project"
    rule: str | RankRule = "optimal"
    samples: int = 2048
    finetune: int | Recipe = 0
    curve: bool = True
    seed: int = 0
    model: str = ""
    slices: bool = True
    memory: int | None = None
    tune: int = 0
    objective: str | Objective | None = None
    max_drop: float | str | None = None
    smallest: str = "flops"
    where: Where | None = None
    forms: Forms | None = None
    tune_by: str | None = None
    profile: str | Path | None = None

    def __post_init__(self) -> None:
        _ = self.quality  # refused where it is given
        asked_forms(self.forms)
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")
        if self.tune < 0:
            raise ValueError(f"tune (--tune), the number of steps, must be at least 0, got {self.tune}")
        if self.tune_by not in (None, "whole", "blocks"):
            raise ValueError(f"tune_by must be 'whole' or 'blocks', got {self.tune_by!r}")
        if isinstance(self.finetune, int) and self.finetune < 0:
            raise ValueError(
                f"finetune (--finetune-epochs), the number of epochs, must be at least 0, got {self.finetune}"
            )

    @property
    def quality(self) -> MaxDrop | None:
        """The budget in quality; None for none."""
        if self.max_drop is None:
            return None
        return MaxDrop.of(self.max_drop, self.smallest)

    def objective_for(self, data: Any) -> Objective | None:
        """The objective that was asked for here, or that ``data`` bring as an attribute; None for neither."""
        asked = getattr(data, "objective", None) if self.objective is None else self.objective
        return None if asked is None else objective_named(asked)

    def recipe(self, data: Any) -> Recipe | None:
        """The recipe of fine-tuning; None for none."""
        if isinstance(self.finetune, Recipe):
            return self.finetune
        if self.finetune == 0:
            return None
        values = finetune_recipe(data, self.finetune).to_dict()
        return Recipe.from_dict(values | {"seed": self.seed})


def request_of(model: nn.Module, data: Any, budgets: Sequence[Budget], settings: Settings) -> dict[str, Any]:
    """Everything that the result depends on, as JSON: the model by its fingerprint, the data by their content."""
    recipe, objective = settings.recipe(data), settings.objective_for(data)
    request = {
        "format": FORMAT,
        "model": settings.model,
        "fingerprint": fingerprint(model),
        "data": {part: digest(getattr(data, part, None)) for part in ("train", "validation", "test")},
        "budgets": [asdict(budget) for budget in budgets],
        "method": valued(method_named(settings.method), METHODS),
        "rule": described(rule_named(settings.rule)),
        "samples": settings.samples,
        "finetune": None if recipe is None else recipe.to_dict(),
        "seed": settings.seed,
    } | ({"tune": settings.tune} if settings.tune else {})
    request |= {} if settings.tune_by is None else {"tune_by": settings.tune_by}
    if objective is not None:
        told = valued(objective, BUILT_IN)
        judged = {key: told.pop(key) for key in _JUDGES if key in told} if isinstance(told, dict) else {}
        request |= {"objective": told} | ({"figure": judged} if judged else {})
    quality = settings.quality
    if quality is not None:
        request |= {"max_drop": str(quality) if quality.figure else quality.points, "smallest": settings.smallest}
    request |= {} if settings.where is None else {"where": layers_of(model, settings.where)}
    request |= {} if settings.forms is None else {"forms": sorted(asked_forms(settings.forms) or ())}
    return json.loads(json.dumps(request))


def forget(directory: Path) -> None:
    """Remove the state of a run. Its model and report stay until those of the next run replace them, whole."""
    for name in ("result.json", *(f"run/{name}" for name in _STATE)):
        if (directory / name).is_file():
            (directory / name).unlink()
    for name in _WORK:
        shutil.rmtree(directory / "run" / name, ignore_errors=True)


def _undecided(directory: Path) -> bool:
    """Whether a run has been asked for in ``directory`` and has come no further than to measure."""
    held = {path.name for path in (directory / "run").glob("*")}
    return "request.json" in held <= {"request.json", _MEASURED}


def measured(directory: Path) -> bool:
    """Whether it has come just so far."""
    return _undecided(directory) and (directory / "run" / _MEASURED).exists()


def take(directory: Path, asked: dict[str, Any], restart: bool) -> None:
    """``PLACE.take``; but where a run has decided nothing yet, as after a budget that cannot be met, another budget
    goes on with what it has measured, and where none has judged yet, another figure, as after one that failed."""
    file = directory / PLACE.file
    if not restart and file.exists() and not (directory / "result.json").exists():
        before = PLACE.read(file)
        free = set(_DECIDES) if _undecided(directory) else set()
        if not any((directory / "run" / name).exists() for name in ("quality.json", "tried.json", "finetune")):
            free.add("figure")
        if {key for key in {**before, **asked} if before.get(key) != asked.get(key)} <= free:
            write_atomically(file, PLACE.written(asked))
    PLACE.take(directory, asked, restart)


@contextmanager
def tidied(directory: Path) -> Iterator[None]:
    """A run that ends before anything was measured leaves nothing behind, in a directory that held no run before.

    The directory must be claimed: what another process has begun there is no run of this one.
    """
    first = not (directory / PLACE.file).exists()
    try:
        yield
    finally:
        if first and _undecided(directory) and not measured(directory):
            (directory / PLACE.file).unlink()
            with suppress(OSError):  # somebody else's files are there
                (directory / "run").rmdir()


def _read(file: Path) -> dict[str, Any]:
    try:
        found = read_object(file, "a request of rankfold", "give another directory, or --restart")
    except (OSError, ValueError) as error:
        raise StoreError(str(error)) from None
    known, directory = found.get("format"), file.parent.parent
    if known == FORMAT:
        return found
    why = "in a format that this version does not know"
    if known == 1:
        why = "of the first version, which noted how many samples the data had, and not what is in them"
    raise StoreError(
        f"{directory} holds a run {why}, so that nothing tells whether this is the same request: rankfold "
        f"evaluate {directory} measures its network; for a new run give another directory, or --restart "
        "(restart=True)"
    )


PLACE = Place(
    file="run/request.json",
    read=_read,
    written=lambda request: (json.dumps(request, indent=1) + "\n").encode(),
    begun=lambda directory: True,
    forget=forget,
    error=StoreError,
    hint="; for another budget, --profile {directory} (profile=) in another directory measures nothing again",
)


def check_place(directory: Path) -> None:
    """``StoreError`` for a directory in which there is anything else than a run of rankfold."""
    PLACE.check(directory)
