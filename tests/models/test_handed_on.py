"""Blocks that hand on, and networks that return, something else than tensors: dataclasses of any kind, named tuples,
objects with logits."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold.batches import copied, mapped, tensors_in
from rankfold.export.outputs import names_of, plain
from rankfold.objectives.answer import named_tensors

X = torch.randn(40, 10, generator=torch.Generator().manual_seed(3))


@dataclass
class Free:
    h: Any
    k: Any = None


@dataclass(frozen=True)
class Frozen:
    h: Any
    k: Any = None


@dataclass(slots=True)
class Slots:
    h: Any
    k: Any = None


class Named(NamedTuple):
    h: Any
    k: Any = None


class Own:
    def __init__(self, h: Any, k: Any = None) -> None:
        self.h, self.k = h, k


class Held:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class Block(nn.Module):
    def __init__(self, inputs: int, kind: Any) -> None:
        super().__init__()
        self.a, self.b, self.kind = nn.Linear(inputs, 24), nn.Linear(24, 24), kind

    def forward(self, x: Any) -> Any:
        h = x if isinstance(x, Tensor) else x.h + x.k
        y = torch.relu(self.b(torch.relu(self.a(h))))
        return self.kind(y, 0.1 * y)


class Blocks(nn.Module):
    def __init__(self, kind: Any, answer: Any = lambda scores: scores) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.second, self.head = Block(10, kind), Block(24, kind), nn.Linear(24, 4)
        self.answer = answer
        self.eval()

    def forward(self, x: Tensor) -> Any:
        last = self.second(self.first(x))
        return self.answer(self.head(last.h + last.k))


@pytest.mark.parametrize("method", ["truncate", "project", "sequential"])
@pytest.mark.parametrize("kind", [Free, Frozen, Slots, Named, Own])
def test_what_blocks_hand_on_is_nobody_elses(kind, method):
    model = Blocks(kind)
    known = rf.profile(model, X, method=method)
    plan = known.plan("params=0.6")
    plain = rf.profile(Blocks(Named), X, method=method).plan("params=0.6")
    assert [(entry.form, entry.rank) for entry in plan.entries] == [(entry.form, entry.rank) for entry in plain.entries]
    small = rf.apply_(copied(model), plan, known)
    rf.tune_(small, model, X, steps=2)


@pytest.mark.parametrize("kind", [lambda y: Free(y), lambda y: Frozen(y), lambda y: Slots(y), Held])
def test_what_a_network_returns(kind):
    model, plain = Blocks(Named, kind), Blocks(Named)
    known = rf.profile(model, X)
    small = rf.apply_(copied(model), known.plan("params=0.6"), known)
    rf.tune_(small, model, X, steps=2)
    labels = plain(X).argmax(1)
    assert rf.evaluate(model, (X, labels)).accuracy == 1.0


def test_what_nobody_can_look_into_is_refused_by_its_name():
    model = Blocks(Named, lambda y: Own(y))
    with pytest.raises(ValueError, match="the model returned a Own"):
        rf.plan(model, "params=0.6", "truncate", X)
    with pytest.raises(TypeError, match="the model returned a Own"):
        rf.evaluate(model, (X, torch.zeros(40, dtype=torch.long)))


def test_a_named_tuple_has_names_of_its_own():
    class Answers(NamedTuple):
        loss: Any
        aux: Any
        scores: Any

    given = Answers(torch.ones(()), torch.ones(3, 5), torch.ones(3, 4))
    assert [name for name, _ in named_tensors(given)] == ["aux", "scores"]
    assert names_of(given, ["x"]) == ["aux", "scores"]
    assert list(plain(given)) == ["aux", "scores"]
    assert [name for name, _ in named_tensors((torch.ones(2), given))] == ["0", "1.loss", "1.aux", "1.scores"]


def test_tensors_inside_of_a_dataclass_are_seen_and_changed():
    given = {"x": [Frozen(torch.ones(2), Slots(torch.ones(3), "name"))]}
    made = mapped(given, lambda x: 2 * x)
    assert [int(x.sum()) for x in tensors_in(made)] == [4, 6]
    assert [int(x.sum()) for x in tensors_in(given)] == [2, 3]
    assert (type(made["x"][0]), made["x"][0].k.k) == (Frozen, "name")
