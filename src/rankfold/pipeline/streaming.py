"""The whole job for a model that need not fit into memory: block by block from one folder into another.

folder ── cut ──▶ blocks ── measure, the last first ──▶ curves ── budget ──▶ ranks ── fit, block by block ──▶ shards
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rankfold.batches import batches_of, copied, size_of
from rankfold.compress.applying.apply import shape_
from rankfold.compress.methods import method_named
from rankfold.compress.methods.method import fits_layers
from rankfold.compress.planning.plan import Plan
from rankfold.compress.planning.profile import Calibration
from rankfold.compress.planning.profiling import profiled
from rankfold.compress.planning.reachable import refused_early
from rankfold.compress.ranks.asked import parsed
from rankfold.compress.ranks.budget import Budget, Latency
from rankfold.compress.ranks.rules import rule_named
from rankfold.linalg.brief import brief
from rankfold.objectives import Evaluation, Inferred
from rankfold.observe import PAGES, Pages
from rankfold.pipeline.body import Body
from rankfold.pipeline.compression.outcome.beside import Beside
from rankfold.pipeline.compression.outcome.delivery import finished
from rankfold.pipeline.compression.outcome.measure import calibration_part, held_out, protocol
from rankfold.pipeline.compression.outcome.remarks import summary
from rankfold.pipeline.compression.request import PLACE, Settings, request_of
from rankfold.pipeline.cutting import TOGETHER, Extent, Parts, together
from rankfold.pipeline.needs import Needs, needs_of
from rankfold.report.quantities import bytes_of
from rankfold.run.claim import claimed
from rankfold.run.disk.container import read_object
from rankfold.run.disk.files import write_atomically
from rankfold.run.ordinary import ordinarily
from rankfold.run.processes.memory import steady
from rankfold.run.processes.team import Team, joined
from rankfold.run.progress import Tell, shown
from rankfold.sites import sites
from rankfold.store import StoreError, check_ours, manifest
from rankfold.store.card import card
from rankfold.train.evaluation import choose
from rankfold.zoo.data import parts_of

MEMORY = 8_000_000_000
WATCHED = 256  # samples of the test split on which both networks are measured
_METRIC = 1024  # samples on which gradients are taken


@dataclass(frozen=True)
class Streamed:
    """What became of a folder that went through block by block.

    Attributes:
        directory: where the compressed one lies.
        plan: that it follows.
        needs: bytes of memory and disk that were told beforehand, by name.
        before: how good the original is on ``split``, from the passes of the job; None where that was not watched.
        after: the same of the compressed one.
        split: the part of the data that both were measured on.
        remarks: what a person should know.
        seconds: that it took.

    Example:
        >>> plan = rf.plan(nn.Sequential(nn.Linear(8, 8)), "params=0.9", "truncate", example=torch.randn(1, 8))
        >>> rf.Streamed("small", plan, {"block": 256}, None, None, "test", (), 1.0).needs["block"]
        256
    """

    directory: Path
    plan: Plan
    needs: Mapping[str, Any]
    before: Evaluation | None
    after: Evaluation | None
    split: str
    remarks: tuple[str, ...]
    seconds: float

    __repr__ = brief

    @property
    def forecast(self) -> Beside:
        """What the plan was expected to lose, and has lost where that was watched."""
        lost = None if self.after is None else self.after.values.get("kl")
        return Beside(self.plan.total, lost, "" if lost is None else f"the {self.split} split")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``rankfold compress --json`` prints them."""
        scores = {"before": self.before, "compressed": self.after}
        told: dict[str, Any] = {}
        for name, cost in (("before", self.plan.before), ("compressed", self.plan.after)):
            score = scores[name]
            told[name] = ({} if score is None else score.values | {"loss": score.loss}) | asdict(cost)
        return told | {
            "split": self.split,
            "kept_of_factorable": self.plan.kept_of_factorable(),
            "forecast": self.forecast.to_dict(),
            "needs": dict(self.needs),
            "remarks": list(self.remarks),
            "seconds": self.seconds,
        }


@ordinarily
def stream(
    folder: str | Path,
    data: Any,
    budget: str | Budget | Sequence[str | Budget],
    directory: str | Path,
    *,
    memory: int | str | None = None,
    settings: Settings | None = None,
    restart: bool = False,
    tell: Tell | None = None,
) -> Streamed:
    """Make a smaller model of the one in a folder, block by block, never holding more of it than a block.

    Ranks are shared out over all blocks in the token metric of the whole network. Embeddings and the head stay as they
    are. What it will need of memory and disk is told before anything is done. A job that was interrupted, killed too,
    goes on behind the last block that was finished, and ends with the same bytes. With another bound of memory it
    measures again and keeps the finished blocks whose ranks come out the same. Under torchrun every process takes its
    share of the data, and the first one writes; all must see the same ``directory``.

    Args:
        folder: of transformers, with its weights in safetensors.
        data: with ``train``, ``validation`` and ``test``, or a tuple of them, as in ``rankfold.pipeline.compress``.
        budget: as in ``rankfold.plan``; none of latency.
        directory: where the result goes, a folder that ``from_pretrained`` loads after ``import rankfold.hub``.
        memory: bytes by which the process may grow while it works, as a number or as "8GB", the default.
        settings: its method must fit layer after layer ("sequential" by default); without tuning, fine-tuning and a
            drop of quality, which need the whole model.
        restart: replace what another request left in ``directory``.
        tell: where it tells what it does.

    Returns:
        A ``Streamed``: the plan, what it needed, and how good both networks are.

    Raises:
        BoundError: ``memory`` is less than one block needs; with the smallest that works.
        OSError: the disk has too little room.
        HubError: a folder that cannot be read so.
        ValueError: something is asked that needs the whole model; data of one batch.

    Cost: for each block two passes over the data and more for the moments of its sites, one of them backward, then as
    many as it has groups of layers that read the same tensor, and two, to fit it; its decompositions.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> LlamaForCausalLM(LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...     num_attention_heads=2, num_key_value_heads=2)).save_pretrained("dense")
        >>> train, test = ([{"input_ids": x} for x in torch.randint(9, (n, 4)).split(2)] for n in (8, 2))
        >>> found = rf.stream("dense", (train, test, test), "params=0.9", "small", memory=300_000_000)
        >>> found.plan.after.params <= 0.9 * found.plan.before.params
        True
    """
    from rankfold import hub  # imports transformers

    settings, place = settings or Settings(method="sequential"), Path(directory)
    check_streamable(settings)
    if isinstance(folder, nn.Module):
        raise ValueError(
            f"rankfold.stream reads a folder block by block, and a {type(folder).__name__} is in memory already: "
            "give the folder, or use rankfold.pipeline.compress"
        )
    memory = MEMORY if memory is None else bytes_of(memory) if isinstance(memory, str) else memory
    budgets = parsed(budget)
    if any(isinstance(each, Latency) for each in budgets):
        raise ValueError(f"a budget of latency {_WHOLE}")
    began = time.perf_counter()
    with ExitStack() as stack:
        team = stack.enter_context(joined(torch.device("cpu")))
        told = stack.enter_context(shown(tell if team.first else Tell()))
        root, data = hub.paged(folder), parts_of(data)
        stack.enter_context(steady(memory))
        team.shared(lambda: PLACE.check(place))
        team.shared(lambda: check_ours(place, root))
        sites(root, settings.where)  # a pattern that fits nothing is told
        chosen = replace(settings, memory=memory, where=Body(root, settings.where))
        meant = choose(
            root, data.validation, settings.objective, said=getattr(data, "objective", None), role="validation",
            answer=lambda root, batch: getattr(root, PAGES).answer(batch),
        )  # fmt: skip
        job = _Job(root, Path(folder), data, budgets, chosen, meant, place, told, team)
        needs = job.cut()
        asked = request_of(root, data, budgets, settings) | {"streamed": True}

        def begin() -> bool:
            if restart or not finished(place):
                job.check(needs)
            if restart or not finished(place) or PLACE.differing(place, asked):
                stack.enter_context(claimed(place, what="compress"))
                PLACE.take(place, asked, restart)
            return finished(place)

        if team.shared(begin):
            told.say(f"{place} already holds the finished run: nothing to do")
            return _read(place)
        result = replace(job.run(needs), seconds=time.perf_counter() - began)
        team.shared(lambda: _close(result))
        return result


def check_streamable(settings: Settings) -> None:
    """``ValueError`` for what cannot be had block by block."""
    whole = {"tuning": settings.tune, "fine-tuning": settings.finetune, "a drop of quality": settings.quality}
    for what, asked in whole.items():
        if asked:
            raise ValueError(f"{what} {_WHOLE}")
    method = method_named(settings.method)
    if not fits_layers(method):
        raise ValueError(
            f"method {method.name!r} cannot be fitted block by block: use method sequential, or leave the bound "
            "out (--memory)"
        )


_WHOLE = "needs the whole model in memory: leave it out, or leave the bound out (--memory)"


@dataclass(frozen=True)
class _Job:
    root: Any
    folder: Path
    data: Any
    budgets: tuple[Budget, ...]
    settings: Settings
    meant: Inferred
    directory: Path
    tell: Tell
    team: Team

    @property
    def pages(self) -> Pages:
        pages = getattr(self.root, PAGES, None)
        assert pages is not None
        return pages

    @property
    def calibration(self) -> Any:
        return calibration_part(self.data.train, self.settings.samples, self.settings.seed)

    def cut(self) -> Needs:
        """Find the blocks, and what the work on them needs."""
        found = sites(self.root, self.settings.where)
        if not found.reducible:
            raise ValueError(f"{self.folder}: none of its layers may be factored: --only and --exclude leave none")
        seen = Extent().add(batches_of(self.calibration, TOGETHER, self.settings.samples))
        samples, most = seen.samples, together(self.calibration, seen)
        few = seen.add(batches_of(held_out(self.data)[0], most, WATCHED)).longest
        self.pages.cut(few, [site.name for site in found.reducible])
        assert self.settings.memory is not None
        needs = needs_of(
            self.pages, found, size_of(few), seen.whole, samples, most, _METRIC, self.settings.memory,
            self.meant.objective.by_token,
        )  # fmt: skip
        if len(list(islice(self.parts(needs), 2))) < 2:
            raise ValueError("the data to calibrate on are a single batch: give at least two, as one is held back")
        return needs

    def parts(self, needs: Needs) -> Parts:
        """What is calibrated on, as much of it at a time as fits."""
        return Parts(self.calibration, needs.batch, self.settings.samples)

    def check(self, needs: Needs) -> None:
        """Tell what is needed, and refuse where it is not there."""
        from rankfold import hub

        self.tell.say(str(needs))
        needs.check(self.directory)
        for name in hub.left_alone(self.folder):
            self.tell.say(f"{name}: it lies beside the model and is neither read nor copied")

    def run(self, needs: Needs) -> Streamed:
        from rankfold import hub

        self.tell.say(str(self.meant))
        run = self.directory / "run"
        fits = run / "fits" / f"{needs.batch}-{needs.moments}"  # what is measured depends on both
        self.team.shared(lambda: _cleared(fits))
        pages, (split, name) = self.pages, held_out(self.data)
        shards = pages.sink = hub.Shards(run / "shards", pages)
        pages.watched = list(Parts(split, needs.batch, WATCHED))
        how = Calibration(self.settings.samples, needs.batch, getattr(self.data, "name", ""), memory=needs.moments)
        how = replace(how, distributed=self.team.size > 1)
        known = profiled(
            self.root, self.parts(needs), method=self.settings.method, objective=self.meant.objective,
            where=self.settings.where, forms=self.settings.forms, calibration=how,
            directory=fits, progress=self.tell.progress,
            check=refused_early(self.budgets, rule_named(self.settings.rule)),
        )  # fmt: skip
        plan = known.plan(self.budgets, self.settings.rule, progress=self.tell.progress)
        self.tell.say(f"plan: {summary(plan)}")
        self.tell.say(f"forecast: {plan.total.sentence}")
        scores = pages.scores or (None, None)
        watched = sum(map(size_of, pages.watched))
        said = protocol(scores[0], split.first(watched)) if scores[0] is not None and hasattr(split, "first") else ""
        self.team.shared(lambda: self.deliver(plan, shards, scores, name))
        self.tell.say(f"saved in {self.directory}")
        remarks = tuple(filter(None, (said, *plan.notes)))
        return Streamed(self.directory, plan, asdict(needs), scores[0], scores[1], name, remarks, 0.0)

    def deliver(self, plan: Plan, shards: Any, scores: Any, split: str) -> None:
        """The folder: nothing loads it before all of it is there."""
        from rankfold import hub

        small = shape_(copied(self.root), plan)
        files, there = shards.close(small)
        notes = {"model": self.settings.model, "data": getattr(self.data, "name", ""), "split": split}
        notes |= dict(getattr(self.data, "cut", {})) | {"objective": self.meant.objective.name}
        if scores[0] is not None:
            costs = (plan.before, plan.after)
            notes |= {key: s.values | asdict(c) for key, s, c in zip(("before", "figures"), scores, costs, strict=True)}
        files |= hub.companions(self.folder)
        files |= {manifest.PLAN: plan.to_json().encode(), "README.md": card(small, plan, notes).encode()}
        (self.directory / "config.json").unlink(missing_ok=True)
        for name in there:
            shards.directory.joinpath(name).replace(self.directory / name)
        manifest.write(self.directory, files, notes, manifest.PRETRAINED, there)


def _cleared(fits: Path) -> None:
    """Without the activations of a job that was killed, and without what was measured within another bound."""
    others = (place for place in fits.parent.glob("*") if place != fits)
    for left in (*others, *fits.glob("*/activations-*")):
        shutil.rmtree(left)


def _close(result: Streamed) -> None:
    """Say that the run is complete, and remove what only it needed."""
    values = {
        "plan": json.loads(result.plan.to_json()), "needs": dict(result.needs), "split": result.split,
        "remarks": list(result.remarks), "seconds": result.seconds,
        "scores": [each and each.to_dict() for each in (result.before, result.after)],
    }  # fmt: skip
    write_atomically(result.directory / "result.json", (json.dumps(values, indent=1) + "\n").encode())
    for place in ("fits", "shards"):
        shutil.rmtree(result.directory / "run" / place, ignore_errors=True)


def _read(directory: Path) -> Streamed:
    file = directory / "result.json"
    try:
        values = read_object(file, "the result of a run", "run again with --restart (restart=True)")
        before, after = (each and Evaluation.from_dict(each) for each in values["scores"])
        return Streamed(
            directory, Plan.from_json(json.dumps(values["plan"])), values["needs"], before, after, values["split"],
            tuple(values["remarks"]), values["seconds"],
        )  # fmt: skip
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{file}: damaged ({error}): run again with --restart (restart=True)") from None
