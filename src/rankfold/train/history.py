"""What happened while training: a record for every epoch, and which epoch's weights were kept."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from rankfold.train.evaluation import Evaluation


@dataclass(frozen=True)
class Epoch:
    """One pass over the training data.

    Accuracies lie in [0, 1]; `train_accuracy` is that of the changing model on augmented batches. Losses are
    means of what was minimised (train) and of the cross-entropy in nats (validation). `learning_rate` is that
    of the last step.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float | None
    validation_accuracy: float | None
    learning_rate: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values: a line of metrics.jsonl."""
        return asdict(self)


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
