"""Models of Hugging Face's transformers with factored layers, which ``from_pretrained`` loads after this import.

    import rankfold.hub
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained("small")

Without the import the same line raises, because of a tensor that fits no dense layer.
"""

from rankfold.hub.declared import Decision, declare_
from rankfold.hub.dense import to_dense
from rankfold.hub.errors import HubError
from rankfold.hub.folder import files_of, opened
from rankfold.hub.quantizer import RankfoldConfig, RankfoldQuantizer

__all__ = [
    "Decision", "HubError", "RankfoldConfig", "RankfoldQuantizer", "declare_", "files_of", "opened", "to_dense",
]  # fmt: skip
