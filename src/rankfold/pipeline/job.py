"""The whole job: plan, apply, repair, fine-tune, measure, save, report; resumable where it has a directory."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from rankfold.compress.layerwise.in_parts import memory_needed
from rankfold.compress.methods import method_named
from rankfold.compress.methods.method import Method, fits_layers
from rankfold.compress.planning.plan import Plan, decisions
from rankfold.compress.planning.profile import Calibration, Profile, profile
from rankfold.compress.ranks.budget import Budget, Multiples, parsed
from rankfold.compress.ranks.rules import Iterative, Optimal, rule_named
from rankfold.compress.repair.batchnorm import Reference
from rankfold.compress.repair.finetune import finetune
from rankfold.compress.repair.tune import tune_
from rankfold.compress.slicing.bottlenecks import Bottlenecks, bottlenecks
from rankfold.costs import Example, storage
from rankfold.costs import check as check_cost
from rankfold.objectives import Evaluation, Figure, Inferred
from rankfold.pipeline.curve import SAMPLES, Curve, quality_curve
from rankfold.pipeline.delivery import close, finished, model_notes, read_result, save_result, write_page
from rankfold.pipeline.heldout import layer_errors, over_fitted
from rankfold.pipeline.kept import keep_plan, keep_quality, kept_plan, kept_quality
from rankfold.pipeline.measure import calibration_part, figures, first_example, held_out, protocol, samples_of
from rankfold.pipeline.quality.halves import Halves, few_of, halves
from rankfold.pipeline.quality.smallest import Hunt
from rankfold.pipeline.quality.value import MaxDrop, Quality
from rankfold.pipeline.repair import compressed_copy
from rankfold.pipeline.request import PLACE, Settings, request_of
from rankfold.pipeline.result import Result
from rankfold.report.quantities import count, percent
from rankfold.run.claim import claimed
from rankfold.run.files import check_room
from rankfold.run.progress import Tell, shown
from rankfold.sites.find import Where
from rankfold.store import check_ours, save
from rankfold.train import History, TrainingError, choose, evaluate
from rankfold.train.breakdown import at_chance
from rankfold.train.feed import length
from rankfold.zoo.data import parts_of
from rankfold.zoo.text import Texts

LATENCY_BATCHES = (1, 64)
_KNOWN = 0.05, 3.0  # points, and standard errors, by which samples are known too well to be new
BOTTLENECKS = 1024  # calibration samples on which they are measured: r × r moments need fewer than those of a weight


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
        if place is None:
            return job.run()
        asked = request_of(model, data, job.budgets, job.settings)
        PLACE.check(place)
        check_ours(place, model)
        if not finished(place):
            check_room(place, 2 * storage(model)[1])  # a model is written beside its place first
        if restart or not finished(place) or PLACE.differing(place, asked):
            stack.enter_context(claimed(place, what="compress"))
            PLACE.take(place, asked, restart)
        if not finished(place):
            return job.run()
        job.tell.say(f"{place} holds the finished run: nothing to do")
        return read_result(place, model)


@dataclass(frozen=True)
class _Job:
    model: nn.Module
    data: Any
    budgets: tuple[Budget, ...]
    settings: Settings
    directory: Path | None
    tell: Tell

    @property
    def method(self) -> Method:
        return method_named(self.settings.method)

    @cached_property
    def reference(self) -> Reference:
        """What the original's BatchNorms meet, measured once for all compressed copies."""
        return Reference(self.model)

    def run(self) -> Result:
        began = time.perf_counter()
        example = first_example(self.model, self.data.train)
        calibration = calibration_part(self.data.train, self.settings.samples, self.settings.seed)
        objective = choose(self.model, self.data.validation, self.settings.objective_for(self.data), role="validation")
        self.tell.say(str(objective))
        start = self.scored(self.model, objective)
        before, unlearned = start.judged, _unlearned(start)
        for remark in unlearned:
            self.tell.say(remark)
        if self.settings.quality is not None:  # what is wrong with these is told before anything is measured
            self.settings.quality.allowed(before)
            _ = self.halves
        made, known, quality = self.planned(calibration, example, objective)
        self.tell.say(f"plan: {summary(made)}")
        small, score = self.built(made, known, calibration, objective)
        self.tell.say(f"validation {before.name}: {before.text} before, {score.judged.text} compressed")
        self.keep(small, made, example, objective)
        untuned = (small, score)
        small, score = self.block_tuned(small, score, calibration, objective)
        tuned, history = self.finetuned(small, objective)
        validation = {"before": before, "compressed": score.judged}
        if history is not None and tuned is not None:
            self.keep(tuned, made, example, objective)
            validation["finetuned"] = _kept(history, score)
            self.tell.say(
                f"validation {before.name}: {validation['finetuned'].text} after fine-tuning, "
                f"with the weights of epoch {history.best_epoch}"
            )
        result = self.measured(made, small, tuned, example, validation, history, objective)
        result = replace(
            result, quality=quality,
            remarks=(
                *unlearned, *_forecast(made, result, small is not untuned[0]),
                *(() if quality is None else quality.notes), *result.remarks,
                *_known_samples(start, result.before.score, self.data.validation, result.split),
            ),
        )  # fmt: skip
        if self.directory is None:
            return replace(result, seconds=time.perf_counter() - began)
        inside = self.bottlenecks(result, calibration, objective)
        save_result(self.directory, result, self.data, example, self.settings, objective, inside)
        self.tell.say(f"saved in {self.directory}")
        errors = layer_errors(self.model, made, self.data.validation, profile=known, method=self.method)
        curve = self.curve(known, made, (start, *untuned), calibration, objective)
        result = replace(result, remarks=result.remarks + _gaps(made, errors, self.method))
        write_page(self.directory, known, result, self.settings, errors, curve, history)
        result = replace(result, seconds=time.perf_counter() - began)
        close(self.directory, result, curve)
        return result

    def keep(self, network: nn.Module, made: Plan, example: Example, objective: Inferred) -> None:
        """Save what is finished, before a later step can fail."""
        if self.directory is not None:
            save(network, made, self.directory, notes=model_notes(self.settings.model, self.data, example, objective))

    def scored(self, network: nn.Module, objective: Inferred) -> Evaluation:
        chosen = objective.objective
        teacher = None if chosen.labelled else self.model  # what judges is enough to choose by
        return evaluate(network, self.data.validation, role="validation", objective=chosen, teacher=teacher)

    @cached_property
    def halves(self) -> Halves:
        """Of the validation data: one searches, the other judges."""
        return halves(self.data.validation, self.settings.seed)

    def hunt(self, known: Profile, asked: MaxDrop, calibration: Any, objective: Inferred) -> Hunt:
        """The search for the smallest network within a drop."""
        place = None if self.directory is None else self.directory / "run" / "tried.json"
        return Hunt(
            self.model, known, asked, self.budgets, self.settings.rule, calibration, self.halves, objective.objective,
            self.tell, self.reference, place,
        )  # fmt: skip

    def built(self, made: Plan, known: Profile, calibration: Any, objective: Inferred) -> tuple[nn.Module, Evaluation]:
        """The compressed network, and how good it is on validation; one that was searched is that which was judged."""
        searched = self.settings.quality is not None
        small, score = compressed_copy(
            self.model, made, calibration, self.halves.search.data if searched else self.data.validation,
            profile=known, method=self.method, reference=self.reference, progress=self.tell.progress,
            objective=objective.objective,
        )  # fmt: skip
        return small, self.scored(small, objective) if searched else score

    def planned(self, calibration: Any, example: Example, objective: Inferred) -> tuple[Plan, Profile, Quality | None]:
        """The plan of this request, the profile that it comes from and, where a drop was allowed, what the search for
        it found; read back where an interrupted run had them."""
        asked, quality = self.settings.quality, None
        place = None if self.directory is None else self.directory / "run"
        file = None if place is None else place / "plan.json"
        kept = None if place is None or fits_layers(self.method) else place / "profile.safetensors"
        if file is not None and file.exists():
            self.tell.say(f"resuming: the plan is taken from {file}")
            budgets = self.budgets
            if asked is not None:
                quality = kept_quality(file.with_name("quality.json"))
                budgets = (*budgets, asked.budget(quality.fraction))
            made = kept_plan(file, self.model, budgets, self.method, example, self.tell)
            known = self.profiled(calibration, example, objective, kept, made)
            if asked is not None and quality is not None and quality.key != decisions(made.entries):
                quality = self.hunt(known, asked, calibration, objective).again(made, quality)
            return made, known, quality
        if fits_layers(self.method):
            self.tell.say(memory_sentence(self.model, self.settings.memory, self.settings.where))
        known = self.profiled(calibration, example, objective, kept, None)
        if fits_layers(known.method):
            most, layers = known.method.rounds, len(known.sites.reducible)
            self.tell.say(
                f"then {layers} layers are fitted one after another, {'once' if most == 1 else f'at most {most} times'}"
                f": {most * layers} fits"
            )
        if asked is None:
            made = known.plan(self.budgets, self.settings.rule, progress=self.tell.progress)
        else:
            found = self.hunt(known, asked, calibration, objective).found()
            made, quality = found.plan, found.quality
            if file is not None:
                keep_quality(quality, file.with_name("quality.json"))
        if file is not None:
            keep_plan(made, file)
            for fits in ("fits", "sweep"):  # the second: as the first release named it
                shutil.rmtree(file.with_name(fits), ignore_errors=True)
        return made, known, quality

    def profiled(
        self, calibration: Any, example: Example, objective: Inferred, kept: Path | None, made: Plan | None
    ) -> Profile:
        """Every matrix measured and decomposed, once. ``made``: a plan that is there already: then a method that fits
        layer after layer needs no more than to be counted."""
        method, chosen = self.method, objective.objective
        if kept is not None and kept.exists():
            with suppress(ValueError):  # damaged: it is made again
                return Profile.load(kept, self.model, calibration, method=method, objective=chosen)
        samples, memory = samples_of(calibration, self.settings.samples), self.settings.memory
        how = Calibration(samples, name=getattr(self.data, "name", ""), memory=memory)
        counted = made is not None and fits_layers(method)
        fits = None if self.directory is None else self.directory / "run" / "fits"
        known = profile(
            self.model, None if counted else calibration, method="truncate" if counted else method, objective=chosen,
            example=example, where=self.settings.where, forms=self.settings.forms, calibration=how, directory=fits,
            progress=self.tell.progress,
        )  # fmt: skip
        if kept is not None:
            known.save(kept)
        self.tell.say(
            f"{known.decomposed} decompositions of {len(known.sites.reducible)} matrices, {known.weighed} of them on "
            "part of the samples, to forecast errors on the others"
        )
        return known

    def block_tuned(
        self, small: nn.Module, score: Evaluation, calibration: Any, objective: Inferred
    ) -> tuple[nn.Module, Evaluation]:
        """``small`` with its blocks tuned, where that was asked and lowers the loss on validation."""
        if not self.settings.tune:
            return small, score
        tuned = copy.deepcopy(small)
        by = self.settings.tune_by or ("whole" if objective.objective.by_token else "blocks")
        tune_(
            tuned, self.model, calibration, steps=self.settings.tune, by=by, samples=None,
            objective=objective.objective if objective.objective.by_token or by == "whole" else None,
            progress=self.tell.progress,
        )  # fmt: skip
        now = self.scored(tuned, objective)
        better, what = now.loss < score.loss, "tuned blocks" if by == "blocks" else "tuned factors"
        self.tell.say(f"validation {now.judged.name}: {now.judged.text} with {what}" + ("" if better else "; not kept"))
        return (tuned, now) if better else (small, score)

    def finetuned(self, small: nn.Module, objective: Inferred) -> tuple[nn.Module | None, History | None]:
        recipe = self.settings.recipe(self.data)
        if recipe is None:
            return None, None
        tuned = copy.deepcopy(small)
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
            self.model, few, calibration, known, rule=rule, reference=self.reference, progress=self.tell.progress,
            objective=objective.objective, measured=(made, small, None if drawn else score),
            besides=[budget for budget in self.budgets if isinstance(budget, Multiples)],
        )  # fmt: skip
        return Curve(tuple(points), start.judged.value, SAMPLES if drawn else None)


def memory_sentence(model: nn.Module, memory: int | None, where: Where | None = None) -> str:
    """What second moments will take, said before they are taken."""
    together, passes, beyond = memory_needed(model, memory, where)
    said = f"second moments of all layers together take {count(together, 'B')}"
    if memory is not None:
        said += f"; within {count(memory, 'B')} they are taken in {passes} {'pass' if passes == 1 else 'passes'}"
    if beyond:
        said += f"; {', '.join(beyond[:3])}{', …' if len(beyond) > 3 else ''} need more than that alone"
    return said


def summary(made: Plan) -> str:
    """One line: what is kept, and how many sites change."""
    parts = [
        f"{percent(getattr(made.after, kind) / getattr(made.before, kind))} of the {name}"
        for kind, name in (("flops", "FLOPs"), ("params", "parameters"))
        if getattr(made.before, kind)
    ]
    part = made.kept_of_factorable()
    share = "" if part is None else f" ({percent(part)} of the parameters that can be factored)"
    return f"{' and '.join(parts)} kept{share}; {len(made.changed)} of {len(made.entries)} sites change"


def _timed(split: Any) -> tuple[int, ...]:
    """Batch sizes that are timed; of text one window alone, whose scores may take 100 MB."""
    return LATENCY_BATCHES[:1] if isinstance(split, Texts) else LATENCY_BATCHES


def _kept(history: History, start: Evaluation) -> Figure:
    """The judging figure of the weights that fine-tuning left."""
    best = history.best
    return start.judged if best is None or best.validation is None else best.validation.judged


def _unlearned(start: Evaluation) -> tuple[str, ...]:
    """A sentence where the original has learnt nothing, as with weights that were never loaded."""
    if start.chance is None or not at_chance(start.judged, start):
        return ()
    guess = replace(start.judged, value=start.chance).text
    known = f"the most frequent class is {guess} of it" if start.judged.name == "accuracy" else f"guessing has {guess}"
    return (
        f"the original answers the validation split no better than chance ({start.judged}; {known}): were its trained "
        "weights loaded (--weights)?",
    )


def _forecast(made: Plan, result: Result, tuned: bool) -> tuple[str, ...]:
    """What a language model was forecast to lose beside what it has lost."""
    lost = result.compressed.score.values.get("kl")
    if made.forecast is None or lost is None:
        return ()
    probe = made.calibration.get("probe")
    tried = "" if probe is None else f" ({probe:.3g} on a few tokens of the calibration data)"
    return (
        f"KL divergence from the original, nats per token: {made.forecast:.3g} forecast{tried}, {lost:.3g} measured on "
        f"the {result.split} split{' after tuning' if tuned else ''}",
    )


def _known_samples(validation: Evaluation, held_out: Evaluation, part: Any, name: str) -> tuple[str, ...]:
    """A sentence where the original knows its validation samples too well to have been trained without them.

    By at least five points, and by more than three standard errors of the difference of two shares.
    """
    known, new = validation.judged, held_out.judged
    if known.unit != "fraction" or name == "validation" or known.better(new) < _KNOWN[0]:
        return ()
    counts = [max(1, min(validation.count, length(part) or validation.count)), max(1, held_out.count)]
    share = (known.value * counts[0] + new.value * counts[1]) / sum(counts)
    if known.better(new) < _KNOWN[1] * (share * (1 - share) * sum(1 / count for count in counts)) ** 0.5:
        return ()
    return (
        f"the original reaches {known} on the validation split and {new.text} on the {name} split: it was probably "
        "trained on the former, which still ranks choices but flatters them",
    )


def _gaps(made: Plan, errors: dict[str, float], method: Method) -> tuple[str, ...]:
    far = over_fitted(made, errors, method=method)
    if not far:
        return ()
    return (
        f"on held-out data the error is far above the predicted one in {len(far)} of {len(made.changed)} sites "
        f"({', '.join(far[:3])}{', …' if len(far) > 3 else ''}): more calibration samples would help",
    )
