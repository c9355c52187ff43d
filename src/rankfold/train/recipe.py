"""How to train, as one frozen value that can be written down, compared and replayed."""

from dataclasses import asdict, dataclass, fields, replace
from math import isfinite
from typing import Any, Literal

Optimizer = Literal["sgd", "adam", "adamw"]
Schedule = Literal["cosine", "one-cycle", "step", "constant", "plateau"]
Decay = Literal["coupled", "decoupled"]
Precision = Literal["float32", "bfloat16", "auto"]


@dataclass(frozen=True)
class Augment:
    """Random shift by up to `crop_padding` pixels (zeros enter) and random mirror image, drawn per sample."""

    crop_padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        _require(self.crop_padding >= 0, "Augment.crop_padding", self.crop_padding, "at least 0")


@dataclass(frozen=True)
class Distill:
    """Learn from a teacher's outputs: ``weight``·T²·KL at ``temperature`` T, beside the loss of the labels.

    Args:
        temperature: T, above 0.
        weight: between 0 and 1; the labels keep the rest.

    Raises:
        ValueError: a value out of range.

    Source: Hinton, Vinyals, Dean 2015.

    Example:
        >>> rf.Distill(temperature=2.0).weight
        0.9
    """

    temperature: float = 4.0
    weight: float = 0.9

    def __post_init__(self) -> None:
        _require(_positive(self.temperature), "Distill.temperature", self.temperature, "positive and finite")
        _require(0 < self.weight <= 1, "Distill.weight", self.weight, "above 0 and at most 1")


@dataclass(frozen=True)
class Plateau:
    """Multiply the learning rate by `factor` when the validation loss has not fallen for `patience` epochs.

    A fall counts if it is more than the fraction `threshold` (`torch.optim.lr_scheduler.ReduceLROnPlateau`).
    """

    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4

    def __post_init__(self) -> None:
        _require(0 < self.factor < 1, "Plateau.factor", self.factor, "between 0 and 1")
        _require(_whole(self.patience) and self.patience >= 0, "Plateau.patience", self.patience, "a whole number ≥ 0")
        _require(0 <= self.threshold < 1, "Plateau.threshold", self.threshold, "in [0, 1)")


@dataclass(frozen=True)
class Relax:
    """Weight decay in two phases: full over the first `after` of all steps, then `factor` times as much.

    Low rank, once it is reached, stays; the second phase gives back the accuracy that strong decay costs.
    """

    after: float = 0.5
    factor: float = 0.0

    def __post_init__(self) -> None:
        _require(0 < self.after < 1, "Relax.after", self.after, "a fraction of the run, between 0 and 1")
        _require(0 <= self.factor < 1, "Relax.factor", self.factor, "at least 0 and below 1")


@dataclass(frozen=True)
class Recipe:
    """Everything that ``fit`` decides besides model and data. The defaults train a small network from scratch.

    Args:
        epochs: passes over the data.
        batch_size: of all processes together.
        optimizer: "sgd", "adam" or "adamw".
        learning_rate: the peak.
        momentum: of sgd.
        nesterov: of sgd.
        weight_decay: coupled for sgd and adam (added to the gradient, an L2 penalty), decoupled for adamw (it shrinks
            the weights by itself, Loshchilov and Hutter 2019).
        decay_vectors: whether vectors and scalars (normalisation, biases) are decayed too.
        schedule: scales the rate after the warm-up; "plateau" needs validation data.
        warmup: the fraction of all steps in which the rate rises linearly.
        label_smoothing: the share of the target that all classes get.
        augment: changes of training images.
        distill: learning from a teacher.
        precision: "bfloat16" computes forward passes under autocast, with parameters and loss in their own dtype;
            "auto" does so where the machine has such arithmetic; "float32" leaves everything as the parameters are.
        ema: decay for each step of an exponential moving average of weights and buffers, which is then what is
            validated and kept; None for none.
        clip_norm: bound of the norm of the whole gradient; None for none.
        seed: of order and augmentation.
        plateau: how the schedule "plateau" waits.
        relax: lets weight decay go late in the run.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> rf.Recipe(epochs=5, optimizer="adamw", learning_rate=1e-3).epochs
        5
    """

    epochs: int = 30
    batch_size: int = 128
    optimizer: Optimizer = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    decay_vectors: bool = False
    schedule: Schedule = "cosine"
    warmup: float = 0.1
    label_smoothing: float = 0.0
    augment: Augment | None = None
    distill: Distill | None = None
    precision: Precision = "float32"
    ema: float | None = None
    clip_norm: float | None = None
    seed: int = 0
    plateau: Plateau | None = None
    relax: Relax | None = None

    def __post_init__(self) -> None:
        _require(_whole(self.epochs) and self.epochs >= 1, "epochs", self.epochs, "a whole number, at least 1")
        _require(
            _whole(self.batch_size) and self.batch_size >= 1,
            "batch_size",
            self.batch_size,
            "a whole number, at least 1",
        )
        _one_of("optimizer", self.optimizer, Optimizer)
        _one_of("schedule", self.schedule, Schedule)
        _one_of("precision", self.precision, Precision)
        _require(_positive(self.learning_rate), "learning_rate", self.learning_rate, "positive and finite")
        _require(0 <= self.momentum < 1, "momentum", self.momentum, "at least 0 and below 1")
        _require(
            not (self.optimizer == "sgd" and self.nesterov and self.momentum == 0),
            "nesterov",
            self.nesterov,
            "False where momentum is 0",
        )
        _require(0 <= self.weight_decay < float("inf"), "weight_decay", self.weight_decay, "at least 0")
        _require(
            self.plateau is None or self.schedule == "plateau",
            "plateau",
            self.plateau,
            f"left out where the schedule is {self.schedule}",
        )
        _require(0 <= self.warmup < 1, "warmup", self.warmup, "a fraction of the run, at least 0 and below 1")
        _require(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "in [0, 1)")
        _require(self.ema is None or 0 < self.ema < 1, "ema", self.ema, "None or between 0 and 1")
        _require(
            self.clip_norm is None or _positive(self.clip_norm),
            "clip_norm",
            self.clip_norm,
            "None or positive",
        )
        _require(_whole(self.seed) and 0 <= self.seed < 2**63, "seed", self.seed, "a whole number in [0, 2^63)")

    @property
    def decay(self) -> Decay:
        """How `weight_decay` acts with this optimizer."""
        return "decoupled" if self.optimizer == "adamw" else "coupled"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON or YAML; `from_dict` is the inverse. `plateau` and `relax` only where given."""
        values = asdict(self)
        for key in ("plateau", "relax"):
            if values[key] is None:
                del values[key]  # as before there was such a choice: what was written then compares equal
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Recipe":
        """The recipe with these values, defaults elsewhere; ValueError names a key that no recipe has."""
        values = dict(values)
        for key, part in (("augment", Augment), ("distill", Distill), ("plateau", Plateau), ("relax", Relax)):
            if values.get(key) is not None:
                values[key] = part(**_known(f"{key}.", part, values[key]))
        return cls(**_known("", cls, values))

    def without_teacher(self) -> "Recipe":
        """The same recipe with labels as the only target."""
        return replace(self, distill=None)


def _known(prefix: str, cls: type, values: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(cls)}
    unknown = sorted(set(values) - names)
    if unknown:
        raise ValueError(f"recipe: there is no {prefix}{unknown[0]}: the settings are {', '.join(sorted(names))}")
    return values


def _one_of(name: str, value: object, choices: Any) -> None:
    allowed = choices.__args__
    _require(value in allowed, name, value, "one of " + ", ".join(allowed))


def _positive(value: float) -> bool:
    return isfinite(value) and value > 0


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise ValueError(f"recipe: {name} must be {wanted}, got {value!r}")
