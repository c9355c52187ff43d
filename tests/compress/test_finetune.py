"""Fine-tuning: a network that lost its accuracy gets it back from the original."""

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from rankfold.compress.repair.finetune import FINETUNE, finetune, finetune_recipe
from rankfold.train import Augment, Recipe, TrainingError, evaluate, fit


@dataclass
class Parts:
    train: Any
    validation: Any


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.from_numpy(images).float() / 8 - 1, torch.from_numpy(labels).long()
    return Parts((images[:800], labels[:800]), (images[800:1100], labels[800:1100]))


def test_a_truncated_network_recovers(digits):
    torch.manual_seed(0)
    original = nn.Sequential(nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 10))
    fit(original, digits.train, digits.validation, Recipe(epochs=5, batch_size=64))
    left, values, right = torch.linalg.svd(original[0].weight.detach())
    down, up = nn.Linear(64, 6, bias=False), nn.Linear(6, 48)
    with torch.no_grad():
        down.weight.copy_(right[:6])
        up.weight.copy_(left[:, :6] * values[:6])
        up.bias.copy_(original[0].bias)
    small = nn.Sequential(nn.Sequential(down, up), *deepcopy(original)[1:])
    # few steps from a bad start: larger ones than by default
    recipe = replace(finetune_recipe(digits, epochs=5), learning_rate=0.02)
    history = finetune(small, digits, teacher=original, recipe=recipe)
    before, after = history.start.accuracy, evaluate(small, digits.validation).accuracy
    assert after > before + 0.05
    assert after > 0.85
    assert after == history.best.validation_accuracy


def test_labels_alone_are_possible(digits):
    model = nn.Linear(64, 10)
    history = finetune(
        model,
        (digits.train, digits.validation),
        teacher=nn.Linear(64, 10),
        recipe=replace(FINETUNE.without_teacher(), epochs=8, learning_rate=0.02),
    )
    assert history.best.validation_accuracy > 0.8


def test_only_photographs_are_mirrored(digits):
    labels = torch.zeros(2, dtype=torch.int64)
    for shape, expected in (
        ((3, 32, 32), Augment(4, flip=True)),
        ((3, 64, 48), Augment(6, flip=True)),
        ((1, 28, 28), None),
        ((3, 8, 8), None),
        ((64,), None),
    ):
        pair = (torch.zeros(2, *shape), labels)
        assert finetune_recipe((pair, pair)).augment == expected


def test_data_without_a_validation_part_is_refused(digits):
    with pytest.raises(TrainingError, match="validation"):
        finetune(nn.Linear(64, 10), digits.train[0], teacher=nn.Linear(64, 10))


def test_the_test_part_of_three_is_left_alone(digits):
    model = nn.Linear(64, 10)
    history = finetune(model, (digits.train, digits.validation, "never read"), teacher=deepcopy(model), epochs=1)
    assert len(history.epochs) == 1
    with pytest.raises(TrainingError, match=r"\(train, validation\).* not a list of 3"):
        finetune(model, [digits.train] * 3, teacher=model)


def test_epochs_alone_are_enough_and_two_answers_are_refused(digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    history = finetune(model, digits, teacher=model, epochs=2)
    assert len(history.epochs) == 2
    with pytest.raises(TrainingError, match="give either a recipe"):
        finetune(model, digits, teacher=model, recipe=finetune_recipe(digits), epochs=2)


class Encoder(nn.Module):
    """Sequences (B, 6, 8) with a padding mask, which sends torch's eval-mode encoder into its fused kernels."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens, padding):
        return {"logits": self.head(self.encoder(tokens, src_key_padding_mask=padding).mean(1))}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("fused", [True, False])
def test_a_masked_encoder_teaches_in_bfloat16(fused):
    torch.manual_seed(0)
    padding = torch.zeros(4, 6, dtype=torch.bool)
    padding[:, 4:] = True
    batches = [{"tokens": torch.randn(4, 6, 8), "padding": padding, "labels": torch.tensor([0, 1, 2, 0])}]
    teacher = Encoder()
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fused)
    try:
        recipe = replace(finetune_recipe((batches, batches), epochs=1), precision="bfloat16")
        history = finetune(deepcopy(teacher), (batches, batches), teacher=teacher, recipe=recipe)
        assert torch.backends.mha.get_fastpath_enabled() == fused
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    assert len(history.epochs) == 1
