"""Models of Hugging Face's transformers with factored layers, which ``from_pretrained`` loads after this import.

    import rankfold.hub
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained("small")

Without the import the same line raises, because of a tensor that fits no dense layer.
"""

from typing import Any

from rankfold.hub.declared import Decision, check_plain, declare_, follow_
from rankfold.hub.dense import to_dense
from rankfold.hub.errors import HubError
from rankfold.hub.folder import companions, files_of, opened, skeleton
from rankfold.hub.quantizer import RankfoldConfig, RankfoldQuantizer
from rankfold.hub.stored import Stored
from rankfold.hub.streamed import Shards, left_alone, paged


def adapters(config: Any) -> Any:
    """A ``LoraConfig`` of PEFT that knows factored layers by their own names, such as ``q_proj``; returns it.

    For training, ``get_peft_model(model, adapters(LoraConfig(target_modules=["q_proj"])))``, and for loading,
    ``PeftModel.from_pretrained(model, folder, config=adapters(LoraConfig.from_pretrained(folder)))``: what PEFT saves
    is an ordinary adapter, which does not say how the layers are made. Merging widens the factors, exactly; DoRA trains
    beside them, but cannot be merged into them.
    """
    from rankfold.hub.lora import known  # imports peft

    return known(config)


__all__ = [
    "Decision", "HubError", "RankfoldConfig", "RankfoldQuantizer", "Shards", "Stored", "adapters", "check_plain",
    "companions", "declare_", "files_of", "follow_", "left_alone", "opened", "paged", "skeleton", "to_dense",
]  # fmt: skip
