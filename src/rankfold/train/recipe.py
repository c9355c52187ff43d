"""How to train, as one frozen value that can be written down, compared and replayed."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import inf
from typing import Any, Literal

from rankfold.train.values import flag, one_of, positive, real, require, whole

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
        fits = whole(self.crop_padding) and self.crop_padding >= 0
        require(fits, "Augment.crop_padding", self.crop_padding, "a whole number, at least 0")
        flag("Augment.flip", self.flip)


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
        require(positive(self.temperature), "Distill.temperature", self.temperature, "positive and finite")
        require(real(self.weight) and 0 < self.weight <= 1, "Distill.weight", self.weight, "above 0 and at most 1")


@dataclass(frozen=True)
class Plateau:
    """Multiply the learning rate by `factor` when the validation loss has not fallen for `patience` epochs.

    A fall counts if it is more than the fraction `threshold` (`torch.optim.lr_scheduler.ReduceLROnPlateau`).
    """

    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4

    def __post_init__(self) -> None:
        require(real(self.factor) and 0 < self.factor < 1, "Plateau.factor", self.factor, "between 0 and 1")
        require(whole(self.patience) and self.patience >= 0, "Plateau.patience", self.patience, "a whole number ≥ 0")
        require(real(self.threshold) and 0 <= self.threshold < 1, "Plateau.threshold", self.threshold, "in [0, 1)")


@dataclass(frozen=True)
class Relax:
    """Weight decay in two phases: full over the first `after` of all steps, then `factor` times as much.

    Low rank, once it is reached, stays; the second phase gives back the accuracy that strong decay costs.
    """

    after: float = 0.5
    factor: float = 0.0

    def __post_init__(self) -> None:
        require(
            real(self.after) and 0 < self.after < 1, "Relax.after", self.after, "a fraction of the run, between 0 and 1"
        )
        require(real(self.factor) and 0 <= self.factor < 1, "Relax.factor", self.factor, "at least 0 and below 1")


_PARTS = {"augment": Augment, "distill": Distill, "plateau": Plateau, "relax": Relax}


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
        label_smoothing: the share of the target that all classes get; refused by ``fit`` where the objective has no
            classes.
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
        ValueError: a value out of range, or of another type, such as a number in quotes.

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
        one_of("optimizer", self.optimizer, Optimizer)
        one_of("schedule", self.schedule, Schedule)
        one_of("precision", self.precision, Precision)
        for name in ("nesterov", "decay_vectors"):
            flag(name, getattr(self, name))
        for name, part in _PARTS.items():
            value = getattr(self, name)
            kind = f"{'an' if part is Augment else 'a'} rankfold.train.{part.__name__}"
            require(value is None or isinstance(value, part), name, value, f"None or {kind}")
        self._check_numbers()
        require(
            not (self.optimizer == "sgd" and self.nesterov and self.momentum == 0),
            "nesterov",
            self.nesterov,
            "False where momentum is 0",
        )
        require(
            self.plateau is None or self.schedule == "plateau",
            "plateau",
            self.plateau,
            f"left out where the schedule is {self.schedule}",
        )

    def _check_numbers(self) -> None:
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            require(whole(value) and value >= 1, name, value, "a whole number, at least 1")
        require(whole(self.seed) and 0 <= self.seed < 2**63, "seed", self.seed, "a whole number in [0, 2^63)")
        require(positive(self.learning_rate), "learning_rate", self.learning_rate, "a number, positive and finite")
        for name, most, wanted in (
            ("momentum", 1, "a number, at least 0 and below 1"),
            ("weight_decay", inf, "a number, at least 0"),
            ("warmup", 1, "a fraction of the run, a number of at least 0 and below 1"),
            ("label_smoothing", 1, "a number in [0, 1)"),
        ):
            value = getattr(self, name)
            require(real(value) and 0 <= value < most, name, value, wanted)
        require(
            self.ema is None or (real(self.ema) and 0 < self.ema < 1),
            "ema",
            self.ema,
            "None or a number between 0 and 1",
        )
        require(
            self.clip_norm is None or positive(self.clip_norm), "clip_norm", self.clip_norm, "None or a positive number"
        )

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
        for key, part in _PARTS.items():
            if isinstance(values.get(key), Mapping):
                values[key] = part(**_known(f"{key}.", part, dict(values[key])))
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
