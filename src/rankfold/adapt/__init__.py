"""Adapting a trained network by updates of low rank: trained, extracted, combined, exported as ordinary LoRA."""

from rankfold.adapt.deep_lora import deep_lora_, merge_, remove_, updates
from rankfold.adapt.extraction.adapters import combine
from rankfold.adapt.extraction.extract import extract
from rankfold.adapt.extraction.result import Extraction
from rankfold.adapt.layer import DeepLoRALinear
from rankfold.adapt.peft_format import Adapter, is_adapter, read_adapter, write_adapter
from rankfold.adapt.saving import save_adapter

__all__ = [
    "Adapter", "DeepLoRALinear", "Extraction", "combine", "deep_lora_", "extract", "is_adapter", "merge_",
    "read_adapter", "remove_", "save_adapter", "updates", "write_adapter",
]  # fmt: skip
