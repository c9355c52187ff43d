"""The adaptations that are compared: a network trained on one task, and a small part of the data of another."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rankfold.objectives import CausalLanguageModel
from rankfold.papers import quick
from rankfold.papers.runs import restricted
from rankfold.run.disk.container import packed, read_tensors
from rankfold.run.disk.files import write_atomically
from rankfold.train import Recipe, fit
from rankfold.zoo import Data, load_data
from rankfold.zoo.networks.vit import ViT
from rankfold.zoo.split import Split
from rankfold.zoo.text import Texts

JUDGED = 2_000  # validation samples that trials are judged on


@dataclass(frozen=True)
class Task:
    """``before`` and ``after``: the data that the network was trained on, and is adapted to. ``rank``: the uniform rank
    whose numbers every method may take. ``samples`` of the new task; ``epochs`` and ``batch`` of an adaptation.
    ``recipe`` of the training before, None where trained weights are at hand."""

    words: str
    network: Callable[[], nn.Module]
    before: Callable[[], Data]
    after: Callable[[], Data]
    rank: int
    samples: int
    epochs: int
    batch: int
    recipe: Recipe | None = None


def fcn(inputs: int, width: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )


def _vit() -> nn.Module:
    return ViT(depth=3, heads=4, classes=5, patch=8, width=64)


def _half(first: int) -> Data:
    """CIFAR-10 of five classes from ``first`` on, their labels from 0."""
    data = load_data("cifar10")

    def part(split: Any) -> Split:
        kept = ((split.labels >= first) & (split.labels < first + 5)).nonzero().flatten()
        chosen = split.subset(kept)
        return replace(chosen, labels=chosen.labels - first)

    return Data("cifar10-half", part(data.train), part(data.validation), part(data.test), 5)


def _turned(name: str) -> Data:
    """Images turned by a quarter."""
    data = load_data(name)

    def part(split: Any) -> Split:
        return replace(split, inputs=torch.rot90(split.inputs, 1, (2, 3)).contiguous())

    return Data(f"{name}-turned", part(data.train), part(data.validation), part(data.test), data.classes)


def _stories() -> Path:
    root = os.environ.get("RANKFOLD_DATA")
    folder = Path(root or "") / "stories260k"
    if not root or not (folder / "config.json").exists():
        raise ValueError(
            "the task shakespeare needs stories260k/ (a folder of transformers with tok512.bin) and "
            "text/tinyshakespeare.txt in the folder that RANKFOLD_DATA names: put them there, or leave the task out "
            "(--models)"
        )
    return folder


def _story_teller() -> nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(_stories(), local_files_only=True)


def _shakespeare() -> Data:
    """Windows of 128 tokens: a part to learn from, a tenth to choose and a tenth to test, in this order."""
    folder = _stories()
    file = folder.parent / "text" / "tinyshakespeare.txt"
    ids = torch.tensor(tokens(folder / "tok512.bin", file.read_text(encoding="utf-8")))
    return windows_of("shakespeare", ids, 128, 512, "tokens")


def windows_of(name: str, ids: Tensor, length: int, vocabulary: int, pieces: str) -> Data:
    """A text in windows of ``length`` of its ``pieces``, in order: to learn from, a tenth to choose, one to test."""
    rows = [{"input_ids": row} for row in ids[: len(ids) // length * length].view(-1, length)]
    held = len(rows) // 10

    def part(first: int, last: int | None) -> Texts:
        return Texts(rows[first:last], None, vocabulary, f"windows of {length} {pieces}")

    parts = part(0, -2 * held), part(-2 * held, -held), part(-held, None)
    return Data(name, *parts, None, CausalLanguageModel(), {"length": length})


def tokens(vocabulary: Path, text: str) -> list[int]:
    """``text`` by a vocabulary of llama2.c: pieces with scores, of which the best two neighbours are joined first."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    raw, pieces, at = vocabulary.read_bytes(), [], 4
    while at < len(raw):
        score, size = np.frombuffer(raw, "<f4", 1, at)[0], int(np.frombuffer(raw, "<i4", 1, at + 4)[0])
        pieces.append((float(score), raw[at + 8 : at + 8 + size].decode("utf-8", errors="replace")))
        at += 8 + size
    names = {piece.replace(" ", "▁"): number for number, (_, piece) in enumerate(pieces)}
    scores = {name: pieces[number][0] for name, number in names.items()}
    merges = []
    for name in sorted((n for n in names if len(n) > 1 and not n.startswith("<")), key=lambda n: -scores[n]):
        merges += [
            (name[:cut], name[cut:]) for cut in range(1, len(name)) if name[:cut] in names and name[cut:] in names
        ]
    tokenizer = Tokenizer(models.BPE(names, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=False))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Replace("▁", " ")
    found: list[int] = []
    for line in text.splitlines(keepends=True):
        found += tokenizer.encode(line).ids
    return found


_TRAINING = Recipe(epochs=3, batch_size=128, optimizer="adam", learning_rate=1e-3, weight_decay=0.0, seed=0)
TASKS: dict[str, Task] = {
    "fashion": Task(
        "MNIST to Fashion-MNIST, FCN of 784-256-256-10", functools.partial(fcn, 784, 256),
        functools.partial(load_data, "mnist"), functools.partial(load_data, "fashion-mnist"), 4, 2_000, 10, 32,
        _TRAINING,
    ),
    "turned": Task(
        "MNIST to MNIST turned by a quarter, FCN of 784-256-256-10", functools.partial(fcn, 784, 256),
        functools.partial(load_data, "mnist"), functools.partial(_turned, "mnist"), 4, 2_000, 10, 32, _TRAINING,
    ),
    "halves": Task(
        "one half of CIFAR-10's classes to the other, ViT of 3 blocks of width 64", _vit,
        functools.partial(_half, 0), functools.partial(_half, 5), 2, 2_000, 10, 32, replace(_TRAINING, epochs=8),
    ),
    "shakespeare": Task(
        "stories to Shakespeare, Llama of 5 blocks of width 64", _story_teller, _shakespeare, _shakespeare,
        2, 600, 3, 8,
    ),
    "quick": Task(
        "digits to digits turned by a quarter", functools.partial(fcn, 64, 32),
        functools.partial(load_data, quick.DATA), functools.partial(_turned, quick.DATA), 2, 600, 8, 32,
        replace(_TRAINING, batch_size=32),
    ),
}  # fmt: skip


@functools.cache
def adapted_to(name: str) -> Data:
    """The data of the new task, all of its training part, validation restricted to what trials are judged on."""
    data = TASKS[name].after()
    few = restricted(Data(data.name, data.validation, data.validation, data.test, data.classes), JUDGED, 0).train
    return replace(data, validation=few)


def base_file(folder: Path, name: str) -> Path:
    """Where the weights of a base are kept."""
    return folder / f"{name}.safetensors"


def train_base(name: str, folder: Path) -> None:
    """Train the network of a task before it is adapted, or nothing where its weights are there."""
    task, file = TASKS[name], base_file(folder, name)
    if task.recipe is None or file.exists():
        return
    model, data = _drawn(task), task.before()
    fit(model, data.train, data.validation, task.recipe)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(file, packed(model.state_dict(), {"task": name}))


def base(name: str, folder: Path) -> nn.Module:
    """The trained network of a task."""
    model = _drawn(TASKS[name])
    if TASKS[name].recipe is not None:
        state: dict[str, Tensor] = read_tensors(base_file(folder, name))
        model.load_state_dict(state)
    return model.eval()


def _drawn(task: Task) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return task.network()
