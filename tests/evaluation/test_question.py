"""What a ledger is bound to: everything that an outcome depends on."""

from __future__ import annotations

import json

import pytest
import torch

from raymi.attacks.catalogue import Threat
from raymi.attacks.suites import ensembles_of
from raymi.data import ImageSet
from raymi.evaluation.question import block_size, name_of, question_of, settings_of

GIVEN = {"seed": 0, "block": 32, "device": "cpu", "threads": 1}


def images(seed=0):
    torch.manual_seed(seed)
    pixels = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(4), tuple("abcd"))


def question(model="abc", seed_of_images=0, threat=Threat("linf", 0.1), **changed):  # noqa: B008
    return question_of(model, images(seed_of_images), threat, **(GIVEN | changed))


@pytest.mark.parametrize(
    "other",
    [
        {"model": "abd"},
        {"seed_of_images": 1},
        {"threat": Threat("l2", 0.1)},
        {"threat": Threat("linf", 0.11)},
        {"seed": 1},
        {"block": 33},
        {"device": "cuda"},
        {"threads": 2},
    ],
    ids=str,
)
def test_whatever_changes_an_outcome_changes_the_name(other):
    assert name_of(question()) == name_of(json.loads(json.dumps(question())))
    assert name_of(question(**other)) != name_of(question())


def test_the_code_of_attacks_is_part_of_the_question(monkeypatch, tmp_path):
    from raymi.evaluation import question as module

    before = question()
    for place in module._CODE:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        if place.endswith(".py"):
            (tmp_path / place).write_text("")
        else:
            (tmp_path / place).mkdir()
            (tmp_path / place / "pgd.py").write_text("changed = True")
    monkeypatch.setattr(module.raymi, "__file__", str(tmp_path / "__init__.py"))
    module._code_digest.cache_clear()
    try:
        assert question()["code"] != before["code"]
    finally:
        monkeypatch.undo()
        module._code_digest.cache_clear()
    assert question() == before


def test_settings_are_plain_and_tell_attacks_apart():
    names = ["pgd-20", "pgd-20@2eps", "pgd-20@any", "autoattack", "ti-dim"]
    settings = settings_of(ensembles_of(names, Threat("linf", 0.1), 10))
    assert json.loads(json.dumps(settings)) == settings
    assert settings["pgd-20@2eps"] != settings["pgd-20"] != settings["pgd-20@any"]
    assert {"apgd-ce", "apgd-t", "fab-t", "square"} <= set(settings)


@pytest.mark.parametrize(("num", "size"), [(1, 32), (359, 32), (1000, 63), (10_000, 256)])
def test_blocks_depend_on_the_number_of_samples_alone(num, size):
    assert block_size(num) == size
