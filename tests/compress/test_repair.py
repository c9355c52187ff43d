"""BatchNorm correction relative to the original network."""

import copy

import pytest
import torch
from torch import Tensor, nn

from rankfold.compress.repair.batchnorm import reestimate_


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4),
        nn.Flatten(), nn.Linear(4 * 4 * 4, 5), nn.BatchNorm1d(5),
    )  # fmt: skip
    model.train()
    for _ in range(20):
        model(torch.randn(32, 3, 8, 8) * 2 + 1)
    return model.eval()


def samples(count: int = 64, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_nothing_changes_where_nothing_was_compressed() -> None:
    """On data of another distribution than the training data, where plain re-estimation would change everything."""
    original = network()
    model = copy.deepcopy(original)
    assert reestimate_(model, original, samples()) == ()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, original.state_dict()[name]), name


def test_scaled_and_shifted_layers_are_undone() -> None:
    """A channelwise affine error in front of a BatchNorm is exactly what its statistics can repair."""
    original = network()
    model = copy.deepcopy(original)
    scale = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.7, 1.3])
    model[0].weight.data *= scale.view(-1, 1, 1, 1)
    model[3].bias.data += 1.5
    x = samples()
    assert not torch.allclose(model(x), original(x), atol=1e-2)
    changed = reestimate_(model, original, x)
    assert {"1", "4"} <= set(changed)
    # eps inside the BatchNorm keeps the scaled channels from being exactly equal
    assert torch.allclose(model(x), original(x), atol=1e-3)


def test_means_alone_would_not_do() -> None:
    original = network()
    model = copy.deepcopy(original)
    model[0].weight.data *= 0.5
    x = samples()
    reestimate_(model, original, x)
    wrong = copy.deepcopy(model)
    wrong[1].running_var.copy_(original[1].running_var)
    right_error, wrong_error = ((net(x) - original(x)).norm() for net in (model, wrong))
    assert right_error < 0.1 * wrong_error


def test_batches_are_averaged_and_order_of_modes_is_left() -> None:
    original = network()
    model = copy.deepcopy(original)
    model[0].weight.data *= 0.5
    model[1].train()
    reestimate_(model, original, [samples(16, 1), samples(16, 2)])
    assert model[1].training
    assert not model.training
    assert not model[0]._forward_pre_hooks
    assert not original[1]._forward_pre_hooks
    expected = 0.5 * original[1].running_mean  # a halved layer: everything halves
    assert torch.allclose(model[1].running_mean, expected, atol=1e-5)


def test_empty_data_and_models_without_norms() -> None:
    original = network()
    with pytest.raises(ValueError, match="empty"):
        reestimate_(copy.deepcopy(original), original, [])
    plain = nn.Sequential(nn.Linear(3, 3))
    assert reestimate_(plain, plain, torch.zeros(2, 3)) == ()
