"""The built-in models: published sizes, shapes, reproducible weights."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rankfold import zoo

# (parameters, multiply-adds of convolutions and linear layers) counted by hand from the papers' layer tables,
# and the figures the papers print: He et al. 2016 table 6 (parameters), LoRITa tables 2 and 3.
SIZES = {
    "fcn-6": (114_538, 113_088),
    "fcn-6-plain": (113_578, 113_088),
    "fcn-10": (152_554, 149_952),
    "resnet20": (269_722, 40_551_040),
    "resnet32": (464_154, 68_862_592),
    "resnet44": (658_586, 97_174_144),
    "resnet56": (853_018, 125_485_696),
    "resnet18": (11_173_962, 555_422_720),
    "resnet18-imagenet": (11_689_512, 1_814_073_344),
    "resnet34-imagenet": (21_797_672, 3_663_761_408),
    "vgg13-bn": (9_416_010, 228_267_008),
    "vgg16-bn": (14_728_266, 313_201_664),
}
PUBLISHED_PARAMETERS = {
    "resnet20": "0.27",
    "resnet32": "0.46",
    "resnet44": "0.66",
    "resnet56": "0.85",
    "resnet18": "11.17",
    "resnet18-imagenet": "11.69",
    "resnet34-imagenet": "21.80",
    "vgg16-bn": "14.73",
}
PUBLISHED_MEGAMACS = {"resnet20": 40.81, "vgg16-bn": 314.59}


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_adds(name: str) -> int:
    model = copy.deepcopy(zoo.model(name)).to("meta").eval()
    with FlopCounterMode(display=False) as counter:
        model(zoo.example_input(name).to("meta"))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_of_the_layer_tables(name):
    assert (parameters(zoo.model(name)), multiply_adds(name)) == SIZES[name]


def test_parameters_round_to_the_published_figures():
    for name, published in PUBLISHED_PARAMETERS.items():
        assert f"{SIZES[name][0] / 1e6:.2f}" == published, name


def test_multiply_adds_are_within_one_percent_of_the_published_figures():
    # The papers' counter includes normalisation and ReLU, which is the remainder.
    for name, published in PUBLISHED_MEGAMACS.items():
        assert 0.99 * published < SIZES[name][1] / 1e6 < published, name


def test_fcn_depth_counts_matrices_of_width_96():
    for depth in (6, 8, 10):
        shapes = [m.weight.shape for m in zoo.model(f"fcn-{depth}").modules() if isinstance(m, nn.Linear)]
        assert shapes == [(96, 784), *[(96, 96)] * (depth - 2), (10, 96)]


def test_vit_depth_heads_and_width():
    for depth in (4, 8, 16):
        for heads in (1, 4, 8):
            model = zoo.model(f"vit-l{depth}-h{heads}")
            assert len(model.blocks) == depth
            assert all(block.attention.heads == heads for block in model.blocks)
            assert model.blocks[0].attention.query.weight.shape == (256, 256)


def test_vit_attention_agrees_with_torch_multihead_attention():
    torch.manual_seed(0)
    ours = zoo.model("vit-l4-h4").blocks[0].attention.double()
    theirs = nn.MultiheadAttention(256, 4, batch_first=True, dtype=torch.float64)
    projections = [ours.query, ours.key, ours.value]
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([layer.weight for layer in projections]))
        theirs.in_proj_bias.copy_(torch.cat([layer.bias for layer in projections]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    x = torch.randn(2, 9, 256, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x, x, x, need_weights=False)[0])
    ours.heads = 8
    assert not torch.allclose(ours(x), theirs(x, x, x, need_weights=False)[0])


def test_vit_positions_tell_every_patch_apart():
    positions = zoo.model("vit-l4-h1").positions
    assert positions.shape == (64, 256)
    assert len(positions.unique(dim=0)) == 64


@pytest.mark.parametrize("name", zoo.model_names())
def test_forward_shape_and_finite_gradient_everywhere(name):
    if name.startswith("vit-l16") and name != "vit-l16-h8":
        pytest.skip("the same layers as vit-l16-h8, split otherwise; vit-l4 and vit-l8 run with every head count")
    model = zoo.model(name)
    x = torch.randn((2, *zoo.example_input(name).shape[1:]), generator=torch.Generator().manual_seed(0))
    y = model(x)
    assert y.shape == (2, 1000 if name.endswith("imagenet") else 10)
    y.square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("name", ["digits-cnn", "fcn-6", "resnet20", "resnet18", "vgg13-bn", "vit-l4-h1"])
def test_classes_and_channels_can_be_chosen(name):
    model = zoo.model(name, classes=7, in_channels=2).eval()
    assert model(zoo.example_input(name, in_channels=2)).shape == (1, 7)


def test_weights_are_a_function_of_the_generator_alone():
    def draw(seed: int) -> torch.Tensor:
        return zoo.model("fcn-6", generator=torch.Generator().manual_seed(seed)).head.weight

    torch.manual_seed(5)
    first, default = draw(1), zoo.model("fcn-6").head.weight
    torch.manual_seed(6)
    assert torch.equal(first, draw(1))
    assert torch.equal(default, zoo.model("fcn-6").head.weight)
    assert not torch.equal(first, draw(2))


def test_one_generator_draws_two_different_models():
    generator = torch.Generator().manual_seed(0)
    a, b = (zoo.model("fcn-6", generator=generator).head.weight for _ in range(2))
    assert not torch.equal(a, b)


def test_global_random_state_is_left_as_found():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    zoo.model("digits-cnn")
    assert torch.equal(before, torch.get_rng_state())


def test_batch_of_one_and_odd_batches_in_eval_mode():
    for name in ("digits-cnn", "fcn-6", "resnet20", "vit-l4-h8"):
        model = zoo.model(name).eval()
        x = torch.randn((3, *zoo.example_input(name).shape[1:]), generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(model(x)[1:2], model(x[1:2]), atol=1e-5, rtol=1e-4)


def test_option_a_shortcut_subsamples_and_pads_on_both_sides():
    shortcut = zoo.model("resnet20").layer2[0].shortcut
    x = torch.arange(1.0, 1 + 16 * 4 * 4).view(1, 16, 4, 4)
    y = shortcut(x)
    assert y.shape == (1, 32, 2, 2)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert y[:, :8].count_nonzero() == y[:, 24:].count_nonzero() == 0


def test_faults_are_one_sentence():
    with pytest.raises(zoo.ZooError, match=r"\./nosuch: there is no such folder"):
        zoo.model("./nosuch")
    with pytest.raises(zoo.ZooError, match=r"there is no model 'resnet21'.*resnet20"):
        zoo.model("resnet21")
    with pytest.raises(zoo.ZooError, match="classes must be at least 1, got 0"):
        zoo.model("resnet20", classes=0)
    with pytest.raises(zoo.ZooError, match="in_channels must be at least 1"):
        zoo.model("fcn-6", in_channels=-1)
    for function in (zoo.example_input, zoo.default_data):
        with pytest.raises(zoo.ZooError, match="there is no model"):
            function("")


def test_a_folder_above_the_one_that_is_meant_names_it(tmp_path):
    with pytest.raises(zoo.ZooError, match=r"this folder is not one of transformers: it has no config\.json$"):
        zoo.resolve(str(tmp_path))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(zoo.ZooError, match=r"has no config\.json: model in it has one$"):
        zoo.resolve(str(tmp_path))


def test_default_data_is_known_and_fits():
    shapes = {"digits": (1, 1, 8, 8), "mnist": (1, 1, 28, 28), "cifar10": (1, 3, 32, 32)}
    for name in zoo.model_names():
        if name.endswith("-imagenet"):
            assert zoo.resolve(name).data is None
            with pytest.raises(zoo.ZooError, match="imagefolder:DIR"):
                zoo.default_data(name)
        else:
            assert zoo.example_input(name).shape == shapes[zoo.default_data(name)]


def test_imagenet_networks_take_the_names_of_published_files(tmp_path):
    """20 and 36 convolutions, as many BatchNorms of five entries, and one linear layer: 122 and 218 entries."""
    for name, entries, last in (("resnet18-imagenet", 122, 1), ("resnet34-imagenet", 218, 5)):
        model = zoo.model(name, generator=torch.Generator().manual_seed(1))
        state = model.state_dict()
        assert len(state) == entries
        assert state["conv1.weight"].shape == (64, 3, 7, 7)
        assert state["layer2.0.downsample.0.weight"].shape == (128, 64, 1, 1)
        assert state["layer4.0.downsample.1.running_var"].shape == (512,)
        assert state[f"layer3.{last}.conv2.weight"].shape == (256, 256, 3, 3)
        assert state["fc.weight"].shape == (1000, 512)
        assert not [key for key in state if "layer1.0.downsample" in key]
    torch.save(zoo.model("resnet18-imagenet").state_dict(), tmp_path / "published.pth")
    other = zoo.model("resnet18-imagenet", generator=torch.Generator().manual_seed(1))
    zoo.load_weights(other, tmp_path / "published.pth")
    assert torch.equal(other.fc.weight, zoo.model("resnet18-imagenet").fc.weight)


def test_digits_cnn_learns_the_digits():
    data = zoo.load_data("digits")
    generator = torch.Generator().manual_seed(0)
    model = zoo.model("digits-cnn", generator=generator)
    loader = data.train.batches(32, shuffle=True, generator=generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=8 * len(loader))
    for _ in range(8):
        for inputs, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        inputs = data.validation.normalize(data.validation.inputs)
        accuracy = (model(inputs).argmax(1) == data.validation.labels).float().mean()
    assert accuracy >= 0.97
