"""The source of a network stands for itself."""

from __future__ import annotations

import ast
from typing import Any

import pytest
import torch
from torch import nn

from raymi.models import MODELS, architecture, build_model
from raymi.models.source import classifier_source

SMALL = {"wrn-28-10": {"depth": 10, "width": 1.0}, "wrn-34-10": {"depth": 16, "width": 1.0}}
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


def defined(text: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    exec(text, namespace)
    return namespace


@pytest.mark.parametrize("name", MODELS)
def test_the_source_builds_the_same_network(name: str) -> None:
    how = {"width": 0.25, **SMALL.get(name, {})}
    ours = build_model(name, num_classes=7, image_size=16, mean=MEAN, std=STD, **how).eval()
    text = classifier_source(architecture(name, num_classes=7, image_size=16, **how))
    theirs = defined(text)["make_model"]().eval()
    assert type(theirs) is not type(ours)
    theirs.load_state_dict(ours.state_dict())
    x = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(theirs(x), ours(x))


@pytest.mark.parametrize("name", MODELS)
def test_the_source_imports_torch_only(name: str) -> None:
    text = classifier_source(architecture(name, num_classes=10, image_size=32))
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    modules = {node.module for node in imports}
    modules |= {
        alias.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert {str(module).partition(".")[0] for module in modules} <= {
        "__future__", "collections", "torch", "typing",
    }  # fmt: skip
    assert "raymi" not in text


def test_the_source_has_needed_definitions_only() -> None:
    text = classifier_source(architecture("vgg19", num_classes=10, image_size=32))
    kinds = {node.name for node in ast.parse(text).body if isinstance(node, ast.ClassDef)}
    assert kinds == {"Halve", "VGG", "Normalize", "Classifier"}


def test_a_user_network_is_imported_from_its_module() -> None:
    name = "tiny_runs:norm_free_net"
    ours = build_model(name, num_classes=5, image_size=8, mean=MEAN, std=STD).eval()
    text = classifier_source(architecture(name, num_classes=5, image_size=8))
    assert "from tiny_runs import norm_free_net" in text
    theirs: nn.Module = defined(text)["make_model"]().eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(theirs(x), ours(x))
