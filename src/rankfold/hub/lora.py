"""LoRA of PEFT on factored layers, found by the names that the layers have."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import nn

from rankfold.hub.errors import HubError
from rankfold.layers import LowRankConv1D, LowRankLinear, PivotedConv1D, PivotedLinear
from rankfold.layers.rounded import is_whole
from rankfold.sites import narrow_, narrower, pair, weights_of

_PIVOTED = (PivotedLinear, PivotedConv1D)
_WIDENED = (LowRankLinear, LowRankConv1D, *_PIVOTED)


class FactoredLora(Linear):
    """A factored layer with LoRA beside it. Merging puts the adapter's two matrices beside the two factors, so that the
    layer computes the same sum at a rank larger by the adapter's; nothing is approximated. Of a pivoted layer the rows
    that are stored are chosen anew, and what was there before is kept for ``unmerge``."""

    def _get_in_out_features(self, module: Any) -> tuple[int, int]:
        return module.in_features, module.out_features

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Merge the active adapters, or those named. ``HubError`` for a layer of another form, for variants of LoRA,
        and with ``safe_merge`` where an adapter is not finite."""
        for name in check_adapters_to_merge(self, adapter_names) or ():
            if name not in self.lora_A:
                continue
            base: Any = self.get_base_layer()
            if type(base) not in _WIDENED or is_whole(base) or name in self.lora_variant or self.lora_bias.get(name):
                raise HubError(
                    f"adapter {name!r} cannot be merged into a {type(base).__name__} without forming its product: keep "
                    "it beside the layer (save the adapter), or multiply the model out first (rankfold.hub.to_dense)"
                )
            with torch.no_grad():
                first, second = self._pair(name)
                right, left = first.to(base.down.weight), (second * self.scaling[name]).to(base.up.weight)
                if safe_merge and not (bool(right.isfinite().all()) and bool(left.isfinite().all())):
                    raise HubError(
                        f"adapter {name!r} holds values that are NaN or infinite: train it again with a smaller "
                        "learning rate"
                    )
                before = pair(base)
                if isinstance(base, _PIVOTED):
                    if base.rank + len(right) >= base.out_features:
                        raise HubError(
                            f"adapter {name!r} cannot be merged: the layer would have rank "
                            f"{base.rank + len(right)} with it, which is no less than its {base.out_features} "
                            "outputs: keep the adapter beside the layer (save the adapter)"
                        )
                    self.__dict__.setdefault("kept", {})[name] = weights_of(base)
                    narrow_(base, narrower(base, torch.cat([before[0], right]), torch.cat([before[1], left], 1)))
                else:
                    _stack_(base, torch.cat([before[0], right]), torch.cat([before[1], left], 1))
            self.merged_adapters.append(name)

    def _pair(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        first: Any = self.lora_A[name]
        second: Any = self.lora_B[name]
        return first.weight, second.weight

    def unmerge(self) -> None:
        """Take every merged adapter out again, the last one first."""
        base: Any = self.get_base_layer()
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            if isinstance(base, _PIVOTED):
                narrow_(base, self.__dict__["kept"].pop(name))
                continue
            kept = base.rank - len(self._pair(name)[0])
            with torch.no_grad():
                _stack_(base, base.down.weight[:kept].clone(), base.up.weight[:, :kept].clone())


def _stack_(base: Any, down: torch.Tensor, up: torch.Tensor) -> None:
    trained = base.down.weight.requires_grad
    narrow_(base, (nn.Parameter(down, trained), nn.Parameter(up, trained)))


def known(config: Any) -> Any:
    """``config``, for which factored layers become ``FactoredLora``."""
    config._register_custom_module({LowRankLinear: FactoredLora})
    return config
