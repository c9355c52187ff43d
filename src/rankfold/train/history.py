"""What happened while training: a record for every epoch, and which epoch's weights were kept."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rankfold.linalg.brief import brief
from rankfold.objectives import Evaluation, Figure


@dataclass(frozen=True)
class Epoch:
    """One pass over the training data.

    `train_loss` is the mean of what was minimised; `train` has the figures of the changing model on augmented batches,
    `validation` those after the epoch (None without validation data); the first of each judges. `learning_rate` is that
    of the last step.
    """

    epoch: int
    train_loss: float
    train: tuple[Figure, ...]
    validation: Evaluation | None
    learning_rate: float
    seconds: float

    __repr__ = brief

    @property
    def validation_loss(self) -> float | None:
        """The loss on the validation data; None without any."""
        return None if self.validation is None else self.validation.loss

    @property
    def train_accuracy(self) -> float | None:
        """The accuracy while training, in [0, 1]; None for objectives without one."""
        return next((figure.value for figure in self.train if figure.name == "accuracy"), None)

    @property
    def validation_accuracy(self) -> float | None:
        """The accuracy on the validation data, in [0, 1]; None for objectives without one."""
        return None if self.validation is None else self.validation.values.get("accuracy")

    def to_dict(self) -> dict[str, Any]:
        """Plain values: a line of metrics.jsonl, with every figure by its name, the judging one first."""
        values: dict[str, Any] = {"epoch": self.epoch, "train_loss": self.train_loss}
        values |= {f"train_{figure.name}": figure.value for figure in self.train}
        values["validation_loss"] = self.validation_loss
        judged = self.train if self.validation is None else self.validation.figures
        values |= {f"validation_{f.name}": None if self.validation is None else f.value for f in judged}
        return values | {"learning_rate": self.learning_rate, "seconds": self.seconds}

    def state(self) -> dict[str, Any]:
        """Everything, as a checkpoint keeps it; `from_state` is the inverse."""
        values = asdict(self) | {"train": [asdict(figure) for figure in self.train]}
        return values | {"validation": None if self.validation is None else self.validation.to_dict()}

    @classmethod
    def from_state(cls, values: Mapping[str, Any]) -> "Epoch":
        """From `state`, or from the flat values with accuracies that earlier checkpoints hold."""
        values = dict(values)
        if "train" not in values:
            values["train"] = [{"name": "accuracy", "value": values.pop("train_accuracy"), "unit": "fraction"}]
            accuracy, loss = values.pop("validation_accuracy"), values.pop("validation_loss")
            values["validation"] = None if accuracy is None else {"accuracy": accuracy, "loss": loss, "count": 0}
        values["train"] = tuple(Figure(**figure) for figure in values["train"])
        if values["validation"] is not None:
            values["validation"] = Evaluation.from_dict(values["validation"])
        return cls(**values)


@dataclass(frozen=True)
class History:
    """`best_epoch` is the one whose weights the model was left with; 0 is the start, before any training.

    `start` is the validation result at the start (None without validation data). `stopped` says in a sentence
    why training ended before its last epoch (None: it did not). `resumed_from` is the number of epochs that
    were taken from a checkpoint. `warning` says in a sentence that training broke down without an error: answers
    at chance, weights gone to zero (`rankfold.train.breakdown`; None: it did not, as far as can be judged).
    """

    start: Evaluation | None
    epochs: tuple[Epoch, ...]
    best_epoch: int
    stopped: str | None
    resumed_from: int
    warning: str | None = None

    def __repr__(self) -> str:
        best = self.best
        score = self.start if best is None else best.validation
        told = f", validation {score.judged}" if score else f", train loss {best.train_loss:.4g}" if best else ""
        rest = "".join(f", with {name}" for name in ("stopped", "warning") if getattr(self, name))
        return f"History({len(self.epochs)} epochs, best_epoch={self.best_epoch}{told}{rest})"

    @property
    def best(self) -> Epoch | None:
        """The record of the epoch whose weights were kept; None if those are the weights of the start."""
        return next((epoch for epoch in self.epochs if epoch.epoch == self.best_epoch), None)

    @property
    def seconds(self) -> float:
        """Time of all epochs together, those before an interruption included."""
        return sum(epoch.seconds for epoch in self.epochs)


@dataclass(frozen=True)
class Progress:
    """Where a run is: `batch` of `batches` are done in `epoch` of `epochs`; `finished` closes the epoch."""

    epoch: int
    epochs: int
    batch: int
    batches: int
    loss: float
    finished: Epoch | None = None

    @property
    def fraction(self) -> float:
        """The part of the whole run that is done, in [0, 1]."""
        return (self.epoch - 1 + self.batch / self.batches) / self.epochs


ProgressCallback = Callable[[Progress], None]
