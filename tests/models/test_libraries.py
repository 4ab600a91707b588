"""Networks of torchvision and timm train, fold, export and share BatchNorm like raymi's own."""

from __future__ import annotations

import copy
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from gloo import run_ranks
from torch import nn

from raymi.engine.network_check import check_network
from raymi.errors import UserError
from raymi.evaluation.model_source import raymi_source
from raymi.models import architecture, build_model, check_model
from raymi.models.batchnorm import convert_batchnorm
from raymi.models.folding import FoldedClassifier
from raymi.models.libraries import find_library_net
from raymi.models.source import classifier_source
from raymi.models.user_model import source_digest

SIZES = {"num_classes": 3, "image_size": 32}
STATS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
NETS = [
    "torchvision:resnet18",
    "torchvision:mobilenet_v3_small",
    "timm:test_vit",
    "timm:test_byobnet",
]


def needs(name):
    package = name.partition(":")[0]
    pytest.importorskip(package, reason=f"{package} is not installed")


@pytest.mark.parametrize("name", NETS)
def test_a_network_of_a_library_passes_every_check_of_a_users_own(name):
    needs(name)
    build = partial(build_model, name, **SIZES, **STATS)
    model = build()
    facts = check_network(name, model, build, **SIZES, averaged=True, frozen_gradients=True)
    assert facts.unused == ()
    assert facts.remarks == ()
    x = torch.rand(2, 3, 32, 32)
    model.eval()
    assert torch.equal(model(x), model.net((x - model.normalize.mean) / model.normalize.std))


@pytest.mark.parametrize("name", NETS)
def test_a_network_of_a_library_is_rebuilt_from_its_source_and_from_its_description(name):
    needs(name)
    built_as = architecture(name, **SIZES)
    model = build_model(**built_as, **STATS).eval()
    namespace = {}
    exec(classifier_source(built_as), namespace)
    copied = namespace["make_model"]().eval()
    copied.load_state_dict(model.state_dict())
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(copied(x), model(x))
    assert torch.equal(raymi_source("one", built_as, model.state_dict()).load()(x), model(x))


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:test_byobnet"])
def test_attacks_on_folded_batchnorm_see_the_outputs_of_eval_mode(name):
    needs(name)
    model = build_model(name, **SIZES, **STATS).train()
    model(torch.rand(4, 3, 32, 32))
    folded = FoldedClassifier(model)
    folded.refresh()
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(folded(x), model.eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["torchvision:vit_b_16", "timm:vit_tiny_patch16_224"])
def test_transformers_are_built_for_the_size_of_the_images(name):
    needs(name)
    with torch.device("meta"):
        model = find_library_net(name)(num_classes=3, image_size=48)
    assert model(torch.empty(1, 3, 48, 48, device="meta")).shape == (1, 3)


def normalised_by_ranks(rank, world_size):
    from timm.layers import BatchNormAct2d

    torch.manual_seed(0)
    norm = nn.Sequential(BatchNormAct2d(3)).train()
    x = torch.randn(5, 3, 4, 4)
    if world_size > 1:
        convert_batchnorm(norm)
    part = x[:3] if rank == 0 else x[3:]
    out = norm(part if world_size > 1 else x)
    return out.detach(), copy.deepcopy(norm.state_dict())


@pytest.mark.slow
def test_timms_batchnorm_with_activation_spans_all_workers(tmp_path):
    needs("timm")
    whole, state = normalised_by_ranks(0, 1)
    (one, of_one), (other, of_other) = run_ranks(normalised_by_ranks, 2, tmp_path=tmp_path)
    torch.testing.assert_close(torch.cat([one, other]), whole, rtol=1e-5, atol=1e-6)
    assert bool((whole == 0).any())
    assert bool((whole > 0).any())
    for key, value in state.items():
        torch.testing.assert_close(of_one[key], value)
        torch.testing.assert_close(of_other[key], value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:resnt50", "torchvision .* has no 'resnt50': did you mean resnet50"),
        ("timm:no_such_net", "timm .* has no 'no_such_net'"),
    ],
)
def test_an_unknown_network_of_a_library_is_refused_with_close_names(name, message):
    needs(name)
    with pytest.raises(UserError, match=message):
        check_model(name, image_size=32)


def test_a_missing_library_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"timm, which is not installed .*: pip install timm"):
        check_model("timm:vit_small_patch16_224", image_size=32)


def test_settings_of_raymis_networks_do_not_apply():
    for settings in ({"width": 2.0}, {"depth": 18}, {"activation": "silu"}):
        with pytest.raises(UserError, match="do not apply to model 'torchvision:resnet18'"):
            check_model("torchvision:resnet18", image_size=32, **settings)


def test_the_digest_of_a_library_names_its_version(monkeypatch):
    before = source_digest("torchvision:resnet18")
    assert before == source_digest("torchvision:resnet50")
    monkeypatch.setattr("raymi.models.libraries.version", lambda package: "0.0")
    assert source_digest("torchvision:resnet18") != before


@pytest.mark.parametrize("name", ["small-cnn", "small-resnet", "preact-resnet18", "wrn-28-10"])
def test_silu_replaces_every_relu(name, monkeypatch):
    size = {"depth": 10} if name == "wrn-28-10" else {}
    how = {"num_classes": 3, "image_size": 8, "width": 0.25, **size}
    torch.manual_seed(0)
    relu = build_model(name, **how, **STATS).eval()
    silu = build_model(name, **how, **STATS, activation="silu").eval()
    silu.load_state_dict(relu.state_dict())
    x = torch.rand(2, 3, 8, 8)
    assert not torch.equal(relu(x), silu(x))
    text = classifier_source(architecture(name, **how, activation="silu"))
    namespace = {}
    exec(text, namespace)
    copied = namespace["make_model"]().eval()
    copied.load_state_dict(silu.state_dict())
    assert torch.equal(copied(x), silu(x))
    monkeypatch.setattr(F, "relu", None)
    logits = silu.train()(x)
    F.cross_entropy(logits, torch.tensor([0, 1])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in silu.parameters())
    assert not any(isinstance(module, nn.ReLU) for module in silu.modules())


@pytest.mark.parametrize("name", ["resnet18", "preact-resnet18", "small-resnet"])
def test_images_over_64_pixels_get_the_stem_of_imagenet(name):
    how = {"num_classes": 3, "width": 1 / 16, **STATS}
    small, large = (build_model(name, image_size=size, **how) for size in (64, 65))
    assert (small.net.conv1.kernel_size, small.net.conv1.stride) == ((3, 3), (1, 1))
    assert (large.net.conv1.kernel_size, large.net.conv1.stride) == ((7, 7), (2, 2))
    seen = []
    large.net.layer1.register_forward_hook(lambda module, x, out: seen.append(out.shape[2:]))
    assert large(torch.rand(2, 3, 96, 96)).shape == (2, 3)
    assert seen == [(24, 24)]
    text = classifier_source(architecture(name, num_classes=3, image_size=65, width=1 / 16))
    assert "imagenet_stem=True" in text
