"""Adapting a trained network by updates of low rank: trained, extracted, combined, exported as ordinary LoRA."""

from rankfold.adapt.bilevel import Certificate, Debora
from rankfold.adapt.debora import debora_
from rankfold.adapt.deep_lora import deep_lora_, merge_, remove_, updates
from rankfold.adapt.extraction.adapters import combine
from rankfold.adapt.extraction.extract import extract
from rankfold.adapt.extraction.result import Extraction
from rankfold.adapt.geolora import GeoLora, geolora_
from rankfold.adapt.layer import AdaptedLayer, DeepLoRALinear
from rankfold.adapt.peft_format import Adapter, is_adapter, write_adapter
from rankfold.adapt.reading import read_adapter
from rankfold.adapt.restore import Restored, restore_
from rankfold.adapt.saving import save_adapter

__all__ = [
    "AdaptedLayer", "Adapter", "Certificate", "Debora", "DeepLoRALinear", "Extraction", "GeoLora", "Restored",
    "combine", "debora_", "deep_lora_", "extract", "geolora_", "is_adapter", "merge_", "read_adapter", "remove_",
    "restore_", "save_adapter", "updates", "write_adapter",
]  # fmt: skip
