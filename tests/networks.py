"""Small models with random weights, each with a batch as a data loader would give it."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

TOKENS = 60


class ConvNet(nn.Module):
    """Convolutions with BatchNorm, a residual branch, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.block = nn.Sequential(
            nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(inplace=True),
            nn.Conv2d(12, 12, 3, padding=1, groups=2),
        )
        self.shortcut = nn.Conv2d(8, 12, 1, stride=2)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        return self.head((self.block(x) + self.shortcut(x)).mean((2, 3)))


class Encoder(nn.Module):
    """``nn.TransformerEncoder`` over token embeddings, with a padding mask, and a linear head."""

    def __init__(self, layers: int = 2, norm_first: bool = False, activation: str = "relu") -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, 16)
        layer = nn.TransformerEncoderLayer(
            16, 4, 24, batch_first=True, norm_first=norm_first, activation=activation, dropout=0.1
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="enable_nested_tensor is True")
            self.encoder = nn.TransformerEncoder(layer, layers)
        self.head = nn.Linear(16, 5)

    def forward(self, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
        hidden = self.encoder(self.embed(tokens), src_key_padding_mask=padding)
        keep = 1.0 if padding is None else (~padding).unsqueeze(-1).to(hidden.dtype)
        return self.head((hidden * keep).sum(1))


class EncoderDecoder(nn.Module):
    """``nn.Transformer`` with a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="enable_nested_tensor is True")
            self.transformer = nn.Transformer(16, 4, 1, 1, 24, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1], dtype=target.dtype)
        return self.head(self.transformer(source, target, tgt_mask=mask, tgt_is_causal=True))


def tokens(batch: int = 6, length: int = 10, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Token numbers and their attention mask; half of the samples are padded."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[: batch // 2, length - 3 :] = 0
    return torch.randint(0, TOKENS, (batch, length), generator=generator), mask


def images(batch: int = 6, side: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


def conv_net() -> tuple[nn.Module, Any]:
    return ConvNet(), (images(), torch.zeros(6, dtype=torch.long))


def encoder() -> tuple[nn.Module, Any]:
    ids, mask = tokens()
    return Encoder(), ((ids, mask == 0), torch.zeros(6, dtype=torch.long))


def encoder_decoder() -> tuple[nn.Module, Any]:
    generator = torch.Generator().manual_seed(0)
    source, target = (torch.randn(6, length, 16, generator=generator) for length in (7, 5))
    return EncoderDecoder(), ((source, target), None)


def gpt2() -> tuple[nn.Module, Any]:
    from transformers import GPT2Config, GPT2LMHeadModel

    ids, mask = tokens()
    config = GPT2Config(
        vocab_size=TOKENS, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return GPT2LMHeadModel(config), {"input_ids": ids, "attention_mask": mask}


def t5() -> tuple[nn.Module, Any]:
    from transformers import T5Config, T5ForConditionalGeneration

    ids, mask = tokens()
    config = T5Config(
        vocab_size=TOKENS, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, decoder_start_token_id=0
    )
    return T5ForConditionalGeneration(config), {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids}


def bert() -> tuple[nn.Module, Any]:
    from transformers import BertConfig, BertForSequenceClassification

    ids, mask = tokens()
    config = BertConfig(
        vocab_size=TOKENS,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=16,
    )
    labels = torch.arange(6) % 2
    return BertForSequenceClassification(config), {"input_ids": ids, "attention_mask": mask, "labels": labels}


def bert_without_head() -> tuple[nn.Module, Any]:
    from transformers import BertModel

    classifier, batch = bert()
    return BertModel(classifier.config), {key: value for key, value in batch.items() if key != "labels"}


def llama() -> tuple[nn.Module, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    ids, mask = tokens()
    config = LlamaConfig(
        vocab_size=TOKENS,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16,
    )
    return LlamaForCausalLM(config), {"input_ids": ids, "attention_mask": mask}


def falcon() -> tuple[nn.Module, Any]:
    """Its linear layers are of a class of its own."""
    from transformers import FalconConfig, FalconForCausalLM

    torch.manual_seed(0)
    model = FalconForCausalLM(
        FalconConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, multi_query=False)
    )
    ids, _ = tokens()
    return model.eval(), {"input_ids": ids}


def vit() -> tuple[nn.Module, Any]:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=16,
        patch_size=4,
    )
    return ViTForImageClassification(config), {"pixel_values": images(side=16)}


TORCH = {"conv_net": conv_net, "encoder": encoder, "encoder_decoder": encoder_decoder}
HUGGING_FACE = {
    "gpt2": gpt2,
    "t5": t5,
    "bert": bert,
    "bert_without_head": bert_without_head,
    "llama": llama,
    "vit": vit,
}
NETWORKS = TORCH | HUGGING_FACE
OWN_LAYERS = {"falcon": falcon}  # its blocks write in place, which no chain goes through


def network(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Any]:
    """The model in eval mode, and one batch; weights large enough that every layer matters."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, batch = (NETWORKS | OWN_LAYERS)[name]()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, parameter[0].numel() ** -0.5)
    return model.to(dtype).eval(), batch
