"""Texts about errors that are not raymi's own."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from raymi.errors import first_line, what_happened
from raymi.models import build_model


def described(body: Callable[[], Any]) -> str:
    try:
        body()
    except Exception as error:
        return what_happened(error)
    pytest.fail("nothing was raised")


def test_the_line_is_the_users_innermost_one(tmp_path, monkeypatch):
    (tmp_path / "deep_nets.py").write_text(
        "import torch\n\ndef run(x):\n    return torch.nn.functional.linear(x, x[:, :1])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = importlib.import_module("deep_nets").run
    text = described(partial(run, torch.eye(3)))
    assert text.startswith("RuntimeError: ")
    assert text.endswith(f"({tmp_path / 'deep_nets.py'}:4)")


def test_without_user_code_the_line_is_the_one_that_called_torch():
    plain = {"width": 0.5, "depth": 4, "mean": [0] * 3, "std": [1] * 3}
    model = build_model("small-cnn", num_classes=2, image_size=8, **plain)
    text = described(partial(model, torch.zeros(1, 2, 8, 8)))
    assert "/raymi/models/" in text
    assert "/torch/" not in text


def test_a_missing_module_has_no_line():
    text = described(partial(importlib.import_module, "nowhere_to_be_found"))
    assert text == "ModuleNotFoundError: No module named 'nowhere_to_be_found'"


@pytest.mark.parametrize(
    ("message", "line"),
    [("", ""), ("one", "one"), ("one\ntwo", "one"), ("x" * 300, "x" * 200)],
)
def test_first_line_shortens_long_messages(message, line):
    assert first_line(RuntimeError(message)) == line


def test_a_message_of_several_lines_becomes_one():
    def fail():
        raise TypeError("expected one of:\n * (int size)\n * (str name)")

    message = described(fail)
    assert message.startswith("TypeError: expected one of: * (int size) * (str name) (")
    assert "\n" not in message
