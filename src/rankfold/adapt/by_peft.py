"""LoRA, rsLoRA, DoRA and AdaLoRA as PEFT has them, in the loop of rankfold; nothing of them is rewritten."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.adapt.peft_format import Adapter
from rankfold.sites import Form, Site, unwrap
from rankfold.train.step.around import Around

NAME = "default"


def with_lora_(model: nn.Module, chosen: list[tuple[Site, int]], kind: str) -> Any:
    """Put PEFT's ``kind`` ("lora", "rslora" or "dora") on the layers, each at its rank; returns PEFT's tuner.

    The model itself is changed, and everything else is frozen. ``ValueError`` where PEFT is not installed, and for DoRA
    of layers that have rows of zeros.
    """
    if kind == "dora":
        _refuse_rows_of_zeros(model, [site for site, _ in chosen])
    ranks = {site.name: rank for site, rank in chosen}
    most = max(ranks.values())
    config = _peft().LoraConfig(
        r=most, lora_alpha=most, target_modules="|".join(map(re.escape, ranks)), use_rslora=kind == "rslora",
        use_dora=kind == "dora",
        rank_pattern={f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != most},
        alpha_pattern={f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != most},
    )  # fmt: skip
    return _peft().get_peft_model(model, config).base_model


@torch.no_grad()
def _refuse_rows_of_zeros(model: nn.Module, chosen: list[Site]) -> None:
    """PEFT 0.21.2 divides by the norm of each row: outputs whose row is zero, pruned or padded ones, become NaN."""
    zeros = {}
    for site in chosen:
        weight = site.layer.weight(unwrap(model).get_submodule(site.name))
        count = int((site.layer.geometry(Form.FACTORED).matrix(weight) == 0).all(dim=1).sum())
        if count:
            zeros[site.name] = f"{site.name} ({count} of {site.shape[0]})"
    if zeros:
        raise ValueError(
            f"DoRA divides by the norm of each row of a weight, and rows are zero in {', '.join(zeros.values())}: "
            "PEFT would give NaN; take the method lora, or choose other layers (--only)"
        )


def with_adalora_(model: nn.Module, chosen: list[tuple[Site, int]], steps: int, seed: int) -> Any:
    """Put PEFT's AdaLoRA on linear layers: from one and a half times the rank down to it on average, over ``steps``."""
    target = max(1, round(sum(rank for _, rank in chosen) / len(chosen)))
    start = max(target + 1, (3 * target + 1) // 2)
    config = _peft().AdaLoraConfig(
        init_r=start, target_r=target, lora_alpha=start, tinit=steps // 10, tfinal=steps // 3,
        deltaT=max(1, steps // 100), total_step=steps,
        target_modules="|".join(re.escape(site.name) for site, _ in chosen),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _peft().get_peft_model(model, config).base_model


class AdaLoraOptimizer(Around):
    """One of torch's optimizers with what AdaLoRA does beside each step: the orthogonality of its factors is asked for,
    and PEFT moves the budget (``update_and_allocate``)."""

    def __init__(self, tuner: Any, model: nn.Module, kind: Callable[..., torch.optim.Optimizer], **settings: Any):
        groups = settings.pop("groups", None)
        self.tuner, self.step_number = tuner, 0
        super().__init__(
            kind([p for p in model.parameters() if p.requires_grad] if groups is None else groups, **settings)
        )
        self._frames = [p for n, p in model.named_parameters() if "lora_A" in n or "lora_B" in n]
        self.weight = float(tuner.peft_config[NAME].orth_reg_weight)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the inner optimizer, then PEFT's."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
            apart = sum(_unlike_frame(part) for part in self._frames) / max(len(self._frames), 1)
            (self.weight * apart).backward()  # type: ignore[union-attr]
        self.inner.step()
        with torch.no_grad():
            self.tuner.update_and_allocate(self.step_number)
        self.step_number += 1
        return loss

    def state_dict(self) -> dict[str, Any]:
        """With the importances that PEFT has gathered, so that a resumed run takes the same decisions."""
        known = self.tuner.rankallocator
        kept = {key: dict(getattr(known, key)) for key in ("ipt", "exp_avg_ipt", "exp_avg_unc")}
        pattern = self.tuner.peft_config[NAME].rank_pattern
        return self.inner.state_dict() | {"adalora": {"step": self.step_number, "pattern": pattern, **kept}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = dict(state_dict)
        kept = dict(state.pop("adalora"))
        self.step_number = int(kept.pop("step"))
        self.tuner.peft_config[NAME].rank_pattern = kept.pop("pattern")
        for key, values in kept.items():
            setattr(self.tuner.rankallocator, key, dict(values))
        self.inner.load_state_dict(state)


def _unlike_frame(part: Tensor) -> Tensor:
    rows = part if part.shape[0] <= part.shape[1] else part.T
    gram = rows @ rows.T
    return (gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).norm()


def trained_pairs(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """A (r, n) and B (m, r), scaling included, of every layer that PEFT adapts by LoRA or AdaLoRA."""
    found = {}
    for name, module in model.named_modules():
        if not hasattr(module, "lora_A") or NAME not in module.lora_A:
            continue
        first, second = module.lora_A[NAME], module.lora_B[NAME]
        if isinstance(first, nn.Parameter):  # AdaLoRA keeps a diagonal between the two
            scale = float(module.scaling[NAME]) / (float(module.ranknum[NAME]) + 1e-5)
            a, b = first * module.lora_E[NAME] * scale, second
        else:
            a, b = first.weight.flatten(1), float(module.scaling[NAME]) * second.weight.flatten(1)
        found[name] = (a.detach().clone(), b.detach().clone())
    return found


def trained_adapter(model: nn.Module, chosen: list[tuple[Site, int]], base_model: str) -> Adapter:
    """What PEFT has trained, as an ordinary adapter; AdaLoRA's ranks are those that it ended with."""
    convolutions = {site.name: site.layer.convolution for site, _ in chosen}
    kernels = {n: (c.channels_in, *c.kernel) for n, c in convolutions.items() if c is not None}
    pairs: Mapping[str, Any] = trained_pairs(model)
    magnitudes = {
        name: module.lora_magnitude_vector[NAME].weight.detach().flatten().clone()
        for name, module in model.named_modules()
        if name in pairs and NAME in getattr(module, "lora_magnitude_vector", ())
    }
    return Adapter(
        pairs, kernels=kernels, stored_transposed=all(site.layer.stored_transposed for site, _ in chosen),
        base_model=base_model, magnitudes=magnitudes,
    )  # fmt: skip


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise ValueError("the methods of PEFT need the package peft: pip install 'rankfold[hf]'") from None
    return peft
