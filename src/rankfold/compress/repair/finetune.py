"""Recover the accuracy of a compressed network: a short training with the original as teacher."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from rankfold.objectives import Objective
from rankfold.run.ordinary import ordinarily
from rankfold.run.progress import showing_epochs
from rankfold.train import Augment, Distill, History, ProgressCallback, Recipe, TrainingError, choose, fit
from rankfold.train.feed import check, in_memory

FINETUNE = Recipe(
    epochs=30,
    batch_size=128,
    optimizer="sgd",
    learning_rate=0.004,
    momentum=0.9,
    nesterov=True,
    weight_decay=5e-4,
    schedule="cosine",
    warmup=0.2,
    distill=Distill(temperature=4.0, weight=0.9),
    precision="auto",
    clip_norm=20.0,  # out of reach for a ResNet20 on CIFAR-10 (16); small networks with sure teachers diverge without
)
_PHOTOGRAPH_CHANNELS, _PHOTOGRAPH_SIDE = 3, 32


@showing_epochs("fine-tuning")
@ordinarily
def finetune(
    model: nn.Module,
    data: Any,
    *,
    teacher: nn.Module,
    recipe: Recipe | None = None,
    epochs: int | None = None,
    directory: str | Path | None = None,
    progress: ProgressCallback | None = None,
    objective: Objective | str | None = None,
) -> History:
    """Train the compressed ``model`` in place to answer like ``teacher``, the network that it was made from.

    Validation chooses the epoch whose weights are kept. Where the original was trained on the samples of ``validation``
    too, their accuracy is too good: it still ranks epochs, but only a test split says how well the network generalises.

    Args:
        model: compressed.
        data: with ``train`` and ``validation`` (``rankfold.zoo.Data``), that pair, or a tuple (train, validation,
            test), whose test part is left alone; each part as in ``rankfold.evaluate``, with targets or without.
        teacher: the original.
        recipe: ``finetune_recipe(data)`` by default; one that does not distil ignores the teacher where there are
            targets.
        epochs: of the default recipe, in place of 30.
        directory: for checkpoints, as in ``rankfold.fit``.
        progress: called after each batch; ``finished`` is set by the last one of an epoch.
        objective: as in ``rankfold.evaluate``; where it needs no targets, the distance from the teacher's outputs alone
            is minimised.

    Returns:
        The history, as ``rankfold.fit``.

    Raises:
        TrainingError: as ``rankfold.fit``.

    Cost: for each epoch one pass of the teacher and a training pass.

    Example:
        >>> x = torch.randn(64, 16); y = (x[:, 0] > 0).long()
        >>> net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2))
        >>> small = rf.apply_(copy.deepcopy(net), rf.plan(net, "params=0.5", data=x))
        >>> rf.finetune(small, ((x, y), (x, y)), teacher=net, epochs=1).epochs[0].epoch
        1
    """
    train, validation = _parts(data)
    if recipe is not None and epochs is not None:
        raise TrainingError("give either a recipe, which holds the number of epochs, or epochs=, and not both")
    recipe = finetune_recipe(data, FINETUNE.epochs if epochs is None else epochs) if recipe is None else recipe
    check(train, "train", again=True)
    chosen = choose(model, train, objective).objective
    return fit(
        model,
        train,
        validation,
        recipe,
        teacher=None if recipe.distill is None and chosen.labelled else teacher,
        directory=directory,
        progress=progress,
        objective=chosen,
    )


def finetune_recipe(data: Any, epochs: int = FINETUNE.epochs) -> Recipe:
    """The default recipe of ``finetune``: photographs are shifted and mirrored, other inputs left as they are.

    Taken for photographs: in-memory images (N, 3, H, W) with H, W ≥ 32, with one class each or without targets. A
    mirrored digit is another sign, and a target of pixels would have to move with them.

    Args:
        data: as in ``rankfold.finetune``.
        epochs: of the recipe.

    Returns:
        A ``Recipe`` that distils.

    Example:
        >>> rf.finetune_recipe((torch.randn(8, 4), torch.randn(8, 4)), epochs=3).epochs
        3
    """
    tensors = in_memory(_parts(data)[0])
    movable = tensors is not None and (
        tensors.labels is None or (tensors.labels.dim() == 1 and not tensors.labels.is_floating_point())
    )
    shape = tuple(tensors.inputs.shape[1:]) if tensors is not None and movable else ()
    photographs = len(shape) == 3 and shape[0] == _PHOTOGRAPH_CHANNELS and min(shape[1:]) >= _PHOTOGRAPH_SIDE
    padding = min(shape[1:]) // 8 if photographs else 0
    return replace(FINETUNE, epochs=epochs, augment=Augment(padding, flip=True) if photographs else None)


def _parts(data: Any) -> tuple[Any, Any]:
    if hasattr(data, "train") and hasattr(data, "validation"):
        return data.train, data.validation
    members = len(data) if isinstance(data, tuple | list) else None
    if members == 2 or (members == 3 and isinstance(data, tuple)):  # a list of 3 is rather one part, of 3 batches
        return data[0], data[1]
    given = type(data).__name__ if members is None else f"{type(data).__name__} of {members}"
    raise TrainingError(
        "fine-tuning needs data with train and validation parts: give (train, validation) or (train, "
        f"validation, test), not a {given}"
    )
