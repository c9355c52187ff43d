"""The one room that knows layer types."""

from rankfold.forms import Call, Factors, Form, Layer
from rankfold.forms.setting import setting_of
from rankfold.sites.find import (
    FOLD_FIRST,
    architecture,
    fingerprint,
    read_layer,
    register_reader,
    sites,
    unwrap,
)
from rankfold.sites.foreign import QUANTIZED, check_ordinary, packed, stored, why_tensor
from rankfold.sites.hooks import carry_hooks_
from rankfold.sites.joint import joint, part_of, with_joint
from rankfold.sites.kinds.attention import leave_fused_kernels_, without_fused_attention
from rankfold.sites.kinds.factored import (
    bottleneck_rows,
    factored_layers,
    factored_sites,
    narrow_,
    narrowable_sites,
    narrower,
    output_rows_alone,
    pair,
    positions,
    weights_of,
)
from rankfold.sites.kinds.linear import LinearLayer
from rankfold.sites.opened import held_fast, hidden, opened, replace_, settle_
from rankfold.sites.pretrained import is_causal, is_pretrained, pretrained_parts
from rankfold.sites.product import Product, factors_of, ordinary_class, products
from rankfold.sites.site import Joint, Site, SiteList, why_left
from rankfold.sites.tied import untie_
from rankfold.sites.wish import NOT_SELECTED, Names, NoLayer, fits

split_attention = opened  # what it was called before it opened more

__all__ = [
    "Call", "FOLD_FIRST", "Factors", "Form", "Joint", "Layer", "LinearLayer", "NOT_SELECTED", "Names", "NoLayer",
    "Product",
    "QUANTIZED", "Site", "SiteList", "architecture", "bottleneck_rows", "carry_hooks_",
    "factored_layers", "factored_sites", "factors_of", "fingerprint", "fits", "is_causal", "is_pretrained",
    "leave_fused_kernels_", "narrow_",
    "narrowable_sites", "narrower",
    "ordinary_class", "output_rows_alone", "pair",
    "packed", "positions", "pretrained_parts", "products", "read_layer", "check_ordinary", "register_reader",
    "held_fast", "hidden", "joint", "opened", "part_of", "with_joint", "setting_of", "settle_",
    "replace_", "sites", "split_attention", "stored", "untie_", "unwrap",
    "weights_of", "why_left", "why_tensor",
    "without_fused_attention",
]  # fmt: skip
