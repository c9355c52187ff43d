"""An optimizer around another one: what schedulers, scalers and checkpoints ask of it is that of the inner one."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_SHARED = ("state_dict_pre", "state_dict_post", "load_state_dict_pre", "load_state_dict_post")  # hooks of either


class Around(torch.optim.Optimizer):
    """Has no state beside that of ``inner`` but what a subclass adds, in ``step``, ``state_dict`` and
    ``load_state_dict``. Hooks of steps, copies and pickles are those of any optimizer: copied together with its model,
    it trains the copy."""

    inner: torch.optim.Optimizer

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        closure = inspect.signature(inner.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise ValueError(
                f"{type(inner).__name__} evaluates the loss as often as it likes within a step, between which nothing "
                "else can move: give an optimizer that takes one gradient a step, such as torch.optim.Adam"
            )
        self.__setstate__({"inner": inner})

    def __getstate__(self) -> dict[str, Any]:
        """Without hooks, as torch's, and without the step that a scheduler counts, which is bound to this one."""
        return {key: value for key, value in self.__dict__.items() if key != "step" and "_hooks" not in key}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.inner = state["inner"]  # of which the rest is asked
        super().__setstate__(state)
        for kind in _SHARED:
            setattr(self, f"_optimizer_{kind}_hooks", getattr(self.inner, f"_optimizer_{kind}_hooks"))

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.inner.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.inner.param_groups = groups

    @property
    def state(self) -> Any:  # type: ignore[override]  # torch declares plain attributes
        return self.inner.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        return self.inner.defaults

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none)

    def replace(
        self, old: Sequence[nn.Parameter], new: Sequence[nn.Parameter], named: Sequence[str] | None = None
    ) -> None:
        """Parameters in the place of others, in the group of the first of the old ones; states are left to the caller.
        ``named``: what each is in its module, for groups that know names, which else stay."""
        gone = {id(p) for p in old}
        for group in self.param_groups:
            known = group["params"]
            at = next((i for i, p in enumerate(known) if p is old[0]), None)
            if at is None:
                continue
            stay = [i for i, p in enumerate(known) if id(p) not in gone]
            before, after = [i for i in stay if i < at], [i for i in stay if i > at]
            group["params"] = [*(known[i] for i in before), *new, *(known[i] for i in after)]
            if "param_names" in group and named is not None:
                names, module = group["param_names"], group["param_names"][at].rpartition(".")[0]
                theirs = [f"{module}.{name}".lstrip(".") for name in named]
                group["param_names"] = [*(names[i] for i in before), *theirs, *(names[i] for i in after)]

    def begin(self, parameters: Iterable[Tensor]) -> None:
        """Parameters that come later begin as SGD's momentum does, from zero, where others have begun: its fused kernel
        takes no mixture of parameters with a buffer and without. All else begins by itself."""
        momentum_has_begun = any(state.keys() == {"momentum_buffer"} for state in self.inner.state.values())
        if momentum_has_begun:
            for parameter in parameters:
                self.inner.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}


def listed(groups: Iterable[Any]) -> list[dict[str, Any]]:
    """Parameter groups with lists, of whatever torch takes: parameters or groups of them, once or with their names."""
    found = list(groups)
    if not found or not isinstance(found[0], dict):
        found = [{"params": found}]
    each = [[group["params"]] if isinstance(group["params"], Tensor) else list(group["params"]) for group in found]
    return [group | {"params": members} for group, members in zip(found, each, strict=True)]


def identity(entry: Any) -> int:
    """Of the parameter that an entry of a group is, or names: (name, parameter)."""
    return id(entry[1] if isinstance(entry, tuple) else entry)
