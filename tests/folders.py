"""Small folders of transformers with tokenizers of letters, and text for them; nothing is fetched."""

from __future__ import annotations

from pathlib import Path

import torch

LETTERS = "abcdefghijklmnopqrstuvwxyz .\n"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
VOCABULARY = len(LETTERS) + len(SPECIAL)


def tokenizer(padding: bool = True):
    """One token for each letter; lines are wrapped in [CLS] and [SEP]."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate([*SPECIAL, *LETTERS])}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", words["[CLS]"]), ("[SEP]", words["[SEP]"])]
    )
    known = {"pad_token": "[PAD]"} if padding else {}
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", **known)


def text(lines: int = 60, seed: int = 0) -> str:
    """Lines of words drawn from a few."""
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "one", "dog", "run", "far"]
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(3, 9, (lines,), generator=generator).tolist()
    return "".join(
        " ".join(words[i] for i in torch.randint(len(words), (n,), generator=generator).tolist()) + ".\n"
        for n in counts
    )


def llama(place: Path, vocabulary: int = VOCABULARY, **settings) -> Path:
    """A folder with a small decoder and its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
                         initializer_range=0.2, **settings)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(place)
    tokenizer().save_pretrained(place)
    return place


def bert(place: Path) -> Path:
    """A folder with a small encoder and its tokenizer."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                        num_attention_heads=2, max_position_embeddings=64)  # fmt: skip
    BertModel(config).save_pretrained(place)
    tokenizer().save_pretrained(place)
    return place
