"""An optimizer around another one: what schedulers, scalers and checkpoints ask of it is that of the inner one."""

from __future__ import annotations

from typing import Any

import torch


class Around(torch.optim.Optimizer):
    """Sets ``inner`` before anything else is asked of it, and calls no ``__init__`` of torch's: it has no state beside
    the inner one's but what a subclass adds, in ``step``, ``state_dict`` and ``load_state_dict``."""

    inner: torch.optim.Optimizer

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
