"""Measures of layers where the definition is easily missed: far from 0, in padded sequences, with few clusters."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from rankfold.collapse import CollapseProbe, Partition, measure_layers, scatter_of
from rankfold.collapse.neural_collapse import Projected, neural_collapse


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def nc1_as_defined(rows: Tensor, labels: Tensor) -> float:
    """tr(Σ_W Σ_B⁺)/K, the inverse on the K − 1 axes that centred means can span."""
    rows, classes = rows.double(), labels.unique()
    means = torch.stack([rows[labels == k].mean(0) for k in classes])
    parts = [rows[labels == k] - rows[labels == k].mean(0) for k in classes]
    within = sum(part.mT @ part for part in parts) / len(rows)
    _, s, vh = torch.linalg.svd((means - means.mean(0)) / math.sqrt(len(classes)), full_matrices=False)
    axes = vh[: len(classes) - 1]
    return float(((axes @ within) * axes).sum(1).div(s[: len(classes) - 1].square()).sum()) / len(classes)


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("far", [0, 10, 100, 1e4])
def test_nc1_of_class_means_near_each_other_is_that_of_the_definition_however_far_they_are(
    far: float, classes: int
) -> None:
    """The last singular value of centred means is rounding, which is of the size of the means: 2.4e28 in place of 6."""
    labels = torch.arange(400) % classes
    rows = far + 0.3 * drawn(400, 8) + 0.05 * drawn(classes, 8, seed=1)[labels]
    model, data = nn.Sequential(nn.Linear(8, 8)), [(rows[:150], labels[:150]), (rows[150:], labels[150:])]
    expected = pytest.approx(nc1_as_defined(rows, labels), rel=1e-6)
    assert measure_layers(model, data)["0"].collapse.nc1 == expected
    assert CollapseProbe(data)(model)["0"]["nc1"] == expected


def test_class_means_on_a_line_far_away_have_one_axis() -> None:
    """Three means span one axis, not two: the second singular value is rounding, far above eps of the first."""
    labels = torch.arange(300) % 3
    rows = 100 + 0.3 * drawn(300, 8).double() + 0.05 * labels[:, None]
    rows += torch.stack([100 + 0.05 * k - rows[labels == k].mean(0) for k in range(3)])[labels]
    scatter = scatter_of(rows, Partition.of(labels))
    projected = Projected(scatter)
    projected.update(rows, labels)
    assert len(projected.axes) == 1
    centred = rows - scatter.means[labels]
    along = centred @ torch.ones(8, dtype=torch.float64) / math.sqrt(8)
    spread = 8 * (0.05**2) * 2 / 3
    assert projected.nc1 == pytest.approx(float(along.square().mean()) / spread / 3, rel=1e-6)


def test_class_means_that_coincide_up_to_rounding_coincide() -> None:
    labels = torch.arange(300) % 3
    rows = 1e3 + drawn(300, 8).double()
    rows += torch.stack([1e3 - rows[labels == k].mean(0) for k in range(3)])[labels]
    scatter = scatter_of(rows, Partition.of(labels))
    assert 0 < float((scatter.means - scatter.means.mean(0)).norm()) < 1e-11
    projected = Projected(scatter)
    projected.update(rows, labels)
    found = neural_collapse(scatter, projected, drawn(3, 8))
    assert found.cdnv == math.inf
    assert all(math.isnan(value) for value in (found.nc1, found.nc2_norms, found.nc2_angles, found.nc3))


def test_rows_far_from_0_go_to_their_nearest_centre() -> None:
    """Squares of 1e8 leave no digits for clusters .1 apart: k-means then looked worse than no clusters at all."""
    labels = torch.arange(200) % 2
    blob = torch.arange(200) // 2 % 2
    rows = 1e8 + 0.1 * blob[:, None].double() + 0.01 * drawn(200, 4).double()
    found = measure_layers(nn.Sequential(nn.Linear(4, 4)).double(), [(rows, labels)])["0"].best["whole"]
    spread = torch.cat([rows[blob == k] - rows[blob == k].mean(0) for k in (0, 1)])
    assert found.wcss == pytest.approx(float(spread.square().sum()) / 200, rel=1e-4)


# --- padding


class Padded(nn.Module):
    """Tokens in, means over the real ones out; what stands in padding is no number at one layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.body = nn.Embedding(30, 12), nn.Linear(12, 10)
        self.local, self.head = nn.Conv1d(12, 12, 1), nn.Linear(10, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        found = self.local(self.embed(input_ids).mT).mT
        found = torch.tanh(self.body(torch.where(attention_mask.bool().unsqueeze(-1), found, found.log())))
        found = found.nan_to_num() * attention_mask.unsqueeze(-1)
        return self.head(found.sum(1) / attention_mask.sum(1, keepdim=True))


def sequences(length: int, lengths: Tensor) -> list[dict[str, Tensor]]:
    ids = torch.randint(1, 30, (len(lengths), 6), generator=torch.Generator().manual_seed(1))
    padded = nn.functional.pad(ids, (0, length - 6), value=29)
    mask = (torch.arange(length) < lengths[:, None]).long()
    every = {"input_ids": padded, "attention_mask": mask, "labels": torch.arange(len(lengths)) % 3}
    return [{key: value[part] for key, value in every.items()} for part in (slice(0, 25), slice(25, None))]


@pytest.mark.parametrize("even", [True, False])
def test_padding_is_no_data(even: bool) -> None:
    """However long it is: positions, means over them and clusters are those of the real tokens alone."""
    model = Padded().eval()
    lengths = torch.full((60,), 4) if even else 2 + torch.arange(60) % 5
    short, long = (measure_layers(model, sequences(size, lengths)) for size in (6, 40))
    tables = [CollapseProbe(sequences(size, lengths))(model) for size in (6, 40)]
    ids, labels = (torch.cat([part[key] for part in sequences(6, lengths)]) for key in ("input_ids", "labels"))
    tokens = model.embed(ids).detach().double()
    entering = {"local": tokens, "body": model.local(model.embed(ids).mT).mT.detach().double()}
    for name, features in entering.items():
        rows = [one[:count] for one, count in zip(features, lengths, strict=True)]
        pooled = torch.stack([row.mean(0) for row in rows])
        for found in (short[name], long[name]):
            of_row = Partition.of(labels.repeat_interleave(lengths))
            positions = scatter_of(torch.cat(rows), of_row).clusters("class")
            assert found.classes["position"].rows == int(lengths.sum())
            assert found.classes["position"].wcss == pytest.approx(positions.wcss, rel=1e-5)
            assert found.best["position"].normalised == pytest.approx(short[name].best["position"].normalised, rel=1e-3)
            expected = scatter_of(pooled, Partition.of(labels)).clusters("class").wcss
            assert found.classes["pooled"].wcss == pytest.approx(expected, rel=1e-5)
            assert found.collapse.nc1 == pytest.approx(nc1_as_defined(pooled, labels), rel=1e-4)
            assert ("whole" in found.classes) == even
            assert even or found.notes[0].startswith("whole: the samples have different sizes")
        for table in tables:
            assert table[name]["wcss"] == pytest.approx(expected, rel=1e-5)
            assert table[name]["nc1"] == pytest.approx(nc1_as_defined(pooled, labels), rel=1e-4)
    if even:
        whole = scatter_of(torch.stack([one[:4].flatten() for one in tokens]), Partition.of(labels)).clusters("class")
        assert long["local"].classes["whole"].wcss == pytest.approx(whole.wcss, rel=1e-5)


# --- the least variation


def test_tcv_is_a_bound_for_as_many_clusters_as_were_asked() -> None:
    """Ten classes tell nothing of two clusters: by 2,000 random partitions into two, none is below."""
    labels = torch.arange(100) % 10
    rows = 3 * drawn(10, 6, seed=1)[labels] + 0.1 * drawn(100, 6)
    model, data = nn.Sequential(nn.Linear(6, 10)), [(rows, labels)]
    found = measure_layers(model, data, clusters=2)["0"]
    vectors = torch.cat([rows.double(), nn.functional.one_hot(labels).double()], 1)

    def variation(index: Tensor) -> float:
        return scatter_of(vectors, Partition.of(index)).clusters("any").wcss

    assert found.best["whole"].clusters == 2
    assert found.tcv["whole"] == pytest.approx(found.best["whole"].variation)
    generator = torch.Generator().manual_seed(0)
    axes = torch.randn(2000, vectors.shape[1], generator=generator, dtype=torch.float64)
    least = min(variation((vectors @ axis > (vectors @ axis).median()).long()) for axis in axes)
    assert 0.7 * least < found.tcv["whole"]
    assert found.classes["whole"].variation < 0.1 * found.tcv["whole"]  # which was taken
    assert measure_layers(model, data)["0"].tcv["whole"] == pytest.approx(found.classes["whole"].variation)
    assert measure_layers(model, data, clusters=0)["0"].tcv["whole"] == pytest.approx(found.classes["whole"].variation)
    assert measure_layers(model, data, clusters=2, memory=8)["0"].tcv == {}
