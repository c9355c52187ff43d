"""Adapting a trained network by updates of low rank: deep LoRA, exported as an ordinary LoRA adapter."""

from rankfold.adapt.deep_lora import deep_lora_, merge_, remove_, updates
from rankfold.adapt.layer import DeepLoRALinear
from rankfold.adapt.peft_format import save_adapter

__all__ = ["DeepLoRALinear", "deep_lora_", "merge_", "remove_", "save_adapter", "updates"]
