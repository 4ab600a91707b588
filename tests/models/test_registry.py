"""Laws of choosing a model by name: what is refused, and how the user's own function is found."""

import sys
from pathlib import Path

import pytest
import torch

from raymi.errors import UserError
from raymi.models import MODELS, build_model, check_model

USER_MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, image_size):
        super().__init__()
        self.norm = nn.BatchNorm2d(3).eval()
        self.linear = nn.Linear(3 * image_size**2, num_classes)

    def forward(self, x):
        return self.linear(self.norm(x).flatten(1))

def net(*, num_classes, image_size): return Net(num_classes, image_size)
def wrong_logits(num_classes, image_size): return Net(num_classes + 1, image_size)
def wrong_image(num_classes, image_size): return Net(num_classes, image_size + 1)
def wrong_arguments(classes): return Net(classes, 8)
def not_a_module(num_classes, image_size): return 7
def fails(num_classes, image_size): raise KeyError("no weights here")
def exits(num_classes, image_size): raise SystemExit("no data")
not_a_function = 3
"""


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch):
    """A module in the current directory, importable because it is the current directory."""
    (tmp_path / "my_nets.py").write_text(USER_MODULE)
    (tmp_path / "my_broken_nets.py").write_text("import a_package_that_is_not_there")
    (tmp_path / "my_script.py").write_text("import sys\nsys.exit(3)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    yield
    for name in ("my_nets", "my_broken_nets", "my_script"):
        sys.modules.pop(name, None)


def build(name: str):
    return build_model(name, num_classes=5, image_size=8, mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.mark.parametrize("name", MODELS)
def test_every_listed_model_has_a_description_and_passes_the_check(name):
    assert MODELS[name]
    check_model(name, image_size=32, width=None, depth=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet-18"}, "did you mean resnet18"),
        ({"name": "WRN-28-1"}, "did you mean wrn-28-10"),
        ({"name": "qqq"}, "there are small-cnn, small-resnet, resnet18"),
        ({"depth": 50}, "resnet18 has no depth 50: choose from 10, 18, 34$"),
        ({"name": "wrn-28-10", "depth": 27}, r"choose from 10, 16, 22, 28, 34, 40, \.\.\."),
        ({"name": "vgg19", "depth": 18}, "choose from 11, 13, 16, 19"),
        ({"width": 0}, "width must be a positive multiplier of channels, got 0"),
        ({"width": float("nan")}, "width must be"),
        ({"width": float("inf")}, "width must be"),
        ({"image_size": 7}, "image_size must be at least 8 pixels, got 7"),
    ],
)
def test_unavailable_models_are_refused_with_a_remedy(options, message):
    options = {"name": "resnet18", "image_size": 32, "width": None, "depth": None} | options
    with pytest.raises(UserError, match=message):
        check_model(**options)
    with pytest.raises(UserError, match=message):
        build_model(**options, num_classes=10, mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.mark.usefixtures("user_module")
def test_a_user_function_becomes_a_classifier_with_its_train_flags():
    check_model("my_nets:net", image_size=8, width=None, depth=None)
    model = build("my_nets:net")
    x = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(model(x), model.net((x - 0.5) / 0.25))
    assert model.training
    assert model.net.linear.training
    assert not model.net.norm.training


@pytest.mark.usefixtures("user_module")
def test_building_a_users_model_twice_imports_it_once():
    assert type(build("my_nets:net").net) is type(build("my_nets:net").net)


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (":net", "must read package.module:function"),
        ("my_nets:", "must read package.module:function"),
        ("my_nets:a:b", "must read package.module:function"),
        ("my_netz:net", "cannot import module 'my_netz', .*'my_netz'. Searched in /"),
        ("my_nets.sub:net", "cannot import module 'my_nets.sub'"),
        ("my_broken_nets:net", r"a_package_that_is_not_there.*my_broken_nets\.py:1"),
        ("my_script:net", r"cannot import module 'my_script', SystemExit: 3"),
        ("my_nets:nett", "no function 'nett' in .*my_nets.py"),
        ("my_nets:not_a_function", "is 3, not a function"),
        ("my_nets:wrong_arguments", "is called with num_classes= and image_size="),
    ],
)
def test_an_uncallable_user_function_is_refused_by_the_check(name, message):
    with pytest.raises(UserError, match=message):
        check_model(name, image_size=8, width=None, depth=None)


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_nets:not_a_module", "must return a torch.nn.Module, got int"),
        ("my_nets:fails", r"KeyError: 'no weights here' \(.*my_nets\.py:19\)"),
        ("my_nets:exits", r"cannot be built: SystemExit: no data"),
        ("my_nets:wrong_logits", r"to logits \(2, 5\), got \(2, 6\)"),
        ("my_nets:wrong_image", r"images \(2, 3, 8, 8\) .* but RuntimeError: .*my_nets\.py:12\)"),
    ],
)
def test_a_user_network_without_logits_is_refused(name, message):
    check_model(name, image_size=8, width=None, depth=None)
    with pytest.raises(UserError, match=message):
        build(name)


@pytest.mark.usefixtures("user_module")
def test_width_and_depth_are_refused_for_a_user_model():
    with pytest.raises(UserError, match="do not apply"):
        check_model("my_nets:net", image_size=8, width=2, depth=None)
