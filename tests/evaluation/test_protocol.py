"""Protocols: everything that an outcome depends on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import raymi
from raymi.attacks.catalogue import Threat, find_attack
from raymi.attacks.suites import Ensemble, ensembles_of
from raymi.data import ImageSet
from raymi.evaluation.protocol import (
    OUTCOME_CODE,
    attack_inputs,
    attack_settings,
    block_size,
    code_digest,
    protocol_hash,
    protocol_of,
)

PACKAGE = Path(raymi.__file__).parent
GIVEN = {"seed": 0, "block": 32, "device": "cpu", "threads": 1}


def images(seed=0):
    torch.manual_seed(seed)
    pixels = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(4), tuple("abcd"))


def protocol(model="abc", seed_of_images=0, threat=Threat("linf", 0.1), **changed):  # noqa: B008
    return protocol_of(model, images(seed_of_images), threat, **(GIVEN | changed))


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
def test_each_part_of_the_protocol_changes_its_hash(other):
    assert protocol_hash(protocol()) == protocol_hash(json.loads(json.dumps(protocol())))
    assert protocol_hash(protocol(**other)) != protocol_hash(protocol())


def copy_of_the_code(folder):
    return Path(shutil.copytree(PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__")))


def test_the_code_of_attacks_is_part_of_the_protocol(tmp_path):
    assert (
        protocol()["code"] == code_digest(PACKAGE) == code_digest(copy_of_the_code(tmp_path / "a"))
    )


@pytest.mark.parametrize("place", OUTCOME_CODE)
def test_a_change_of_any_code_that_decides_outcomes_changes_its_digest(place, tmp_path):
    changed = copy_of_the_code(tmp_path / "raymi")
    file = changed / place if place.endswith(".py") else min((changed / place).glob("*.py"))
    file.write_text(f"{file.read_text()}# changed\n")
    assert code_digest(changed) != code_digest(PACKAGE)


def test_files_that_attacks_read_are_part_of_the_protocol():
    attack = find_attack("pgd-2")
    files = [Ensemble("a", (replace(attack, inputs={"a.npy": digest}),)) for digest in "12"]
    hashes = {
        protocol_hash(protocol(inputs=given))
        for given in ({}, *(attack_inputs([one]) for one in files))
    }
    assert len(hashes) == 3
    assert attack_inputs([Ensemble("a", (attack,))]) == {}


def test_settings_are_json_and_distinguish_attacks():
    names = ["pgd-20", "pgd-20@2eps", "pgd-20@any", "autoattack", "ti-dim"]
    settings = attack_settings(ensembles_of(names, Threat("linf", 0.1), 10))
    assert json.loads(json.dumps(settings)) == settings
    assert settings["pgd-20@2eps"] != settings["pgd-20"] != settings["pgd-20@any"]
    assert {"apgd-ce", "apgd-t", "fab-t", "square"} <= set(settings)


@pytest.mark.parametrize(("num", "size"), [(1, 32), (359, 32), (1000, 63), (10_000, 256)])
def test_blocks_depend_on_the_number_of_samples_alone(num, size):
    assert block_size(num) == size
