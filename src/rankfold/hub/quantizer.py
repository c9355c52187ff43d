"""How transformers learns of factored layers: an entry ``quantization_config`` in config.json, and who reads it.

    {"quant_method": "rankfold", "format": 1, "poison": KEY, "sites": {NAME: {"form": …, "rank": …, "bias": …}}}

Without this plug-in transformers would build dense layers, find no weights for them, fill them at random and say so in
a report alone. The poison prevents that: an empty tensor under the name that a dense layer's weight had, whose shape
fits nothing. The plug-in leaves it out when it loads, and puts it in again whenever the model is saved.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from rankfold.hub.drawn import drawn_, spare_
from rankfold.hub.errors import HubError
from rankfold.hub.whole import drop_pooler_, refuse_random
from rankfold.layers import LowRankConv, LowRankLinear, SpatialConv2d
from rankfold.layers.pivoted import misplaced
from rankfold.layers.shared import join_
from rankfold.run.disk.container import checked
from rankfold.run.disk.pretrained import METHOD
from rankfold.run.disk.tensors import names_in
from rankfold.sites import (
    Form,
    Site,
    SiteList,
    factored_sites,
    leave_fused_kernels_,
    opened,
    part_of,
    replace_,
    settle_,
    sites,
)

FORMAT = 1
TRAINING = "training"  # in the place of a form: factors that change their shapes, a checkpoint for whoever trains them
_SORT_OUT = "_adjust_missing_and_unexpected_keys"  # of a model of transformers, when its weights were read


class RankfoldConfig(QuantizationConfigMixin):
    """What became of the matrices of a model: ``sites`` by name, each with form, rank, and whether it has a bias."""

    def __init__(
        self, sites: Mapping[str, Mapping[str, Any]] | None = None, poison: str = "", format: int = FORMAT, **more: Any
    ) -> None:
        if format != FORMAT:
            raise HubError(
                f"config.json: its factored layers are written in format {format}, and this version reads format "
                f"{FORMAT}: install the version of rankfold that wrote it, or compress again"
            )
        self.quant_method: Any = METHOD
        self.format, self.poison = format, str(poison)
        try:
            self.sites = checked(dict[str, dict[str, Any]], dict(sites or {}))
        except (TypeError, ValueError) as error:
            raise HubError(
                f"config.json: what it tells about factored layers cannot be read ({error}): download or save the "
                "model again"
            ) from None


class RankfoldQuantizer(HfQuantizer):
    """Gives a model the layers of its configuration before weights are loaded, and the poison when it is saved."""

    quantization_config: Any
    requires_calibration = False

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        asked = self.quantization_config
        files = kwargs.get("checkpoint_files")
        if files and type(model).__name__ in (getattr(model.config, "architectures", None) or ()):
            drop_pooler_(
                model, [name for file in files if str(file).endswith(".safetensors") for name in names_in(Path(file))]
            )
        named, poison = _names_here(model, asked.sites, asked.poison)
        if trained := next((name for name, decision in named.items() if decision["form"] == TRAINING), None):
            raise HubError(
                f"config.json: {trained} was saved in the middle of its training at low rank or as a product: load its "
                "files into the prepared model (load_state_dict), or fold that model (rankfold.fold_) and save again"
            )
        asked.sites, asked.poison = named, poison
        shape_(model, named)
        body = f"{getattr(model, 'base_model_prefix', '')}."  # a file of a body is read without it
        pattern = rf"(^|\.){re.escape(poison.removeprefix(body))}$"
        model._keys_to_ignore_on_load_unexpected = {*(model._keys_to_ignore_on_load_unexpected or ()), pattern}
        self._watch_(model)
        spare_(model)
        return model

    def _watch_(self, model: Any) -> None:
        """Have the model refuse where transformers, once it has sorted out what may be missing, would only report that
        it drew a layer at random."""
        sort_out, names = model._adjust_missing_and_unexpected_keys, list(self.quantization_config.sites)

        def watched(info: Any) -> None:
            sort_out(info)
            refuse_random(model, info, names, str(getattr(model, "name_or_path", "") or type(model).__name__))

        vars(model)[_SORT_OUT] = watched

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        # layers of plain numbers: casting and training are as free as before
        model.is_quantized = False
        vars(model).pop(_SORT_OUT, None)
        drawn_(model)
        if said := misplaced(model, model.state_dict(keep_vars=True)):
            raise HubError(f"{said}: the weights are damaged, or were made by another program: save the model again")
        for module in model.modules():
            vars(getattr(module, "config", None) or self).pop("_is_quantized", None)
        return model

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """What is saved. It is asked before the configuration is written, which so learns of layers that have changed
        since: narrowed, merged with an adapter, or multiplied out by hand. ``HubError`` for ranks that no folder is
        loaded with."""
        _check_ranks(model)
        state = model.state_dict()
        self.follow_(model, state)
        if poison := self.quantization_config.poison:
            state[poison] = torch.empty(0, dtype=model.dtype)
        return state, {}

    def follow_(self, model: Any, state: Collection[str]) -> None:
        """Have the configuration tell of the layers as they are now; ``state``: the names of what the model holds,
        among which the poison cannot be."""
        config = self.quantization_config
        config.sites = _as_they_are(model, config.sites)
        names = (config.poison, *(f"{name}.weight" for name in config.sites))
        config.poison = next((name for name in names if name and name not in state), "")

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_qat_trainable(self) -> bool:
        return True

    @property
    def is_compileable(self) -> bool:
        return True


if METHOD not in AUTO_QUANTIZER_MAPPING:
    register_quantization_config(METHOD)(RankfoldConfig)
    register_quantizer(METHOD)(RankfoldQuantizer)


def _check_ranks(model: nn.Module) -> None:
    for site in factored_sites(model):
        rank = getattr(model.get_submodule(site.name), "rank", None)  # of convolutions, which nothing widens, None
        form = next(form for form in site.forms if form is not Form.KEEP)
        if isinstance(rank, int) and rank > site.max_rank(form):
            raise HubError(
                f"{site.title} cannot be stored as {form} of rank {rank}, as its matrix has no more than "
                f"{site.max_rank(form)}: factor it again at a lower rank"
            )


def _as_they_are(model: nn.Module, named: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The sites as the layers of ``model`` are now; those that became factored since are found among its layers."""
    found: dict[str, dict[str, Any]] = {}
    for name, decision in named.items():
        layer: Any = model.get_submodule(name)
        if decision["form"] != Form.DENSE and "weight" in layer._parameters:
            continue  # an ordinary layer again
        rank = getattr(layer, "rank", None)
        found[name] = dict(decision) | ({"rank": rank} if isinstance(rank, int) else {})
    # a factor of these is an ordinary layer at first, and what other forms are made of is told with them
    pairs = LowRankLinear | LowRankConv | SpatialConv2d
    made = tuple(f"{name}." for name in found if not isinstance(model.get_submodule(name), pairs))
    for site in factored_sites(model):
        if site.name not in found and not site.name.startswith(made):
            layer = model.get_submodule(site.name)
            form = next(form for form in site.forms if form is not Form.KEEP)
            found[site.name] = {"form": str(form), "rank": layer.rank, "bias": layer.bias is not None}
    return found


def _names_here(
    model: Any, named: Mapping[str, Mapping[str, Any]], poison: str
) -> tuple[dict[str, dict[str, Any]], str]:
    """The names of a saved model in this one, which may be its body without a head, or a body with another head."""
    with opened(model):
        modules = dict(model.named_modules())
    prefix = f"{getattr(model, 'base_model_prefix', '')}."

    def here(name: str, owner: str) -> str | None:
        for start, end in ((name, owner), (name.removeprefix(prefix), owner.removeprefix(prefix))):
            if end in modules:
                return start
        return prefix + name if prefix + owner in modules else None

    found, absent = {}, []
    for name, decision in named.items():
        # a factor that was factored once more is there when the layer that it is a part of has been made
        place = here(name, min((each for each in named if f"{name}.".startswith(f"{each}.")), key=len))
        if place is None:
            absent.append(name)
        else:
            found[place] = dict(decision)
            if "first" in decision:
                found[place]["first"] = here(decision["first"], decision["first"]) or decision["first"]
    same = type(model).__name__ in (getattr(model.config, "architectures", None) or ())
    if absent and (same or not found):  # where another class was asked for, it may lack a pooler or a head
        raise HubError(
            f"config.json: it tells that {absent[0]} is factored, and {type(model).__name__} has no such layer: the "
            "folder belongs to another model"
        )
    return found, here(poison, poison.rpartition(".")[0]) or poison


def shape_(model: nn.Module, decisions: Mapping[str, Mapping[str, Any]]) -> None:
    """Give ``model`` the layers that ``decisions`` name, on the meta device and not filled. ``HubError`` where one is
    not possible."""
    settle_(model, decisions)
    leave_fused_kernels_(model, decisions)
    here = sites(model)
    groups: dict[str, list[str]] = defaultdict(list)
    for name, decision in decisions.items():
        if "first" in decision:
            groups[decision["first"]].append(name)
    for names in groups.values():
        names.sort(key=[site.name for site in here].index)
    made: dict[str, Any] = {}
    for name, decision in decisions.items():
        if name not in {site.name for site in here}:  # a factor of a layer that was just made
            here = sites(model)
        members = groups.get(decision.get("first", ""), [])
        site, form, rank, bias = _understood(here, name, decision, members)
        old = model.get_submodule(name)
        made[name] = site.layer.skeleton(old, form, rank, bias)
        replace_(model, {old: made[name].train(old.training)})
    for names in groups.values():
        for number, name in enumerate(names):
            join_(made[name], made[names[0]], number, len(names))


def _understood(
    here: SiteList, name: str, decision: Mapping[str, Any], members: Sequence[str]
) -> tuple[Site, Form, int, bool]:
    try:
        site, form = here[name], Form(decision["form"])
        if members:
            site = part_of([here[each] for each in members], site, int(decision["rows"]))
        rank, bias = int(decision["rank"]), bool(decision["bias"])
    except KeyError as error:
        raise HubError(
            f"config.json: {name}: the model has no {error.args[0]} that can be factored: the folder belongs to "
            "another model"
        ) from None
    except (TypeError, ValueError) as error:
        raise HubError(f"config.json: {name}: {error}") from None
    if not form.offered(site.layer) or not form.least <= rank <= site.max_rank(form):
        raise HubError(
            f"config.json: {site.title} cannot be stored as {form} of rank {rank}: download or save the model again"
        )
    return site, form, rank, bias
