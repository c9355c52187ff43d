"""The one room that knows layer types."""

from rankfold.sites.attention import leave_fused_kernels_, replace_, settle_attention_, split_attention
from rankfold.sites.find import sites, unwrap
from rankfold.sites.hooks import carry_hooks_
from rankfold.sites.site import Call, Factors, Form, Layer, Site, SiteList

__all__ = [
    "Call", "Factors", "Form", "Layer", "Site", "SiteList", "carry_hooks_",
    "leave_fused_kernels_", "replace_", "settle_attention_", "sites", "split_attention", "unwrap",
]  # fmt: skip
