"""From `package.module:factory` to a model, and one clear sentence for each way to fail."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from rankfold import zoo

FACTORIES = """
import torch
from torch import nn


def plain():
    return nn.Linear(4, 2)


def with_example():
    model = nn.Linear(4, 2)
    model.example_input = torch.ones(3, 4)
    return model


def example_on_factory():
    return nn.Linear(4, 2)


example_on_factory.example_input = (torch.ones(1, 4),)


def bad_example():
    model = nn.Linear(4, 2)
    model.example_input = "a picture"
    return model


def not_a_module():
    return {"weights": 1}


def raises():
    raise RuntimeError("no such\\n  checkpoint")


def needs_argument(width):
    return nn.Linear(width, 2)


class Net(nn.Module):
    def forward(self, x):
        return x


class Family:
    @staticmethod
    def small():
        return nn.Linear(1, 1)


number = 3
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    """A package in the current directory, which is not on sys.path; yields its module path."""
    package = f"user_nets_{tmp_path.name.replace('-', '_')}"
    folder = tmp_path / package
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "nets.py").write_text(FACTORIES)
    (folder / "broken.py").write_text("import rankfold_has_no_such_dependency\n")
    (folder / "dividing.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(Path.cwd()))])
    yield f"{package}.nets"
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        del sys.modules[name]


def test_built_in_names_come_with_input_and_data():
    resolved = zoo.resolve("resnet20", classes=5, in_channels=1)
    assert resolved.data == "cifar10"
    assert resolved.example_input.shape == (1, 1, 32, 32)
    assert resolved.model.eval()(resolved.example_input).shape == (1, 5)


def test_factory_in_the_current_directory(factories):
    before = list(sys.path)
    resolved = zoo.resolve(f"{factories}:plain")
    assert isinstance(resolved.model, nn.Linear)
    assert resolved.example_input is None
    assert resolved.data is None
    assert sys.path == before


def test_a_file_stands_for_its_module(factories, tmp_path):
    here = Path(factories.replace(".", "/")).with_suffix(".py")
    for file in (here, Path.cwd() / here):
        assert isinstance(zoo.resolve(f"{file}:plain").model, nn.Linear)
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    (elsewhere / "torch.py").write_text(
        "import beside_it\nfrom torch import nn\nnet = lambda: nn.Linear(beside_it.n, 2)\n"
    )
    (elsewhere / "beside_it.py").write_text("n = 7\n")
    assert zoo.resolve(f"{elsewhere}/torch.py:net").model.in_features == 7
    assert torch is sys.modules["torch"]
    with pytest.raises(zoo.ZooError, match=r"there is no file .*missing\.py$"):
        zoo.resolve(f"{elsewhere}/missing.py:net")
    with pytest.raises(zoo.ZooError, match=r"importing .*dividing\.py failed: ZeroDivisionError"):
        zoo.resolve(f"{here.with_name('dividing.py')}:net")


def test_example_input_of_model_and_of_factory(factories):
    assert torch.equal(zoo.resolve(f"{factories}:with_example").example_input, torch.ones(3, 4))
    (argument,) = zoo.resolve(f"{factories}:example_on_factory").example_input
    assert torch.equal(argument, torch.ones(1, 4))


def test_a_class_and_a_nested_attribute_are_factories_too(factories):
    assert type(zoo.resolve(f"{factories}:Net").model).__name__ == "Net"
    assert isinstance(zoo.resolve(f"{factories}:Family.small").model, nn.Linear)


def test_an_installed_module_needs_no_current_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert isinstance(zoo.resolve("torch.nn:Identity").model, nn.Identity)


@pytest.mark.parametrize(
    ("attribute", "sentence"),
    [
        (":missing", "has no attribute 'missing'"),
        (":Family.large", r"has no attribute 'Family\.large'"),
        (":number", "'number' is a int, which cannot be called"),
        (":not_a_module", r"must return an nn\.Module, and returned a dict"),
        (":raises", "the factory raised RuntimeError: no such checkpoint$"),
        (":needs_argument", "the factory raised TypeError: .*'width'"),
        (":bad_example", "example_input must be a tensor, or a tuple or dict of tensors, and is a str"),
        (":", "not have the form package.module:factory"),
        (":a:b", "not have the form package.module:factory"),
    ],
)
def test_faults_of_a_factory(factories, attribute, sentence):
    before = list(sys.path)
    with pytest.raises(zoo.ZooError, match=sentence) as caught:
        zoo.resolve(factories + attribute)
    assert "\n" not in str(caught.value)
    assert sys.path == before


def test_a_mistyped_factory_is_told_the_near_names(factories):
    with pytest.raises(zoo.ZooError, match=r"has no attribute 'with_exmple'; did you mean with_example"):
        zoo.resolve(f"{factories}:with_exmple")


def test_a_module_that_hides_one_of_yours_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "safetensors.py").write_text("def network(): ...\n")
    (tmp_path / "sys.py").write_text("def network(): ...\n")
    import safetensors

    with pytest.raises(zoo.ZooError, match=r"was imported instead of safetensors\.py in this directory:") as caught:
        zoo.resolve("safetensors:network")
    assert safetensors.__file__ in str(caught.value)
    with pytest.raises(zoo.ZooError, match=r"a module built into Python was imported instead of sys\.py in this"):
        zoo.resolve("sys:network")


def test_faults_of_a_module(factories):
    package = factories.split(".")[0]
    faults = {
        "no_such_module_at_all:f": "there is no module no_such_module_at_all, neither installed nor",
        f"{package}.absent:f": rf"module {package}\.absent, neither",
        f"{package}.broken:f": "importing .* failed: ModuleNotFoundError: .*rankfold_has_no_such_dependency",
        f"{package}.dividing:f": "importing .* failed: ZeroDivisionError: division by zero",
        ":f": "not have the form",
        "..relative:f": "importing .* failed",
    }
    for spec, sentence in faults.items():
        with pytest.raises(zoo.ZooError, match=sentence) as caught:
            zoo.resolve(spec)
        assert "\n" not in str(caught.value)


def test_a_misspelt_name_lists_the_names():
    with pytest.raises(zoo.ZooError, match=r"there is no model 'resnet19'.*vgg16-bn.*package\.module:factory"):
        zoo.resolve("resnet19")
