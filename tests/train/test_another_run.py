"""A directory is gone on with for the same data and teacher alone."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rankfold.train import Distill, Recipe, TrainingError, checkpoint, fit

X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
RECIPE = Recipe(epochs=2, batch_size=16)


def net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(4, 2)


FORMS = {
    "a pair": lambda x, y: (x, y),
    "a data set": TensorDataset,
    "batches": lambda x, y: list(zip(x.split(16), y.split(16))),
    "a loader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True),
}


@pytest.mark.parametrize("form", FORMS)
def test_other_data_in_the_directory_of_a_finished_run_are_refused(form, tmp_path):
    """They were answered with the weights and figures of the run before."""
    made = FORMS[form]
    first = net()
    history = fit(first, made(X, Y), made(X, Y), RECIPE, directory=tmp_path)
    for train, validation, said in (
        (made(X, 1 - Y), made(X, Y), "with other training data"),
        (made(X + 1, Y), made(X, Y), "with other training data"),
        (made(X, Y), made(X, 1 - Y), "with other validation data"),
        (made(X, Y), None, "with validation data"),
    ):
        model = net(1)
        before = model.weight.detach().clone()
        with pytest.raises(TrainingError, match=f"holds the checkpoint of another run, {said}: give another directory"):
            fit(model, train, validation, RECIPE, directory=tmp_path)
        assert torch.equal(model.weight, before)
    again = net(1)
    assert fit(again, made(X, Y), made(X, Y), RECIPE, directory=tmp_path).epochs == history.epochs
    assert torch.equal(again.weight, first.weight)


def test_validation_data_beside_a_run_without_any_are_refused(tmp_path):
    fit(net(), (X, Y), None, RECIPE, directory=tmp_path)
    with pytest.raises(TrainingError, match="another run, without validation data"):
        fit(net(), (X, Y), (X, Y), RECIPE, directory=tmp_path)


def test_another_teacher_is_refused_also_before_the_end(tmp_path):
    class Stop(Exception):
        pass

    def progress(step):
        if step.epoch == 2:
            raise Stop

    recipe = Recipe(epochs=2, batch_size=16, distill=Distill())
    with pytest.raises(Stop):
        fit(net(), (X, Y), None, recipe, teacher=net(7), directory=tmp_path, progress=progress)
    with pytest.raises(TrainingError, match="another run, with another teacher"):
        fit(net(), (X, Y), None, recipe, teacher=net(8), directory=tmp_path)
    assert fit(net(), (X, Y), None, recipe, teacher=net(7), directory=tmp_path).resumed_from == 1


def test_a_checkpoint_that_does_not_say_what_it_was_made_of_goes_on(tmp_path):
    fit(net(), (X, Y), (X, Y), RECIPE, directory=tmp_path)
    saved = checkpoint.load(tmp_path)
    del saved["content"]
    checkpoint.save(tmp_path, 2, saved)
    assert fit(net(), (X, 1 - Y), (X, Y), RECIPE, directory=tmp_path).resumed_from == 2
