"""The state of a training run between two epochs, its best weights, and how both come to disk and back."""

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import tensors_in
from rankfold.layers import InTraining
from rankfold.objectives import Evaluation
from rankfold.run.disk.container import FAULTS, checked, said
from rankfold.run.processes.team import Team
from rankfold.train import checkpoint
from rankfold.train.content import Content, difference
from rankfold.train.errors import TrainingError
from rankfold.train.history import Epoch
from rankfold.train.recipe import Recipe
from rankfold.train.step.groups import parameter_groups
from rankfold.train.weights import Weights, average_, copied, is_weight, narrowed, put_back_, shapes, unsaved, widened

Make = Callable[..., torch.optim.Optimizer]  # (model, class of torch, groups=…, **settings): the optimizer


@dataclass(eq=False)
class Run:
    """A model being trained. `epoch` epochs are done; epoch 0 is the start. Only the first of a team writes."""

    model: nn.Module
    recipe: Recipe
    optimizer: torch.optim.Optimizer
    directory: Path | None
    batches: int
    objective: str
    mean: Weights | None
    best: Weights
    best_unsaved: Weights
    team: Team
    content: Content = field(default_factory=dict)
    best_epoch: int = 0
    best_met: bool = True
    start: Evaluation | None = None
    epochs: list[Epoch] = field(default_factory=list)
    steps: int = 0

    @classmethod
    def begin_or_resume(
        cls,
        model: nn.Module,
        recipe: Recipe,
        directory: str | Path | None,
        batches: int,
        objective: str,
        team: Team,
        make: Make | None = None,
        content: Content | None = None,
    ) -> "Run":
        """A run at its start, or where its checkpoint left it; TrainingError if `directory` holds another."""
        if recipe.ema is not None and moving(model):
            raise TrainingError("ema: an average of weights of low rank is not of low rank itself: leave ema out")
        optimizer = _optimizer(model, recipe, make)
        place = None if directory is None else Path(directory)
        weights, aside = copied(model.state_dict()), unsaved(model)
        mean = None if recipe.ema is None else widened(weights)
        run = cls(model, recipe, optimizer, place, batches, objective, mean, weights, aside, team, content or {})
        run.best_met = bool(getattr(optimizer, "met", True))
        saved = None if place is None else checkpoint.load(place)
        if saved is not None:
            run._take(saved)
        return run

    @property
    def epoch(self) -> int:
        return len(self.epochs)

    def average(self) -> None:
        """Move the averaged weights towards the present ones, faster in the first steps."""
        self.steps += 1
        if self.mean is None or self.recipe.ema is None:
            return
        decay = min(self.recipe.ema, (1 + self.steps) / (10 + self.steps))
        average_(self.mean, self.model.state_dict(), 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model with the averaged weights, if the recipe asks for any."""
        if self.mean is None:
            yield
            return
        present = copied(self.model.state_dict())
        self.model.load_state_dict(narrowed(self.mean, present))
        try:
            yield
        finally:
            self.model.load_state_dict(present)

    def clip(self) -> None:
        """Bound the norm of the whole gradient, where the recipe says so."""
        most = self.recipe.clip_norm
        if most is None:
            return
        own = getattr(self.optimizer, "clip_grad_norm_", None)  # one that knows more gradients than the parameters'
        if own is not None:
            own(most)
        else:
            nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], most)

    def settle(self) -> None:
        """Before weights are judged: what the optimizer does between some steps alone is done now."""
        getattr(self.optimizer, "settle", lambda: None)()

    def lacking(self) -> str:
        """What the optimizer was to reach and has not, in a sentence; empty where nothing is lacking."""
        return "" if self.best_met else getattr(self.optimizer, "lacking", lambda: "")()

    def finish(self, record: Epoch) -> None:
        """Close an epoch: keep its weights if it is the best, write the checkpoint and the metrics."""
        score, best = _score(record), self._best_score()
        self.epochs.append(record)
        # weights within what the optimizer was to reach come before all others
        met = bool(getattr(self.optimizer, "met", True))
        if met > self.best_met or (met == self.best_met and (score is None or best is None or score > best)):
            self.best_epoch, self.best_met = record.epoch, met
            weights = self.model.state_dict()
            self.best = copied(weights) if self.mean is None else narrowed(self.mean, weights)
            self.best_unsaved = unsaved(self.model)
        self.save()

    def _best_score(self) -> tuple[float, float] | None:
        if self.best_epoch > 0:
            return _score(self.epochs[self.best_epoch - 1])
        return None if self.start is None else self.start.rank

    def share_best(self) -> None:
        """Give all processes the best weights of the first, whose buffers were validated."""
        self.team.same_({name: value for name, value in self.best.items() if is_weight(name, value)})

    def restore_best(self) -> None:
        """Leave the best weights so far in the model."""
        self.model.load_state_dict(self.best)
        put_back_(self.model, self.best_unsaved)

    def save(self) -> None:
        """Write checkpoint and metrics, if there is a directory."""
        if self.directory is None or not self.team.first:
            return
        if self.epoch == 0:
            self._check_readable()
        state = {
            "recipe": json.dumps(self.recipe.to_dict()),
            "batches": self.batches,
            "objective": self.objective,
            "content": self.content,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "mean": self.mean,
            "best": self.best,
            "unsaved": unsaved(self.model),
            "best_unsaved": self.best_unsaved,
            "best_epoch": self.best_epoch,
            "best_met": self.best_met,
            "start": None if self.start is None else self.start.to_dict(),
            "epochs": [record.state() for record in self.epochs],
            "steps": self.steps,
        }
        checkpoint.save(self.directory, self.epoch, state)
        checkpoint.write_lines(self.directory / "metrics.jsonl", (record.to_dict() for record in self.epochs))

    def _check_readable(self) -> None:
        """TrainingError for what could be written and, without running code, not be read again."""
        kind = type(self.model).__name__
        parts = {
            f"{name} of {kind}": value for name, value in self.model.state_dict().items() if type(value) is not Tensor
        }
        parts[f"the state of {type(self.optimizer).__name__}"] = self.optimizer.state_dict()
        for name, value in parts.items():
            if not checkpoint.survives(value):
                raise TrainingError(
                    f"{name} ({type(value).__name__}) cannot be read back from a checkpoint: let it hold tensors, "
                    "numbers, texts, lists and dicts of these alone (get_extra_state), or leave directory= out"
                )

    def _take(self, saved: dict[str, Any]) -> None:
        """Go on from what a checkpoint holds; TrainingError for one of another run, or with anything else in it."""
        try:
            self._check_same(saved)
            self._take_over(saved)
        except TrainingError:
            raise
        except FAULTS as error:
            raise TrainingError(
                f"the checkpoint in {self.directory} does not hold what a training writes ({said(error)}): delete "
                f"{self.directory} to begin anew"
            ) from error

    def _check_same(self, saved: dict[str, Any]) -> None:
        where = f"{self.directory} holds the checkpoint of another run"
        if json.loads(saved["recipe"]) != json.loads(json.dumps(self.recipe.to_dict())):
            raise TrainingError(f"{where}, with another recipe: give another directory, or the same recipe")
        if not isinstance(saved["batches"], int) or not isinstance(saved.get("objective", ""), str):
            raise ValueError("it has another number of batches, or another objective")
        if saved["batches"] != self.batches:
            raise TrainingError(
                f"{where}, with {saved['batches']} batches in an epoch and not {self.batches}: give another "
                "directory, or the same data"
            )
        if saved.get("objective", self.objective) != self.objective:
            raise TrainingError(
                f"{where}, with the objective {saved['objective']} and not {self.objective}: give another "
                "directory, or the same objective"
            )
        if other := difference(saved.get("content", {}), self.content):
            raise TrainingError(f"{where}, {other}: give another directory, or the same data and teacher")
        free = moving(self.model)
        if shapes(saved["model"], free) != shapes(self.model.state_dict(), free):
            raise TrainingError(f"{where}, of another model: give another directory, or the same model")

    def _take_over(self, saved: dict[str, Any]) -> None:
        """Everything is looked at before the model is touched."""
        start = None if saved["start"] is None else checked(Evaluation, asdict(Evaluation.from_dict(saved["start"])))
        epochs = [Epoch.from_state(record) for record in saved["epochs"]]
        checked(list[Epoch], [asdict(record) for record in epochs])
        best_epoch, steps = (checked(int, saved[name]) for name in ("best_epoch", "steps"))
        if not 0 <= best_epoch <= len(epochs) or steps < 0:
            raise ValueError(f"epoch {best_epoch} of {len(epochs)} is the best, after {steps} steps")
        free, state = moving(self.model), self.model.state_dict()
        own = shapes(state, free)
        for kind, known in (("best", (own,)), ("mean", (own, shapes(widened(state), free)))):  # once as the weights are
            if saved[kind] is not None and shapes(saved[kind], free) not in known:
                raise ValueError(f"the {kind} weights belong to another model")
        aside = saved.get("unsaved", {}), saved.get("best_unsaved", self.best_unsaved)
        if not all(isinstance(value, Tensor) for each in aside for value in each.values()):
            raise ValueError("buffers in no state dict are no tensors")
        before = copied(state), copy.deepcopy(self.optimizer.state_dict())
        try:
            self.model.load_state_dict(saved["model"])  # first: moments belong to parameters of its shapes
            self.optimizer.load_state_dict(saved["optimizer"])
            taken = self.optimizer.state_dict()["param_groups"]  # what torch's own earlier versions lack is filled in
            for group, own in zip(taken, before[1]["param_groups"], strict=True):
                if any(_kind(group[name]) != _kind(value) for name, value in own.items()):
                    raise ValueError("the settings of the optimizer are not those of a training")
            for parameter, moments in self.optimizer.state.items():
                if any(x.dim() and x.shape != parameter.shape for x in tensors_in(moments)):
                    raise ValueError("the moments of the optimizer belong to another model")
        except FAULTS:
            self.model.load_state_dict(before[0])
            self.optimizer.load_state_dict(before[1])
            raise
        put_back_(self.model, aside[0])
        self.best_unsaved = dict(aside[1])
        if saved["best"] is not None:
            self.best = _placed(saved["best"], state)
        if saved["mean"] is not None:
            self.mean = widened(_placed(saved["mean"], state))
        self.best_epoch, self.steps, self.start, self.epochs = best_epoch, steps, start, epochs
        self.best_met = checked(bool, saved.get("best_met", True))


def _optimizer(model: nn.Module, recipe: Recipe, make: Make | None) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rate = recipe.learning_rate
    groups = parameter_groups(model, rate, recipe.weight_decay, decay_vectors=recipe.decay_vectors)
    # one pass over weights and moments instead of one for each operation: a sixth of Adam's time on a CPU. Not for half
    # precision, of which torch 2.13 leaves most elements as they are, nor for views with gaps, which it fills.
    fused = all(
        p.dtype in (torch.float32, torch.float64) and p.is_contiguous() and p.device.type in ("cpu", "cuda")
        for p in trained
    )
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    kind, settings = kinds[recipe.optimizer], {"lr": rate, "fused": fused}
    if recipe.optimizer == "sgd":
        settings |= {"momentum": recipe.momentum, "nesterov": recipe.nesterov}
    return kind(groups, **settings) if make is None else make(model, kind, groups=groups, **settings)


def _kind(value: Any) -> type:
    return float if type(value) is int else type(value)


def _score(record: Epoch) -> tuple[float, float] | None:
    return None if record.validation is None else record.validation.rank


def _placed(saved: Weights, state: Mapping[str, Any]) -> Weights:
    """What a checkpoint holds, on the devices of the model's own."""
    return {n: v.to(state[n].device) if is_weight(n, v) else v for n, v in saved.items()}


def moving(model: nn.Module) -> frozenset[str]:
    """Entries of the state dict whose shapes change in training: factors of layers whose rank does."""
    return frozenset(
        f"{path}.{name}".lstrip(".")
        for path, module in model.named_modules()
        if isinstance(module, InTraining)
        for name in module.moving
    )
