"""Samples of shapes of their own, which a model takes as a list: told from lists of parts, counted, cut, compressed."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

import rankfold as rf
from rankfold.batches import LeftOut, Listed, batches_of, labels_of, marked, size_of
from rankfold.costs import Example
from rankfold.costs.example import with_batch
from rankfold.export import ExportError, to_torch_export
from rankfold.train import TrainingError

SHAPES = ((20, 30), (25, 21), (40, 22), (23, 23))
PICTURES = [torch.randn(3, *SHAPES[i % 4], generator=torch.Generator().manual_seed(i)) for i in range(16)]
FOUND = [{"boxes": torch.rand(i % 3 + 1, 4), "labels": torch.ones(i % 3 + 1).long()} for i in range(16)]
SERIES = [torch.randn(3 + i % 5, 5, generator=torch.Generator().manual_seed(i)) for i in range(64)]
CLASSES = torch.arange(64) % 4


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.box, self.score = nn.Linear(3, 16), nn.Linear(16, 4), nn.Linear(16, 6)

    def forward(self, images, targets=None):
        wide = torch.stack([F.interpolate(each[None], (8, 8))[0] for each in images]).flatten(2).mean(2)
        return [
            {"boxes": self.box(row)[None], "scores": self.score(row)[None]} for row in torch.tanh(self.body(3 * wide))
        ]


class Grouped(nn.Module):
    """Means over series of any length, all in one list."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(5, 24), nn.Linear(24, 4)

    def forward(self, series):
        hidden = torch.tanh(self.one(torch.cat(list(series))))
        return self.two(torch.stack([part.mean(0) for part in hidden.split([len(each) for each in series])]))


def built(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def in_batches(samples, targets, size, form):
    """As collate functions give them."""
    for start in range(0, len(samples), size):
        part = slice(start, start + size)
        own, wanted = samples[part], targets[part]
        yield {
            "zipped": (tuple(own), tuple(wanted)),
            "lists": (own, list(wanted)),
            "one argument": ((own,), wanted),
            "without targets": ((own,),),
            "by name": {"images": own, "labels": wanted},
            "series by name": {"series": own, "labels": wanted},
        }[form]


@pytest.mark.parametrize("form", ["zipped", "lists", "one argument", "without targets", "by name"])
def test_pictures_of_several_sizes_are_samples_in_every_form(form):
    data = list(in_batches(PICTURES, FOUND, 3, form))
    assert [size_of(batch) for batch in data] == [3, 3, 3, 3, 3, 1]
    cut = list(batches_of(data, limit=5))
    assert [size_of(batch) for batch in cut] == [3, 2]
    if form != "without targets":
        assert len(labels_of(cut[-1])) == 2
    plan = rf.plan(built(Detector), "params=0.7", data=data)
    one = rf.model_cost(built(Detector), (PICTURES[:1],))
    assert plan.before.flops == one.flops == 2 * (3 * 16 + 16 * 4 + 16 * 6)


@pytest.mark.parametrize("form", ["one argument", "without targets", "series by name"])
def test_what_series_in_a_list_cost_does_not_depend_on_the_size_of_batches(form):
    told = [
        rf.plan(built(Grouped), rf.Ranks({"one": 3}), data=list(in_batches(SERIES, CLASSES, size, form)))
        for size in (1, 4, 16)
    ]
    assert [plan.before.flops for plan in told] == [2 * (3 * 5 * 24 + 24 * 4)] * 3
    forecasts = [plan.total.value for plan in told]
    assert all(each == pytest.approx(forecasts[0], rel=0.3) for each in forecasts)


def test_a_detector_costs_what_its_pictures_cost_one_by_one():
    model = built(Detector)
    plans = [
        rf.plan(model, rf.Ranks({"body": 1}), data=list(in_batches(PICTURES, FOUND, size, "zipped"))) for size in (1, 8)
    ]
    assert plans[0].total.value == pytest.approx(plans[1].total.value, rel=0.3)
    small = rf.apply_(copy.deepcopy(model), plans[0])
    judged = [
        rf.evaluate(
            small, list(in_batches(PICTURES, FOUND, size, "zipped")), objective="teacher", teacher=model
        ).judged.value
        for size in (1, 8)
    ]  # fmt: skip
    assert judged[0] == pytest.approx(judged[1], rel=0.2)


maps, rows = [torch.ones(8, 16, 9, 9), torch.ones(8, 32, 5, 5)], torch.ones(8)
LISTS = {  # a batch, and how many samples it holds
    "maps of several scales": (((maps,), rows), 8),
    "maps without targets": (((maps,),), 8),
    "columns of a table": ((([torch.ones(6, 3), torch.ones(6, 2)],), torch.ones(6)), 6),
    "columns beside numbers": (((torch.ones(6, 3), [torch.ones(9).long(), torch.ones(4).long()]), torch.ones(6)), 6),
    "several inputs and targets": (((torch.ones(5, 3), torch.ones(5, 2)), (torch.ones(5), torch.ones(5))), 5),
    "a list with several targets": ((([torch.ones(5, 3), torch.ones(5, 3)],), (torch.ones(5), torch.ones(5))), 5),
    "states of a recurrent layer": (((torch.ones(7, 4, 5), (torch.ones(2, 7, 6), torch.ones(2, 7, 3))),), 7),
    "q, k, v": (((torch.ones(3, 4, 5), torch.ones(3, 6, 5), torch.ones(3, 6, 5)), torch.ones(3)), 3),
    "a graph": (((torch.ones(9, 5), torch.ones(2, 11).long()), torch.ones(9)), 9),
    "texts": ((([torch.ones(3).long(), torch.ones(5).long()],),), 2),
    "one series": ((([torch.ones(7, 5)],), torch.ones(1)), 1),
    "three pictures, three targets": (
        (([torch.ones(3, 9, 8), torch.ones(3, 9, 7), torch.ones(3, 8, 8)],), rows[:3]),
        3,
    ),
    "strings as targets": ((([torch.ones(3, 9, 8), torch.ones(3, 9, 7)],), ["cat", "dog"]), 2),
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_of_samples_is_told_from_a_list_of_parts(kind):
    batch, expected = LISTS[kind]
    assert size_of(batch) == expected


def test_a_list_of_samples_is_marked_once_and_nothing_else_is_touched():
    batch = ((SERIES[:3],), CLASSES[:3])
    again = marked(marked(batch))
    assert isinstance(again[0][0], Listed)
    assert again[1] is batch[1]
    pair = (torch.ones(4, 2), torch.ones(4))
    assert marked(pair) is pair


def test_an_example_of_a_list_is_cut_and_repeated_by_its_samples():
    example = Example.of((SERIES[:3],))
    assert example.samples == 3
    assert [len(each) for each in with_batch(example, 1).args[0]] == [3]
    assert [len(each) for each in with_batch(example, 4).args[0]] == [3, 4, 5, 3]


class Uneven(Dataset):
    def __len__(self) -> int:
        return len(SERIES)

    def __getitem__(self, index: int):
        return SERIES[index], CLASSES[index]


RECIPE = rf.Recipe(epochs=1, batch_size=4, learning_rate=0.1)
USES = {
    "plan": lambda model: rf.plan(model, "params=0.8", data=Uneven()),
    "plan, of a list": lambda model: rf.plan(model, "params=0.8", data=list(zip(SERIES, CLASSES, strict=True))),
    "fit": lambda model: rf.fit(model, Uneven(), None, RECIPE),
}


@pytest.mark.parametrize("use", USES)
def test_samples_that_fit_into_no_batch_are_refused_with_the_remedy(use):
    with pytest.raises(ValueError, match=r"do not fit into one batch .*collate_fn.*\(\(\[a, b\],\), targets\)"):
        USES[use](built(Grouped))


def test_a_list_given_as_several_arguments_is_told_how_to_be_one():
    with pytest.raises(TypeError, match=r"a list that is one input is its only member: \(\(\[a, b\],\), targets\)"):
        rf.plan(built(Grouped), "params=0.8", data=[(SERIES[:3], CLASSES[:3])])


def test_a_mapping_that_is_one_input_is_told_how_to_be_one():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, batch):
            return self.fc(batch["series"])

    given = {"series": torch.randn(3, 4)}
    with pytest.warns(LeftOut), pytest.raises(TypeError, match=r"so is a mapping: \(\(\{'a': a\},\), targets\)"):
        rf.plan(Reads(), "params=0.8", data=[(given, torch.tensor([0, 1, 0]))])
    assert rf.plan(Reads(), "params=0.8", data=[((given,), torch.tensor([0, 1, 0]))]).after.params > 0


def test_a_graph_of_a_list_of_samples_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(
        ExportError, match=r"takes a list of samples, .*: export a module whose forward takes them as one"
    ):
        to_torch_export(built(Grouped), (SERIES[:3],), tmp_path / "net.pt2")


def test_targets_of_detectors_are_told_how_to_be_judged():
    message = r"targets of type dict, one for each sample, have no known meaning.*--objective teacher"
    with pytest.raises(TrainingError, match=message):
        rf.evaluate(built(Detector), list(in_batches(PICTURES, FOUND, 3, "zipped")))
