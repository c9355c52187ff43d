"""From a request to the plan of one compression; read back where an interrupted run had made it."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from rankfold.compress.methods import method_named
from rankfold.compress.methods.method import Method, fits_layers
from rankfold.compress.planning.plan import Plan, decisions
from rankfold.compress.planning.profile import Calibration, Profile
from rankfold.compress.planning.profiling import profiled
from rankfold.compress.planning.reachable import refused_early
from rankfold.compress.ranks.budget import Budget
from rankfold.compress.ranks.rules import rule_named
from rankfold.compress.repair.batchnorm import Reference
from rankfold.costs import Example
from rankfold.objectives import Inferred
from rankfold.pipeline.compression.kept import keep_plan, keep_quality, kept_plan, kept_quality
from rankfold.pipeline.compression.outcome.measure import samples_of
from rankfold.pipeline.compression.outcome.remarks import memory_sentence
from rankfold.pipeline.compression.request import Settings
from rankfold.pipeline.quality.halves import Halves, halves
from rankfold.pipeline.quality.smallest import Hunt
from rankfold.pipeline.quality.value import MaxDrop, Quality
from rankfold.run.disk.files import write_atomically
from rankfold.run.progress import Tell


@dataclass(frozen=True)
class Planner:
    """The plan of one request, and the profile behind it."""

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

    def plan(self, calibration: Any, example: Example, objective: Inferred) -> tuple[Plan, Profile, Quality | None]:
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

    def refused(self, known: Profile) -> None:
        """``ValueError`` for what no profile could meet."""
        asked = self.settings.quality
        searched = () if asked is None else (asked.budget(0.5),)
        refused_early(self.budgets, rule_named(self.settings.rule), searched)(known)

    def profiled(
        self, calibration: Any, example: Example, objective: Inferred, kept: Path | None, made: Plan | None
    ) -> Profile:
        """Every matrix measured and decomposed, once. ``made``: a plan that is there already: then a method that fits
        layer after layer needs no more than to be counted."""
        method, chosen = self.method, objective.objective
        if kept is not None and kept.exists():
            with suppress(ValueError):  # damaged: it is made again
                return Profile.load(kept, self.model, calibration, method=method, objective=chosen)
        if self.settings.profile is not None:
            file = Path(self.settings.profile)
            self.tell.say(f"the profile is that of {file}: nothing is measured again")
            known = Profile.load(file, self.model, calibration, method=method, objective=chosen)
            if kept is not None:
                write_atomically(kept, file.read_bytes())
            return known
        samples, memory = samples_of(calibration, self.settings.samples), self.settings.memory
        how = Calibration(samples, name=getattr(self.data, "name", ""), memory=memory)
        counted = made is not None and fits_layers(method)
        fits = None if self.directory is None else self.directory / "run" / "fits"
        known = profiled(
            self.model, None if counted else calibration, method="truncate" if counted else method, objective=chosen,
            example=example, where=self.settings.where, forms=self.settings.forms, calibration=how, directory=fits,
            progress=self.tell.progress,
            check=self.refused if made is None else lambda known: None,
        )  # fmt: skip
        if kept is not None:
            known.save(kept)
        self.tell.say(
            f"{known.decomposed} decompositions of {len(known.sites.reducible)} matrices, {known.weighed} of them on "
            "part of the samples, to forecast errors on the others"
        )
        return known
