"""Hooks for the length of a block; and that no other room registers any."""

import ast
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import nn

import rankfold
from rankfold.observe import Enough, after, before, first_of, with_first

SOURCE = Path(rankfold.__file__).parent
HOOKS = re.compile(r"register_\w*hook")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def registered(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("last", [False, True])
def test_several_callbacks_see_a_call_in_their_order_ahead_of_what_is_there_or_behind(last):
    model, seen = network(), []
    model[0].register_forward_hook(lambda module, args, output: seen.append("own"))
    watching = {"0": [lambda *given: seen.append("first"), lambda *given: seen.append("second")]}
    with after(model, watching, last=last):
        model(torch.randn(2, 3))
    model(torch.randn(2, 3))
    assert seen == (["own", "first", "second"] if last else ["first", "second", "own"]) + ["own"]
    assert registered(model) == 1


def test_a_callback_may_come_ahead_of_what_is_there():
    model, seen = network(), []
    model[0].register_forward_pre_hook(lambda module, args: seen.append("own"))
    for first in (True, False):
        with before(model, {"0": lambda *given: seen.append("ours")}, first=first):
            model(torch.randn(2, 3))
    assert seen == ["ours", "own", "own", "ours"]


def test_modules_are_named_by_themselves_too():
    model, x = network(), torch.randn(2, 3)
    by_module, by_name = [], []
    with (
        before(model, {model[2]: lambda module, args, kwargs: by_module.append(first_of(args, kwargs))}),
        before(model, {"2": lambda module, args, kwargs: by_name.append(first_of(args, kwargs))}),
    ):
        model(x)
    assert torch.equal(*by_module, *by_name)
    with pytest.raises(AttributeError), after(model, {"nowhere": print}):
        pass
    assert registered(model) == 0


def test_what_a_callback_returns_takes_the_place():
    model, x = network(), torch.randn(2, 3)
    with after(model, {"0": lambda module, args, kwargs, output: 2 * output}):
        found = model(x)
    assert torch.allclose(found, model[2]((2 * model[0](x)).relu()))
    other = torch.randn(2, 3)
    with before(model, {"0": lambda module, args, kwargs: with_first(other, args, kwargs)}):
        found = model(x)
    assert torch.equal(found, model(other))


def test_the_first_argument_is_found_by_name():
    layer, x = nn.Linear(3, 4), torch.randn(2, 3)
    seen = []

    def halve(module, args, kwargs):
        seen.append(first_of(args, kwargs))
        return with_first(x / 2, args, kwargs)

    with before(layer, {"": halve}):
        found = layer(input=x)
    assert seen[0] is x
    assert torch.equal(found, layer(x / 2))
    assert first_of((), {}) is None


def test_a_pass_ends_when_all_is_seen():
    model, seen = network(), []

    def enough(module, args, kwargs, output):
        raise Enough

    with after(model, {"0": enough, "2": lambda *given: seen.append(given)}), suppress(Enough):
        model(torch.randn(2, 3))
    assert not seen
    assert registered(model) == 0


class Forgiving(nn.Module):
    """Takes any error of its layer for one that it can do without."""

    def __init__(self):
        super().__init__()
        self.layer, self.rest = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        with suppress(Exception):
            x = self.layer(x)
        return self.rest(x)


def test_a_model_that_catches_errors_does_not_catch_the_end():
    model, seen = Forgiving(), []

    def enough(module, args, kwargs, output):
        raise Enough

    with after(model, {"layer": enough, "rest": lambda *given: seen.append(given)}), suppress(Enough):
        model(torch.randn(2, 3))
    assert not seen


def registrations(source: str) -> Iterator[str]:
    """Every attribute named like a registration of hooks; a word in a string or a comment is none."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and HOOKS.fullmatch(node.attr):
            yield node.attr


def test_hooks_are_registered_in_one_room():
    """The rule of ``rankfold.observe``: every other room asks it. Hooks of tensors and optimizers have none so far."""
    found = {
        str(file.relative_to(SOURCE)): names
        for file in sorted(SOURCE.rglob("*.py"))
        if (names := list(registrations(file.read_text(encoding="utf-8"))))
    }
    assert set(found) == {"observe/watch.py"}, f"ask rankfold.observe for before() or after(): {found}"
    assert sorted(found["observe/watch.py"]) == ["register_forward_hook", "register_forward_pre_hook"]


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("module.register_forward_hook(f, with_kwargs=True)", 1),
        ("add = net[0].register_full_backward_pre_hook", 1),
        ("x.register_hook(f)", 1),
        ("optimizer.register_step_post_hook(f)", 1),
        ("table = {'register_hook': refuse}  # .register_hook(", 0),
        ("parametrize.register_parametrization(layer, 'weight', w)", 0),
    ],
)
def test_the_count_meets_every_way_to_register(line, count):
    assert len(list(registrations(line))) == count
