"""Laws of the built-in networks: shapes, sizes, names and what the forward pass computes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from raymi.models import MODELS, Classifier, build_model
from raymi.models.families import FAMILIES
from raymi.models.preact_resnet import PreActBlock
from raymi.models.resnet import BasicBlock
from raymi.models.wide_resnet import WideBlock

THIN = {"wrn-28-10": 0.25, "wrn-34-10": 0.25, "small-cnn": 0.5, "small-resnet": 0.25}


def build(name: str, num_classes: int = 10, image_size: int = 32, **options) -> Classifier:
    normalisation = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    return build_model(
        name, num_classes=num_classes, image_size=image_size, **normalisation, **options
    )


def num_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("image_size", [8, 16, 28, 32, 64])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_trains_on_every_image_size_and_number_of_classes(name, image_size):
    torch.manual_seed(0)
    x = torch.rand(2, 3, image_size, image_size)
    for num_classes in (2, 10, 200):
        model = build(name, num_classes, image_size, width=THIN.get(name, 1 / 16))
        logits = model(x)
        assert logits.shape == (2, num_classes)
        F.cross_entropy(logits, torch.tensor([0, 1])).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["small-cnn", "small-resnet", "preact-resnet18", "vgg19"])
def test_every_depth_builds_and_deeper_is_larger(name):
    x = torch.rand(2, 3, 8, 8)
    sizes = []
    for depth in FAMILIES[name].net.DEPTHS:
        model = build(name, image_size=8, width=1 / 16, depth=depth)
        assert model(x).shape == (2, 10)
        sizes.append(num_parameters(model))
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet18", 11_173_962),
        ("preact-resnet18", 11_172_170),
        ("vgg19", 20_040_522),
        ("wrn-28-10", 36_479_194),
        ("wrn-34-10", 46_160_474),
    ],
)
def test_default_models_have_the_published_number_of_parameters(name, parameters):
    with torch.device("meta"):
        assert num_parameters(build(name)) == parameters


def test_wide_resnet_16_4_is_width_4_and_depth_16():
    with torch.device("meta"):
        model = build("wrn-28-10", depth=16, width=4)
    assert num_parameters(model) == 2_748_890


@pytest.mark.parametrize(
    ("name", "image_size", "parameters", "mega_macs"),
    [("small-cnn", 16, (20e3, 60e3), (1, 3)), ("small-resnet", 32, (0, 400e3), (10, 25))],
)
def test_small_models_are_small(name, image_size, parameters, mega_macs):
    model = build(name, image_size=image_size).eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.rand(1, 3, image_size, image_size))
    assert parameters[0] < num_parameters(model) < parameters[1]
    assert mega_macs[0] < counter.get_total_flops() / 2e6 < mega_macs[1]


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        (
            "resnet18",
            "conv1.weight bn1.running_mean layer1.0.conv1.weight layer1.1.bn2.bias"
            " layer2.0.shortcut.0.weight layer2.0.shortcut.1.running_var linear.bias",
        ),
        (
            "preact-resnet18",
            "conv1.weight layer1.0.bn1.weight layer4.0.shortcut.0.weight bn.weight linear.weight",
        ),
        (
            "wrn-28-10",
            "conv1.weight block1.layer.0.bn1.weight block1.layer.0.convShortcut.weight"
            " block3.layer.3.conv2.weight bn1.bias fc.weight",
        ),
        ("vgg19", "features.0.bias features.1.running_var features.49.weight classifier.weight"),
    ],
)
def test_parameters_carry_the_published_names(name, keys):
    with torch.device("meta"):
        assert set(keys.split()) <= build(name).net.state_dict().keys()


def test_width_multiplies_the_channels():
    assert build("resnet18", width=0.25).net.linear.in_features == 128
    assert build("vgg19", width=2, depth=11).net.features[0].out_channels == 128
    assert build("resnet18", width=1e-6).net.linear.in_features == 1


def test_classifier_normalises_with_its_own_mean_and_std():
    model = Classifier(nn.Identity(), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    x = torch.tensor([1.0, 0.4, 0.1]).view(1, 3, 1, 1)
    expected = torch.tensor([2.5, 0.0, -0.5]).view(1, 3, 1, 1)
    torch.testing.assert_close(model(x), expected)
    assert model.state_dict().keys() == {"normalize.mean", "normalize.std"}


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (1, 1, 1)), ((0.5, 0.5, 0.5), (1, 1, 0))])
def test_invalid_mean_and_std_are_refused(mean, std):
    with pytest.raises(ValueError, match="std positive"):
        Classifier(nn.Identity(), mean, std)


def test_weights_depend_on_the_global_seed_only():
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(build("small-cnn").net.state_dict()["features.0.weight"])
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_wide_resnet_starts_from_kaiming_fan_out():
    torch.manual_seed(0)
    weight = build("wrn-28-10", width=4, depth=10).net.block3.layer[0].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)


@pytest.mark.parametrize("block", [PreActBlock(4, 4, 1), WideBlock(4, 4, 1)])
def test_preactivation_block_is_the_identity_when_its_last_convolution_is_zero(block):
    x = torch.randn(2, 4, 5, 5)
    nn.init.zeros_(block.conv2.weight)
    assert torch.equal(block(x.clone()), x)


def test_basic_block_is_a_relu_when_its_last_batchnorm_is_zero():
    block = BasicBlock(4, 4, 1)
    x = torch.randn(2, 4, 5, 5)
    nn.init.zeros_(block.bn2.weight)
    assert torch.equal(block(x.clone()), x.relu())


@pytest.mark.parametrize("name", MODELS)
def test_channels_last_changes_the_layout_and_not_the_logits(name):
    torch.manual_seed(0)
    model = build(name, image_size=16, width=THIN.get(name, 1 / 16)).eval()
    x = torch.rand(2, 3, 16, 16)
    expected = model(x)
    model = model.to(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    assert model.normalize(x).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_autocast_trains(name):
    torch.manual_seed(0)
    model = build(name, image_size=16, width=THIN.get(name, 1 / 16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(torch.rand(4, 3, 16, 16))
    assert logits.dtype == torch.bfloat16
    logits.float().logsumexp(1).sum().backward()
    for parameter in model.parameters():
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize(
    ("name", "depth"),
    [("small-cnn", 4), ("resnet18", 10), ("preact-resnet18", 10), ("vgg19", 11), ("wrn-28-10", 10)],
)
def test_export_keeps_the_batch_dynamic(name, depth):
    torch.manual_seed(0)
    model = build(name, image_size=8, width=1 / 16, depth=depth).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (torch.rand(3, 3, 8, 8),), dynamic_shapes=({0: batch},))
    x = torch.rand(5, 3, 8, 8)
    torch.testing.assert_close(program.module()(x), model(x))
