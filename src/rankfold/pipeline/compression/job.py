"""The whole job: plan, apply, repair, fine-tune, measure, save, report; resumable where it has a directory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from rankfold.batches import copied
from rankfold.compress.methods.method import fits_layers
from rankfold.compress.planning.plan import Plan
from rankfold.compress.planning.profile import Profile
from rankfold.compress.ranks.asked import parsed
from rankfold.compress.ranks.budget import Budget, Multiples
from rankfold.compress.ranks.options import BudgetError
from rankfold.compress.ranks.rules import Iterative, Optimal, rule_named
from rankfold.compress.repair.finetune import finetune
from rankfold.compress.slicing.bottlenecks import Bottlenecks, bottlenecks
from rankfold.costs import Example, storage
from rankfold.costs import check as check_cost
from rankfold.objectives import Evaluation, Figure, Inferred
from rankfold.pipeline.compression.borrowed import borrowed
from rankfold.pipeline.compression.outcome.beside import beside
from rankfold.pipeline.compression.outcome.curve import SAMPLES, Curve, quality_curve
from rankfold.pipeline.compression.outcome.delivery import (
    close,
    finished,
    model_notes,
    read_result,
    save_result,
    write_page,
)
from rankfold.pipeline.compression.outcome.heldout import layer_errors
from rankfold.pipeline.compression.outcome.measure import (
    calibration_part,
    figures,
    first_example,
    held_out,
    protocol,
    samples_of,
)
from rankfold.pipeline.compression.outcome.remarks import (
    dearer,
    further,
    gaps,
    learnt_nothing,
    of_layers,
    samples_known,
    summary,
    unjudged,
)
from rankfold.pipeline.compression.outcome.result import Result
from rankfold.pipeline.compression.planned import Planner
from rankfold.pipeline.compression.repair import compressed_copy
from rankfold.pipeline.compression.request import PLACE, Settings, measured, request_of, take, tidied
from rankfold.pipeline.compression.tuning import tuned_copy
from rankfold.pipeline.quality.halves import few_of, sample_count
from rankfold.pipeline.quality.interval import check_figure
from rankfold.run.claim import claimed
from rankfold.run.disk.files import check_room
from rankfold.run.ordinary import ordinarily
from rankfold.run.progress import Tell, shown
from rankfold.store import UNFINISHED, check_ours, save
from rankfold.train import History, TrainingError, choose, evaluate
from rankfold.zoo.data import parts_of
from rankfold.zoo.text import Texts

LATENCY_BATCHES = (1, 64)
_KNOWN = 0.05, 3.0  # points, and standard errors, by which samples are known too well to be new
BOTTLENECKS = 512  # calibration samples on which they are measured: r × r moments need fewer than those of a weight


@ordinarily
def compress(
    model: nn.Module,
    data: Any,
    budget: str | Budget | Sequence[str | Budget] = (),
    *,
    settings: Settings | None = None,
    directory: str | Path | None = None,
    restart: bool = False,
    tell: Tell | None = None,
) -> Result:
    """The whole job: a smaller copy of the trained ``model`` within ``budget``; ``model`` itself is left as it is.

    Every choice is made on validation data; test data are measured once for each stage, at the end.

    Args:
        model: a trained network.
        data: with ``train``, ``validation`` and, where there is one, ``test`` (``rankfold.zoo.Data`` or anything
            alike), or a tuple (train, test) or (train, validation, test); the parts are as in ``rankfold.evaluate``,
            with targets or without.
        budget: as in ``rankfold.plan``; with ``settings.max_drop`` there need not be one.
        settings: how it works.
        directory: the compressed model is saved there with ``report.html`` and ``result.json``; the plan and the epochs
            of fine-tuning are kept in ``directory/run`` while the job runs, so that the same call takes up an
            interrupted job, and only reads back a finished one.
        restart: replace what another request has left in ``directory``, which is otherwise refused.
        tell: progress.

    Returns:
        A ``Result``: the model, its plan, and figures before and after.

    Raises:
        ValueError: (``BudgetError``, ``StoreError``, ``TrainingError``, …) one line that names the cause.
        ClaimError: another job is at work in ``directory``.

    Example:
        >>> x = torch.randn(96, 16); y = (x[:, 0] > 0).long()
        >>> net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2))
        >>> done = rf.pipeline.compress(net, ((x[:48], y[:48]), (x[48:72], y[48:72]), (x[72:], y[72:])), "params=0.6",
        ...                             settings=rf.pipeline.Settings(curve=False))
        >>> done.params_removed >= 0.4
        True
    """
    with ExitStack() as stack:
        place, settings = None if directory is None else Path(directory), settings or Settings()
        budgets = parsed(budget) if budget or settings.quality is None else ()
        told = stack.enter_context(shown(tell))
        data = parts_of(data)
        job = _Job(model, data, budgets, settings, place, told)
        if place is None and settings.profile is None:
            return job.run()
        asked = request_of(model, data, job.budgets, job.settings)
        if settings.profile is not None:
            job = replace(job, settings=replace(settings, profile=borrowed(settings.profile, asked, job.method)))
        if place is None:
            return job.run()
        PLACE.check(place)
        check_ours(place, model)
        if not finished(place):
            check_room(place, 2 * storage(model)[1])  # a model is written beside its place first
        if restart or not finished(place) or PLACE.differing(place, asked):
            stack.enter_context(claimed(place, what="compress"))
            stack.enter_context(tidied(place))
            take(place, asked, restart)
        if not finished(place):
            try:
                return job.run()
            except BudgetError as error:
                if not measured(place):
                    raise
                kept = "what was measured is kept: the same call with another budget goes on from there"
                raise BudgetError(f"{error}; {kept}") from error
        job.tell.say(f"{place} already holds the finished run: nothing to do")
        return read_result(place, model)


@dataclass(frozen=True)
class _Job(Planner):
    """The plan of one request, carried out."""

    def run(self) -> Result:
        began = time.perf_counter()
        example = first_example(self.model, self.data.train)
        calibration = calibration_part(self.data.train, self.settings.samples, self.settings.seed)
        objective = choose(self.model, self.data.validation, self.settings.objective_for(self.data), role="validation")
        if self.settings.objective is None and self.settings.objective_for(self.data) is not None:
            objective = replace(objective, why="as the data say")
        self.tell.say(str(objective))
        start = self.scored(self.model, objective)
        before, unlearned = start.judged, learnt_nothing(start)
        for remark in unlearned:
            self.tell.say(remark)
        if self.settings.quality is not None:  # what is wrong with these is told before anything is measured
            if not self.settings.quality.figure:
                self.settings.quality.allowed(before)
            check_figure(self.model, self.settings.quality, objective.objective, self.halves)
        made, known, quality = self.plan(calibration, example, objective)
        self.tell.say(f"plan: {summary(made)}")
        self.tell.say(f"forecast: {made.total.sentence}")
        small, score = self.built(made, known, calibration, objective)
        chose = (
            "" if quality is None else f" (on all {sum(quality.samples):,}, of which {quality.samples[0]:,} chose it)"
        )
        self.tell.say(f"validation {before.name}: {before.text} before, {score.judged.text} compressed{chose}")
        stages = {"tuning": self.settings.tune, "fine-tuning": self.settings.finetune}
        left = [*(name for name, asked in stages.items() if asked), "the measurement on the test split"]
        self.keep(small, made, example, objective, left)
        untuned = (small, score)
        small, score, tuning = tuned_copy(
            small, score, self.model, calibration, self.settings, objective.objective,
            lambda network: self.scored(network, objective), self.tell,
        )  # fmt: skip
        if small is not untuned[0]:
            self.keep(small, made, example, objective, [name for name in left if name != "tuning"])
        tuned, history = self.finetuned(small, objective)
        validation = {"before": before, "compressed": score.judged}
        if history is not None and tuned is not None:
            self.keep(tuned, made, example, objective, left[-1:])
            validation["finetuned"] = _kept(history, score)
            self.tell.say(
                f"validation {before.name}: {validation['finetuned'].text} after fine-tuning, {_which(history)}"
            )
        try:
            result = self.measured(made, small, tuned, example, validation, history, objective)
        except TrainingError as error:  # of the test split, which nothing has seen before
            kept = "" if self.directory is None else f"; the compressed network is saved in {self.directory}"
            raise TrainingError(f"{error}{kept}") from error
        result = replace(
            result, quality=quality, tuning=tuning,
            forecast=beside(
                made, self.model, untuned[0], held_out(self.data)[0], result.split, objective.objective,
                result.compressed.score if small is untuned[0] else None,
            ),
            remarks=(
                *unlearned, *unjudged(self.model, example, objective.objective),
                *(() if quality is None else quality.remarks),
                *further(quality, result.before.score, result.compressed.score, result.split),
                *result.remarks, *dearer(made, known.sites), *of_layers(made),
                *samples_known(start, result.before.score, self.data.validation, result.split),
            ),
        )  # fmt: skip
        if self.directory is None:
            return replace(result, seconds=time.perf_counter() - began)
        inside = self.bottlenecks(result, calibration, objective)
        save_result(self.directory, result, self.data, example, self.settings, objective, inside)
        slow = " (--no-curve leaves out what takes longest)" if self.settings.curve else ""
        self.tell.say(f"saved in {self.directory}; what follows is for the report alone{slow}")
        errors = layer_errors(self.model, made, self.data.validation, profile=known, method=self.method)
        curve = self.curve(known, made, (start, *untuned), calibration, objective)
        result = replace(result, remarks=result.remarks + gaps(made, errors, self.method))
        write_page(self.directory, known, result, self.settings, errors, curve, history, getattr(self.data, "name", ""))
        result = replace(result, seconds=time.perf_counter() - began)
        close(self.directory, result, curve)
        return result

    def keep(self, network: nn.Module, made: Plan, example: Example, objective: Inferred, left: Sequence[str]) -> None:
        """Save what is finished, before a later step can fail, with a mark that says what is ``left`` to do."""
        if self.directory is not None:
            notes = model_notes(self.settings.model, self.data, example, objective)
            save(network, made, self.directory, notes=notes | {UNFINISHED: ", then ".join(left)})

    def scored(self, network: nn.Module, objective: Inferred) -> Evaluation:
        chosen = objective.objective
        teacher = None if chosen.labelled else self.model  # what judges is enough to choose by
        return evaluate(network, self.data.validation, role="validation", objective=chosen, teacher=teacher)

    def built(self, made: Plan, known: Profile, calibration: Any, objective: Inferred) -> tuple[nn.Module, Evaluation]:
        """The compressed network, and how good it is on validation; one that was searched is that which was judged."""
        searched = self.settings.quality is not None
        small, score = compressed_copy(
            self.model, made, calibration, self.halves.search.data if searched else self.data.validation,
            profile=known, method=self.method, reference=self.reference, progress=self.tell.progress,
            objective=objective.objective, repaired=known.calibration.samples,
        )  # fmt: skip
        return small, self.scored(small, objective) if searched else score

    def finetuned(self, small: nn.Module, objective: Inferred) -> tuple[nn.Module | None, History | None]:
        recipe = self.settings.recipe(self.data)
        if recipe is None:
            return None, None
        tuned = copied(small)
        try:
            history = finetune(
                tuned,
                self.data,
                teacher=self.model,
                recipe=recipe,
                directory=None if self.directory is None else self.directory / "run" / "finetune",
                progress=self.tell.training("fine-tuning"),
                objective=objective.objective,
            )
        except TrainingError as error:
            kept = ""
            if self.directory is not None:
                again = "--finetune-epochs 0 --restart measures it"
                kept = f"; the compressed network is saved in {self.directory} as it is ({again})"
            raise TrainingError(f"fine-tuning: {error}{kept}") from error
        return tuned, history

    def measured(
        self,
        made: Plan,
        small: nn.Module,
        tuned: nn.Module | None,
        example: Example,
        validation: dict[str, Figure],
        history: History | None,
        objective: Inferred,
    ) -> Result:
        """The only place that sees the test split."""
        split, name = held_out(self.data)
        split = few_of(split)  # a sampler would draw others for each network
        models = {"before": self.model, "compressed": small} | ({} if tuned is None else {"finetuned": tuned})
        scores: dict[str, Evaluation] = {}
        for done, (stage, network) in enumerate(models.items()):
            scores[stage] = evaluate(network, split, role=name, objective=objective.objective, teacher=self.model)
            self.tell.progress(f"evaluating on {name}", done + 1, len(models))
        figure = figures(models, split, example, batches=_timed(split), scores=scores)
        differs = check_cost(made.after, small, example)
        remarks = [
            *made.notes,
            *([differs] if differs else []),
            *filter(None, [protocol(scores["before"], split)]),
        ]
        if history is not None and history.stopped is not None:
            remarks.append(history.stopped)
        return Result(
            model=small if tuned is None else tuned,
            plan=made,
            before=figure["before"],
            compressed=figure["compressed"],
            finetuned=figure.get("finetuned"),
            seconds=0.0,
            split=name,
            validation={stage: judged.value for stage, judged in validation.items()},
            remarks=tuple(remarks),
            directory=self.directory,
            objective=str(objective),
        )

    def bottlenecks(self, result: Result, calibration: Any, objective: Inferred) -> Bottlenecks | None:
        """What is needed to slice the finished network; None if nothing in it has a bottleneck."""
        if not self.settings.slices:
            return None
        samples = samples_of(calibration, min(self.settings.samples, BOTTLENECKS))
        found = bottlenecks(
            result.model, calibration, samples=samples, metric_samples=samples // 2, objective=objective.objective,
            progress=self.tell.progress,
        )  # fmt: skip
        return found if found.sites or found.unreached else None

    def curve(
        self,
        known: Profile,
        made: Plan,
        measured: tuple[Evaluation, nn.Module, Evaluation],
        calibration: Any,
        objective: Inferred,
    ) -> Curve:
        """Other budgets than the one asked for; the iterative rule takes minutes, so that the optimal stands in.

        ``measured``: the original's result, and the copy that ``made`` gave before any training, with its result."""
        if not self.settings.curve or fits_layers(self.method):  # a fit for each budget would take longer than the job
            return Curve()
        if self.settings.quality is not None:  # what was tried is drawn instead
            return Curve()
        rule = rule_named(self.settings.rule)
        rule = Optimal() if isinstance(rule, Iterative) else rule
        start, small, score = measured
        few = few_of(self.data.validation, SAMPLES, self.settings.seed)
        drawn = few is not self.data.validation
        if drawn:
            start = evaluate(self.model, few, role="validation", objective=objective.objective, teacher=self.model)
        points = quality_curve(
            self.model, few, calibration, known, rule=rule, reference=self.reference,
            progress=self.tell.progress, objective=objective.objective,
            measured=(made, small, None if drawn else score),
            besides=[budget for budget in self.budgets if isinstance(budget, Multiples)],
        )  # fmt: skip
        return Curve(tuple(points), start.judged.value, sample_count(few) if drawn else None)


def _timed(split: Any) -> tuple[int, ...]:
    """Batch sizes that are timed; of text one window alone, whose scores may take 100 MB."""
    return LATENCY_BATCHES[:1] if isinstance(split, Texts) else LATENCY_BATCHES


def _which(history: History) -> str:
    """What fine-tuning has come to."""
    if history.best_epoch:
        return f"with the weights of epoch {history.best_epoch}"
    return "which was no better in any epoch: the network stays as it was (more epochs, or another rate, may help)"


def _kept(history: History, start: Evaluation) -> Figure:
    """The judging figure of the weights that fine-tuning left."""
    best = history.best
    return start.judged if best is None or best.validation is None else best.validation.judged
