"""What a model of transformers must know of its factored layers, so that whatever saves it saves them right."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from torch import nn

from rankfold.hub.errors import HubError
from rankfold.hub.quantizer import TRAINING, RankfoldConfig, RankfoldQuantizer
from rankfold.sites import Form, pretrained_parts
from rankfold.sites.adapters import why_adapted


class Decision(NamedTuple):
    """What became of one site. ``parameter``: the name that its weight had, with the path. ``form``: "training" of a
    layer that is trained in other shapes than it is stored in. ``alike``: the layer is of the kind and shapes that the
    architecture gives it, only filled anew. ``first``: the site that holds the factor that this one shares, which gives
    ``rows`` of its outputs."""

    site: str
    parameter: str
    form: Form | Literal["training"]
    rank: int
    bias: bool
    alike: bool = False
    first: str = ""
    rows: int = 0

    def told(self, start: str) -> dict[str, Any]:
        """What the configuration says of it; names without ``start``."""
        shared = {"first": self.first.removeprefix(start), "rows": self.rows} if self.first else {}
        return {"form": str(self.form), "rank": self.rank, "bias": self.bias, **shared}


def declare_(root: nn.Module, decisions: Sequence[Decision]) -> None:
    """Tell every model of transformers in ``root`` of its changed layers: its configuration, and who saves it.

    From then on ``save_pretrained``, which may be called by a Trainer or by sentence-transformers, writes a folder that
    ``from_pretrained`` loads after ``import rankfold.hub`` and refuses without. A model that another library quantised
    is left as it is; ``check_ours`` says so when it is saved.
    """
    for path, part in pretrained_parts(root):
        start = f"{path}." if path else ""
        own = [each for each in decisions if each.site.startswith(start) and not each.alike]
        if own and _is_ours(part):
            own_config_(root, part)
            _declare_one_(part, {each.site.removeprefix(start): each for each in own}, start)


def follow_(root: nn.Module) -> None:
    """The models of transformers in ``root`` once layers are ordinary again; one without others needs no plug-in."""
    for _, part in pretrained_parts(root):
        model: Any = part
        if isinstance(quantizer := getattr(model, "hf_quantizer", None), RankfoldQuantizer):
            quantizer.follow_(model, model.state_dict().keys())
            if not quantizer.quantization_config.sites:
                model.hf_quantizer = None
                del model.config.quantization_config


def _is_ours(model: Any) -> bool:
    """Whether no other library quantised it."""
    before = getattr(model, "hf_quantizer", None)
    return before is None or isinstance(before, RankfoldQuantizer)


def own_config_(root: nn.Module, part: Any) -> None:
    """Give ``part`` a configuration of its own: the one that it was built from may be that of other models too, as of
    the dense original, and these would be saved as if they were factored.

    Whatever holds the same object goes along, as layers do, or a wrapper around ``part``; only other models of
    transformers keep it. Configurations inside it stay the same objects: nothing is written into them.
    """
    before, after = part.config, copy.copy(part.config)
    others = {module for _, other in pretrained_parts(root) if other is not part for module in other.modules()}
    for module in {*root.modules()} - (others - {*part.modules()}):
        vars(module).update({name: after for name, value in vars(module).items() if value is before})


def _declare_one_(model: Any, own: Mapping[str, Decision], start: str) -> None:
    body = f"{getattr(model, 'base_model_prefix', '')}."  # what is loaded whichever head it is to have
    poisons = [each.parameter.removeprefix(start) for each in own.values() if each.form is not Form.DENSE]
    poisons.sort(key=lambda name: not name.startswith(body))
    sites = {name: each.told(start) for name, each in own.items()}
    before = getattr(model, "hf_quantizer", None)
    earlier: Any = RankfoldConfig() if before is None else before.quantization_config
    config = RankfoldConfig(earlier.sites | sites, earlier.poison or next(iter(poisons), ""))
    model.hf_quantizer = RankfoldQuantizer(config)
    model.config.quantization_config = config


def check_plain(model: Any) -> None:
    """``HubError`` for a model that will never be saved with factors: read from GGUF, or quantised by another
    library."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None and not isinstance(quantizer, RankfoldQuantizer):
        method = quantizer.quantization_config.quant_method
        raise HubError(
            f"{type(model).__name__} was loaded by the quantizer {getattr(method, 'value', method)!r} of transformers, "
            "which saves models in its own way: before compressing, copy its weights into a fresh model, fresh = "
            "type(model)(config) with a config without quantization_config, then "
            "fresh.load_state_dict(model.state_dict()); where the weights in a folder are plain numbers already, take "
            "quantization_config out of its config.json"
        )


def check_merged(model: nn.Module) -> None:
    """``HubError`` for a model that an adapter hangs on, for which no folder has a place."""
    if said := why_adapted(model):
        raise HubError(said)


def _trained(quantizer: Any) -> str:
    """The first layer that is still in training, if any."""
    told = {} if quantizer is None else quantizer.quantization_config.sites
    return next((name for name, decision in told.items() if decision["form"] == TRAINING), "")


def check_ours(model: Any) -> None:
    """``HubError`` for a model that cannot be saved with its factors: see ``check_plain`` and ``check_merged``, or
    without any layer whose old name could carry the poison."""
    check_merged(model)
    check_plain(model)
    quantizer, kind = getattr(model, "hf_quantizer", None), type(model).__name__
    if trained := _trained(quantizer):
        raise HubError(
            f"{trained}: the layer is still in training at low rank, or a product of factors: fold the model first "
            "(rankfold.fold_)"
        )
    if quantizer is not None and not quantizer.quantization_config.poison:
        raise HubError(
            f"{kind}: some of its layers were refitted in another shape, and none is factored, so that a folder "
            "of it would load with wrong weights and no error: save it with rankfold.hub.to_dense"
        )
