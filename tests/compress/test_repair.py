"""BatchNorm correction relative to the original network."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from rankfold.compress.repair.batchnorm import Reference, moments, reestimate_


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


@given(
    st.tuples(st.integers(1, 9), st.integers(1, 5), st.integers(1, 7), st.integers(1, 7)),
    st.integers(2, 4),
    st.sampled_from((torch.float32, torch.float64, torch.bfloat16)),
    st.floats(-1e3, 1e3),
    st.integers(1, 200),
    st.booleans(),
)
def test_moments_are_those_of_float64_rows(shape, axes, dtype, offset, at_once, last):
    """However far the mean lies from zero, however many samples are taken at a time, in either memory layout."""
    x = torch.randn(shape[:axes], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = (x + offset * torch.linspace(0.5, 1, shape[1]).view(-1, *(1,) * (axes - 2))).to(dtype)
    if last and axes == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    rows = x.double().movedim(1, -1).reshape(-1, x.shape[1])
    deviation = rows.var(0, unbiased=False).sqrt()
    # of single rows on a coarse grid the deviation may be nothing: then rounding is measured against the values
    unit = deviation + torch.finfo(torch.float64 if dtype is torch.float64 else torch.float32).eps * rows.abs().amax(0)
    count, mean, square = moments(x, at_once)
    assert count.dtype == mean.dtype == square.dtype == torch.float64
    assert bool((count == len(rows)).all())
    variance = square / count
    assert bool(((mean - rows.mean(0)).abs() <= 1e-6 * unit).all())
    assert bool(((variance - deviation.square()).abs() <= 2e-6 * unit.square()).all())


def test_moments_take_no_copy_of_the_activations():
    """What one float32 sum of squares would lose: a mean a thousand times the deviation."""
    x = 1000 + torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    exact = x.double().var((0, 2, 3), unbiased=False)
    naive = x.square().mean((0, 2, 3)) - x.mean((0, 2, 3)).square()
    assert bool(((naive.double() / exact - 1).abs() > 1e-3).any())
    assert bool(((moments(x)[2] / (64 * 256) / exact - 1).abs() < 1e-6).all())


def naive_reestimate_(model: nn.Module, original: nn.Module, batches: list[Tensor]) -> None:
    """The formula, norm after norm, batch after batch, on the float64 rows of all batches so far."""
    norms = [name for name, module in original.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    start = {name: copy.deepcopy(original.get_submodule(name)) for name in norms}
    here: dict[str, list[Tensor]] = {name: [] for name in norms}
    there: dict[str, list[Tensor]] = {name: [] for name in norms}

    def met(network: nn.Module, name: str, x: Tensor) -> Tensor:
        seen = []
        handle = network.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        with torch.no_grad():
            network(x)
        handle.remove()
        return seen[0].double().movedim(1, -1).reshape(-1, seen[0].shape[1])

    for x in batches:
        for name in norms:  # each after those before it have been corrected with this batch
            here[name].append(met(model, name, x))
            there[name].append(met(original, name, x))
            rows, rows0 = torch.cat(here[name]), torch.cat(there[name])
            m, m0, v, v0 = rows.mean(0), rows0.mean(0), rows.var(0, unbiased=False), rows0.var(0, unbiased=False)
            norm, before = model.get_submodule(name), start[name]
            norm.running_mean.copy_(m + (before.running_mean - m0) * (v / v0).sqrt())
            norm.running_var.copy_(before.running_var * v / v0)


def compressed(original: nn.Module, seed: int) -> nn.Module:
    model = copy.deepcopy(original)
    generator = torch.Generator().manual_seed(seed)
    for parameter in (model[0].weight, model[3].weight):
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def test_the_formula_is_followed():
    original = network()
    model, expected = compressed(original, 0), compressed(original, 0)
    batches = [samples(16, 1), samples(24, 2), samples(16, 3)]
    reestimate_(model, original, batches)
    naive_reestimate_(expected, original, batches)
    for name, value in model.state_dict().items():
        assert torch.allclose(value, expected.state_dict()[name], rtol=1e-5, atol=1e-5), name


def test_a_reference_runs_the_original_once_on_each_batch():
    original, twin = network(), network()
    runs: list[int] = []
    original.register_forward_pre_hook(lambda *_: runs.append(1))
    reference = Reference(original)
    batches = [samples(16, 1), samples(24, 2)]
    for seed, data in enumerate((batches, batches[::-1], batches)):
        alone, shared = compressed(twin, seed), compressed(twin, seed)
        reestimate_(shared, reference, data)
        assert len(runs) == 3  # two batches, and two samples for the memory layout
        reestimate_(alone, twin, data)
        for name, value in alone.state_dict().items():
            assert torch.equal(value, shared.state_dict()[name]), name
    reestimate_(compressed(twin, 0), reference, [samples(16, 7)])  # other data of the same shape
    assert len(runs) == 4
    assert not original[1]._forward_pre_hooks


class Viewed(nn.Module):
    """Takes no channels-last batch: `view` over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.view(len(x), -1).view(x.shape))


def test_a_network_that_takes_no_channels_last_is_run_as_it_is():
    original = Viewed().eval()
    model, expected = copy.deepcopy(original), copy.deepcopy(original)
    model.body, expected.body = compressed(original.body, 0), compressed(original.body, 0)
    reestimate_(model, original, samples())
    naive_reestimate_(expected.body, original.body, [samples()])
    for name, value in model.state_dict().items():
        assert torch.allclose(value, expected.state_dict()[name], rtol=1e-5, atol=1e-5), name


@pytest.mark.parametrize("rows", [64, 2, 1])
@pytest.mark.parametrize("sorted_", [False, True], ids=["as they come", "sorted"])
def test_how_the_data_lie_in_batches_is_all_one(rows, sorted_):
    """What lies between batches counts too: in batches of one sample that is all there is."""
    original, x = two_layers()
    model = compressed_first(original)
    if sorted_:
        x = x[(x @ torch.linalg.svd(original[0].weight.detach())[2][0]).argsort()]
    assert reestimate_(model, original, x, batch_size=rows) == ("1",)
    with torch.no_grad():
        wide, then = model[0](x).double().var(0), original[0](x).double().var(0)
    expected = original[1].running_var * wide / then
    assert torch.allclose(model[1].running_var.double(), expected, rtol=1e-4)
    assert float((wide / then - 1).abs().mean()) > 0.2  # there was something to correct


def two_layers() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32)), torch.randn(256, 16)
    model.train()
    for _ in range(40):
        model(x)
    return model.eval(), x


def compressed_first(original: nn.Sequential) -> nn.Sequential:
    model = copy.deepcopy(original)
    left, values, right = torch.linalg.svd(model[0].weight.detach(), full_matrices=False)
    model[0].weight.data = (left[:, :4] * values[:4]) @ right[:4]
    return model


@pytest.mark.parametrize("broken", ["original", "compressed"])
def test_what_is_not_finite_is_refused_and_nothing_is_changed(broken):
    original, x = two_layers()
    model = compressed_first(original)
    if broken == "original":
        x[-1, 2] = float("nan")
    else:
        model[0].weight.data[3] = float("inf")
    before = copy.deepcopy(model.state_dict())
    said = rf"^1 \(BatchNorm1d\): .* inputs in the {broken} network are NaN or infinite: look for bad samples"
    with pytest.raises(ValueError, match=said):
        reestimate_(model, original, x, batch_size=64)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_error_in_a_later_batch_leaves_no_half_of_a_correction():
    original, x = two_layers()
    model = compressed_first(original)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="16"):
        reestimate_(model, original, [x[:64], x[64:128], torch.randn(8, 9)])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
