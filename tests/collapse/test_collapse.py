"""Clusters, centroid gradients and bounds of rank collapse: laws of the paper, naive references, planted problems."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import ConvNet, images
from torch import Tensor, nn

from rankfold.collapse import Partition, chain, cross_entropy, kmeans, measure_layers, scatter_of, squared_error
from rankfold.collapse.backward import layer_rows, local_gradients, product_bound, whole_pass
from rankfold.collapse.centroid import NotAChainError, Tail, centroid_gradients, centroids, exact_remainder, gradients
from rankfold.collapse.gradients import gradient_ranks, numerical_rank
from rankfold.collapse.scatter import Scatter
from rankfold.sites import opened

seeds = st.integers(0, 2**31)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def perceptron(widths: tuple[int, ...], seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for n, m in pairwise(widths):
            layers += [nn.Linear(n, m), nn.Tanh()]
        return nn.Sequential(*layers[:-1]).double()


def convolutions(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 6, 3, stride=2), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(6 * 2 * 2, 4)).double()


class Attention(nn.Module):
    """Embedded tokens, one attention layer with a residual, a mean, a head."""

    def __init__(self, tokens: int = 7) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, ids: Tensor) -> Tensor:
        z = self.embed(ids)
        return self.head((z + self.attention(z, z, z)[0]).mean(1))


def one_hot(labels: list[int], classes: int) -> Tensor:
    return torch.eye(classes, dtype=torch.float64)[torch.tensor(labels)]


# --- clusters


def naive_wcss(rows: Tensor, index: Tensor) -> float:
    return sum(float((rows[index == k] - rows[index == k].mean(0)).square().sum()) for k in index.unique()) / len(rows)


@given(n=st.integers(1, 30), d=st.integers(1, 6), k=st.integers(1, 5), cuts=st.integers(1, 4), seed=seeds)
def test_streamed_clusters_are_the_definition(n: int, d: int, k: int, cuts: int, seed: int) -> None:
    rows, labels = draw(n, d, seed=seed) + 100, torch.randint(k, (n,), generator=torch.Generator().manual_seed(seed))
    partition = Partition.of(labels)
    found = Scatter(partition.clusters, d)
    for part, index in zip(rows.tensor_split(cuts), partition.index.tensor_split(cuts), strict=True):
        found.update(part, index)
    numbers = found.clusters("class")
    assert numbers.wcss == pytest.approx(naive_wcss(rows, labels), rel=1e-9, abs=1e-9)
    assert numbers.total == pytest.approx(float((rows - rows.mean(0)).square().sum()) / n, rel=1e-9, abs=1e-9)
    raw_moments = float(rows.float().square().sum() - (rows.float().mean(0).square() * n).sum()) / n
    assert n < 10 or d < 3 or raw_moments != pytest.approx(numbers.total, rel=1e-9)  # what cancellation would give


@settings(max_examples=6)
@given(n=st.integers(6, 8), seed=seeds)
def test_kmeans_is_above_the_least_variation_and_finds_planted_blobs(n: int, seed: int) -> None:
    rows = draw(n, 2, seed=seed)
    best = min(naive_wcss(rows, torch.tensor([(code >> i) & 1 for i in range(n)])) for code in range(1, 2 ** (n - 1)))
    found = scatter_of(rows, kmeans(rows, 2)).clusters("k-means").wcss
    assert best * (1 - 1e-9) <= found <= 1.5 * best
    blob = torch.arange(n) % 3
    planted = 100 * draw(3, 2, seed=seed + 1)[blob] + 1e-3 * rows
    assert scatter_of(planted, kmeans(planted, 3, restarts=8)).clusters("k-means").wcss <= 1e-5


def test_bad_partitions_are_handled_and_said() -> None:
    assert Partition.of(torch.tensor([0, 2, 2]), classes=4).note == "2 of 4 classes have no sample"
    rows = draw(3, 2)
    numbers = scatter_of(rows, Partition.of(torch.tensor([0, 2, 2]))).clusters("class")
    assert "1 cluster consists of one row, in which nothing varies" in numbers.note
    every = kmeans(rows, 10)
    assert every.clusters == 3
    assert "only 3 distinct rows for 10 clusters" in every.note
    assert "as many clusters as rows" in scatter_of(rows, every).clusters("k-means").note
    same = scatter_of(torch.full((4, 3), 0.1), Partition.of(torch.tensor([0, 0, 1, 1]))).clusters("class")
    assert (same.wcss, same.total) == (0, 0)
    assert math.isnan(same.normalised)
    assert "constant features" in same.note
    with pytest.raises(ValueError, match="NaN or infinite"):
        scatter_of(torch.tensor([[math.inf]]), Partition.of(torch.tensor([0])))
    with pytest.raises(ValueError, match="class labels as whole numbers"):
        Partition.of(torch.tensor([0.5]))
    with pytest.raises(ValueError, match="for 3 classes, and run from 0 to 5"):
        Partition.of(torch.tensor([0, 5]), classes=3)


def test_layers_of_a_network_are_measured_in_every_view() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ConvNet().double()
    x, labels = images(40).double(), torch.arange(40) % 5
    batches = [(x[i : i + 16], labels[i : i + 16]) for i in range(0, 40, 16)]
    found = measure_layers(model, batches)
    assert list(found) == ["stem", "block.0", "block.3", "shortcut", "head"]
    stem = found["stem"]
    assert stem.classes["whole"].wcss == pytest.approx(naive_wcss(x.flatten(1), labels))
    assert stem.classes["pooled"].wcss == pytest.approx(naive_wcss(x.mean((2, 3)), labels))
    positions = x.movedim(1, -1).reshape(-1, 3)
    assert stem.classes["position"].wcss == pytest.approx(naive_wcss(positions, labels.repeat_interleave(64)))
    assert all(best.wcss <= layer.classes[v].wcss for layer in found.values() for v, best in layer.best.items())
    assert found["head"].collapse.nc3 > 0  # the classifier alone has a self-duality
    assert math.isnan(stem.collapse.nc3)
    out = measure_layers(model, batches, ["block.1"], side="output")["block.1"]
    model.eval()
    inner = model.block[1](model.block[0](model.norm(model.stem(x)).relu()))
    assert out.classes["whole"].wcss == pytest.approx(naive_wcss(inner.detach().flatten(1), labels))


@pytest.mark.parametrize(("samples", "length"), [(12, 5), (6, 6)])
def test_tokens_belong_to_their_samples(samples: int, length: int) -> None:
    """The projections inside attention are given (length, samples, width); as many tokens as samples hide a mistake."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Attention().double()
    ids = torch.randint(7, (samples, length), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(samples) % 3
    partition, targets = Partition.of(labels), one_hot(labels.tolist(), 5)
    found = measure_layers(model, [(ids[:4], labels[:4]), (ids[4:], labels[4:])])["attention.v_proj"]
    z = model.embed(ids).detach()
    assert found.classes["pooled"].wcss == pytest.approx(naive_wcss(z.mean(1), labels))
    assert found.classes["whole"].wcss == pytest.approx(naive_wcss(z.flatten(1), labels))
    assert found.classes["whole"].wcss != pytest.approx(naive_wcss(z.transpose(0, 1).reshape(samples, -1), labels))
    with opened(model):
        (_, a, delta), *_ = layer_rows(model, ("attention.v_proj",), ids, targets, cross_entropy, 1 / samples)
        near = local_gradients(model, ("attention.v_proj",), ids, targets, partition, cross_entropy)
        of_row = Partition.of(labels.repeat_interleave(length))
        assert torch.allclose(a, z.flatten(0, 1))
        means = [centroids(rows, of_row)[of_row.index] for rows in (delta, a)]
        assert torch.allclose(near["attention.v_proj"], means[0].mT @ means[1], atol=1e-12)
        ranks = gradient_ranks(model, ids[:2], targets[:2], cross_entropy)
    assert ranks["attention.k_proj"].rank == ranks["attention.k_proj"].key <= 2 * (length - 1)
    bounds = chain(model, ids, targets, partition, 0.1, cross_entropy)
    assert bounds.violations == 0
    assert "residual" in bounds.skipped["attention.k_proj"]


def test_features_beyond_memory_are_said_and_k_means_on_a_part_stays_above() -> None:
    model, x, labels = perceptron((6, 5, 3)), draw(200, 6), torch.arange(200) % 3
    data = [(x, labels)]
    whole = measure_layers(model, data)["0"].best["whole"]
    part = measure_layers(model, data, memory=8 * 6 * 20)["0"].best["whole"]
    assert "centres come from a random sample, 20 of 200 rows" in part.note or part.by == "class"
    assert part.wcss >= whole.wcss * (1 - 1e-9)
    none = measure_layers(model, data, memory=8 * 6)["0"]
    assert none.best == {}
    assert none.notes == ("whole: a row has 6 numbers, too many for k-means in memory",)
    with pytest.raises(ValueError, match="no module named 'nothing'"):
        measure_layers(model, data, ["nothing"])
    with pytest.raises(ValueError, match="only once"):
        measure_layers(model, iter(data))
    with pytest.raises(ValueError, match="class label"):
        measure_layers(model, [x])


# --- centroid loss


def problem(seed: int, spread: float = 0.3, classes: int = 3) -> tuple[nn.Sequential, Tensor, Tensor, Partition]:
    labels = torch.arange(24) % classes
    centres = draw(classes, 6, seed=seed)
    x = centres[labels] + spread * draw(24, 6, seed=seed + 1)
    targets = draw(classes, 4, seed=seed + 2)[labels] + spread * draw(24, 4, seed=seed + 3)
    return perceptron((6, 9, 8, 4), seed), x, targets, Partition.of(labels)


@pytest.mark.parametrize(("seed", "cut", "later"), [(0, "", 2), (1, "", 4), (2, "2", 4)])
def test_lemma_3_3_with_the_integral_remainder(seed: int, cut: str, later: int) -> None:
    model, x, targets, partition = problem(seed)
    tail = Tail(model, cut, x[:2])
    z, weight = tail.features(x), model[later].weight
    full = gradients(tail, z, targets, squared_error, [weight])[0]
    small = centroid_gradients(tail, z, targets, partition, squared_error, [weight])[0]
    assert full is not None
    assert small is not None
    assert numerical_rank(small) <= partition.clusters
    remainder = exact_remainder(tail, z, targets, partition, squared_error, weight, nodes=6)
    difference = full - small
    assert float((difference - remainder).norm()) <= 1e-5 * float(difference.norm()) + 1e-10
    one_point = exact_remainder(
        tail, z, targets, partition, squared_error, weight, nodes=1
    )  # the printed Lagrange form
    assert float((difference - one_point).norm()) > 10 * float((difference - remainder).norm())


def test_the_difference_falls_with_the_square_of_the_spread() -> None:
    sizes = []
    for spread in (0.1, 0.05, 0.025, 0.0125):
        model, x, targets, partition = problem(3, spread)
        tail, weight = Tail(model, "", x[:2]), model[4].weight
        pair = [gradients(tail, x, targets, squared_error, [weight])[0]]
        pair.append(centroid_gradients(tail, x, targets, partition, squared_error, [weight])[0])
        sizes.append(float((pair[0] - pair[1]).norm()))  # type: ignore[operator]
    ratios = [a / b for a, b in pairwise(sizes)]
    assert all(3.5 < ratio < 4.5 for ratio in ratios), ratios


def test_labels_alone_make_no_difference() -> None:
    """The refinement of math: g is affine in y, so that equal features with different labels give equal gradients."""
    model, _, targets, partition = problem(5)
    x = draw(3, 6, seed=9)[partition.index]
    tail, weight = Tail(model, "", x[:2]), model[2].weight
    full = gradients(tail, x, targets, squared_error, [weight])[0]
    small = centroid_gradients(tail, x, targets, partition, squared_error, [weight])[0]
    assert float((full - small).norm()) < 1e-14  # type: ignore[operator]
    bent = gradients(tail, x, targets, lambda f, y: (f - y).abs().pow(3).sum(1), [weight])[0]
    other = centroid_gradients(tail, x, targets, partition, lambda f, y: (f - y).abs().pow(3).sum(1), [weight])[0]
    assert float((bent - other).norm()) > 1e-3  # type: ignore[operator]  # a loss that is not affine in y


def test_a_residual_connection_is_no_cut() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ConvNet().double().eval()
    with pytest.raises(NotAChainError, match=r"block\.0: the output depends on more"):
        Tail(model, "block.0", images(2).double())
    Tail(model, "head", images(2).double())


# --- the rank of gradients


def test_gradient_ranks_are_counted_in_what_meets_the_matrix() -> None:
    model, x = perceptron((6, 9, 8, 4)), draw(3, 6)[torch.arange(20) % 3]
    ranks = gradient_ranks(model, x, draw(20, 4, seed=1), squared_error)
    assert {name: (found.rank, found.rows, found.samples) for name, found in ranks.items()} == {
        "0": (3, 3, 20), "2": (3, 3, 20), "4": (3, 3, 20)
    }  # fmt: skip
    # the converse fails: few labels and many inputs
    assert gradient_ranks(model, draw(20, 6), one_hot([i % 3 for i in range(20)], 4), squared_error)["0"].rank == 6
    single = gradient_ranks(convolutions(), draw(1, 2, 6, 6), one_hot([0], 4), cross_entropy)
    assert single["4"].rank == 1
    assert single["2"].rank == single["2"].rows == 4  # one image of four patches, not rank 1
    flat = gradient_ranks(convolutions(), torch.ones(1, 2, 6, 6, dtype=torch.float64), one_hot([0], 4), cross_entropy)
    assert flat["0"].rows == 9  # inner, four edges, four corners
    assert flat["0"].rank <= min(flat["0"].rows, 8)


@given(length=st.integers(2, 6), seed=seeds)
def test_gradient_ranks_of_attention_are_those_of_tokens(length: int, seed: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Attention().double()
    ids = torch.randperm(7, generator=torch.Generator().manual_seed(seed))[:length].unsqueeze(0)
    ranks = gradient_ranks(model, ids, one_hot([1], 5), cross_entropy)
    assert ranks["attention.v_proj"].rank <= ranks["attention.v_proj"].rows == length
    assert ranks["attention.k_proj"].rank <= ranks["attention.k_proj"].key == length - 1
    assert ranks["head"].rank == 1
    assert all(found.rank <= found.bound for found in ranks.values())
    assert ranks["attention.v_proj"].rank > 0


@pytest.mark.parametrize("kind", ["dense", "convolution", "attention"])
def test_rows_give_the_gradient_and_clusters_of_rows_bound_it(kind: str) -> None:
    if kind == "attention":
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model: nn.Module = Attention().double()
        x, targets = torch.randint(7, (6, 5), generator=torch.Generator().manual_seed(0)), one_hot([0, 1, 2] * 2, 5)
        names: tuple[str, ...] = ("head",)
    elif kind == "convolution":
        model, x, targets, names = convolutions(), draw(6, 2, 6, 6), one_hot([0, 1, 2] * 2, 4), ("0", "2", "4")
    else:
        model, x, targets, names = perceptron((6, 9, 4)), draw(6, 6), one_hot([0, 1, 2] * 2, 4), ("0", "2")
    partition = Partition.of(torch.arange(6) % 3)
    cross_entropy(model(x), targets).mean().backward()
    small = local_gradients(model, names, x, targets, partition, cross_entropy)
    for name, a, delta in layer_rows(model, names, x, targets, cross_entropy, 1 / 6):
        weight = model.get_submodule(name).weight
        full = weight.grad.flatten(1)
        assert torch.allclose(delta.mT @ a, full, atol=1e-12)
        rows = Partition.of(partition.index.repeat_interleave(len(a) // 6))
        difference = float((full - small[name]).norm())
        assert 1e-6 < difference <= product_bound(a, delta, rows) * (1 + 1e-9)
        assert numerical_rank(small[name]) <= 3
        # rows exchanged between clusters break the identity behind the bound
        wrong = Partition.of((rows.index + torch.arange(len(a)) % 2) % 3)
        assert product_bound(a, delta, wrong) != pytest.approx(product_bound(a, delta, rows))


def test_a_pass_in_batches_is_the_pass_at_once() -> None:
    model, x, targets, partition = problem(2)
    weights = [model[i].weight for i in (0, 2, 4)]
    once, parts = (
        whole_pass(model, ("0", "2", "4"), x, targets, partition, squared_error, weights, batch_size=size)
        for size in (24, 7)
    )
    for a, b in zip((*once.gradients, *once.local.values()), (*parts.gradients, *parts.local.values()), strict=True):
        assert a is not None
        assert b is not None
        assert torch.allclose(a, b, atol=1e-13)
    assert torch.equal(parts.features["0"], x)
    assert torch.allclose(parts.features["2"], model[:2](x))
    assert torch.allclose(parts.answers, model(x))
    other = whole_pass(model, ("2",), x, targets, Partition.of(torch.arange(24) % 2), squared_error)
    assert not torch.allclose(other.local["2"], once.local["2"], atol=1e-3)  # another partition, other centroids


# --- the chain of theorem 3.4


@given(seed=seeds, decay=st.floats(1e-4, 1.0))
def test_the_chain_holds_at_any_parameters(seed: int, decay: float) -> None:
    model, x, targets, partition = problem(seed % 1000)
    found = chain(model, x, targets, partition, decay, squared_error)
    assert [layer.name for layer in found.layers] == ["0", "2", "4"]
    assert found.violations == 0
    for layer in found.layers:
        values = np.linalg.svd(model[int(layer.name)].weight.detach().numpy(), compute_uv=False)
        assert layer.distance == pytest.approx(np.linalg.norm(values[3:]))
        assert layer.distance <= layer.joint <= layer.bound * (1 + 1e-12)
        assert layer.vacuous == (layer.bound >= layer.norm)


def test_the_chain_is_tight_at_a_stationary_point_and_catches_a_wrong_decay() -> None:
    model, x, _, partition = problem(1, spread=1e-3)
    targets = draw(3, 4, seed=7)[partition.index]
    decay = 0.05
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=300, tolerance_change=0, history_size=100, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = squared_error(model(x), targets).mean() + decay / 2 * sum(p.square().sum() for p in model.parameters())
        value.backward()
        return value

    optimizer.step(closure)
    found = chain(model, x, targets, partition, decay, squared_error)
    assert found.violations == 0
    assert all(layer.residual_part < 1e-3 for layer in found.layers)
    assert not any(layer.vacuous for layer in found.layers)
    assert all(layer.distance < 1e-2 * layer.norm for layer in found.layers)
    # λ‖Θ‖² has κ = 2λ: taking λ for κ leaves a residual
    half = chain(model, x, targets, partition, decay / 2, squared_error)
    assert all(layer.residual_part > 0.1 * layer.norm for layer in half.layers)


def test_the_chain_of_convolutions_counts_the_patches_of_centroids() -> None:
    model, x = convolutions(), draw(12, 2, 6, 6)
    found = chain(model, x, one_hot([0, 1, 2] * 4, 4), Partition.of(torch.arange(12) % 3), 0.1, cross_entropy)
    assert found.violations == 0
    first, _, last = found.layers
    assert first.excess > 1e-3  # three centroids have more than three patches
    assert last.excess < 1e-10
    with pytest.raises(ValueError, match="decay must be above 0"):
        chain(model, x, one_hot([0] * 12, 4), Partition.of(torch.zeros(12, dtype=torch.long)), 0.0, cross_entropy)


def test_a_network_with_residuals_has_the_cuts_that_exist() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ConvNet().double()
    partition = Partition.of(torch.arange(10) % 5)
    targets = one_hot([i % 5 for i in range(10)], 5)
    found = chain(model, images(10).double(), targets, partition, 0.1, cross_entropy)
    assert found.violations == 0
    assert "residual" in found.skipped["block.0"]
    assert "head" not in found.skipped
    assert model.training  # left as found
