"""Networks and data of a user's own, small ones of every kind: factories for the command line."""

import torch
from torch import nn
from torch.utils.data import TensorDataset

import rankfold as rf


def _draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _numbers(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = _draw(count, 8, seed=seed)
    return x, torch.sin(x @ _draw(8, 2, seed=9) / 4)


def regression() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))
    recipe = rf.Recipe(epochs=8, batch_size=50, optimizer="adam", learning_rate=1e-2)
    rf.fit(model, _numbers(400, 1), None, recipe)
    return model


def numbers():
    return TensorDataset(*_numbers(200, 1)), TensorDataset(*_numbers(60, 2))


def inputs():
    return _numbers(200, 1)[0], _numbers(60, 2)[0]


worst = rf.objective(
    "worst error",
    loss=lambda output, batch: (output - batch[1]).square().mean(),
    figure=lambda output, batch: (output - batch[1]).abs().amax(1),
)


def judged():
    return numbers()


judged.objective = worst


def segmenter() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 16, 3, padding=1), nn.Conv2d(16, 3, 1)
    )


def maps():
    def part(count: int, seed: int):
        x = _draw(count, 1, 6, 6, seed=seed)
        return x, torch.bucketize(x.squeeze(1), torch.tensor([-0.5, 0.5]))

    return part(60, 1), part(20, 2)


def encoder() -> nn.Module:
    from transformers import AutoModel, BertConfig

    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                        num_attention_heads=2, max_position_embeddings=16)  # fmt: skip
    return AutoModel.from_config(config).eval()


def sentences():
    ids = torch.randint(1, 50, (40, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[::2, 4:] = 0
    rows = [{"input_ids": i, "attention_mask": m, "idx": torch.tensor(k)} for k, (i, m) in enumerate(zip(ids, mask))]
    return rows[:30], rows[30:]


def language() -> nn.Module:
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=16, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=2)  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


def tokens():
    ids = (torch.arange(16)[:, None] + torch.arange(8)) % 16
    return [{"input_ids": ids, "labels": ids}] * 4, [{"input_ids": ids, "labels": ids}], [{"input_ids": ids}]
