"""LoRA of PEFT on factored layers, found by the names that the layers have."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from peft.tuners.tuners_utils import check_adapters_to_merge

from rankfold.hub.errors import HubError
from rankfold.layers import LowRankConv1D, LowRankLinear, PivotedConv1D, PivotedLinear
from rankfold.layers.rounded import is_whole
from rankfold.linalg.leading import leading_of_product
from rankfold.sites import narrow_, narrower, pair, weights_of

_PIVOTED = (PivotedLinear, PivotedConv1D)
_WIDENED = (LowRankLinear, LowRankConv1D, *_PIVOTED)


class FactoredLora(Linear):
    """A factored layer with LoRA beside it. Merging puts the adapter's two matrices beside the two factors, so that the
    layer computes the same sum at a rank larger by the adapter's, or at the full one where that is less; nothing is
    approximated. Of a pivoted layer the rows that are stored are chosen anew. What cannot be told from the new factors
    is kept for ``unmerge``."""

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
                    "it beside the layer (save the adapter), or load what was saved on the model multiplied out "
                    "(rankfold.hub.to_dense without adapters), and merge it there"
                )
            with torch.no_grad():
                first, second = self._pair(name)
                right, left = first.to(base.down.weight), (second * self.scaling[name]).to(base.up.weight)
                if safe_merge and not (bool(right.isfinite().all()) and bool(left.isfinite().all())):
                    raise HubError(
                        f"adapter {name!r} holds values that are NaN or infinite: train it again with a smaller "
                        "learning rate"
                    )
                self._widen_(name, base, right, left)
            self.merged_adapters.append(name)

    def _widen_(self, name: str, base: Any, right: torch.Tensor, left: torch.Tensor) -> None:
        before, most = pair(base), min(base.in_features, base.out_features)
        right, left = torch.cat([before[0], right]), torch.cat([before[1], left], 1)
        full = len(right) > most
        if full:  # no matrix of these sides has a higher rank, and no folder would be loaded with one
            right, left = leading_of_product(left, right).pair(most)
        if isinstance(base, _PIVOTED) and len(right) >= base.out_features:
            raise HubError(
                f"adapter {name!r} cannot be merged: the layer would have rank {len(right)} with it, which is no less "
                f"than its {base.out_features} outputs: keep the adapter beside the layer (save the adapter)"
            )
        if full or isinstance(base, _PIVOTED):
            self.__dict__.setdefault("kept", {})[name] = weights_of(base)
        narrow_(base, narrower(base, right, left))

    def _pair(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        first: Any = self.lora_A[name]
        second: Any = self.lora_B[name]
        return first.weight, second.weight

    def unmerge(self) -> None:
        """Take every merged adapter out again, the last one first."""
        base: Any = self.get_base_layer()
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            kept = self.__dict__.get("kept", {}).pop(name, None)
            if kept is None:
                right, left = pair(base)
                rank = base.rank - len(self._pair(name)[0])
                kept = narrower(base, right[:rank], left[:, :rank])
            narrow_(base, [_where(now, before) for now, before in zip(weights_of(base), kept, strict=True)])


def _where(now: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """``before`` on the device and in the type of ``now``, to which the network may have been moved since."""
    moved = before.detach().to(now.device, now.dtype)
    return torch.nn.Parameter(moved, before.requires_grad) if isinstance(before, torch.nn.Parameter) else moved


def known(config: Any) -> Any:
    """``config``, for which factored layers become ``FactoredLora``."""
    config._register_custom_module({LowRankLinear: FactoredLora})
    return config
