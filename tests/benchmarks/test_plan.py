"""Command line of `python -m raymi.bench`: plans and refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymi.benchmarks.arms import AT, JOINT, RELEASED, STAGED, arm_config
from raymi.benchmarks.plan import PARTS
from raymi.benchmarks.scaling import no_scaling
from raymi.benchmarks.synthetic import random_splits
from raymi.commands.bench.command import planned
from raymi.commands.bench.options import requested
from raymi.errors import UserError


def test_default_is_the_paper_s_networks_and_every_part() -> None:
    plan = planned(requested([]))
    config = plan.config
    assert plan.parts == tuple(PARTS)
    assert (config.model.name, config.optim.batch_size, config.attack.steps) == ("resnet18", 64, 10)
    assert (config.mi.hidden, config.mi.form, config.attack.eps) == (2048, "bounded", 8 / 255)
    assert (plan.rounds, plan.runs, plan.loop_steps, plan.json) == (5, 3, 8, None)


def test_options_and_keys_of_a_run_combine(tmp_path: Path) -> None:
    words = [
        "recipe=quickstart-namid-t",
        "parts=memory,phases",
        "rounds=2",
        "eps=8/255",
        "workers=2",
    ]
    plan = planned(requested([*words, "threads=1", "--json", str(tmp_path / "b.json")]))
    assert plan.parts == ("phases", "memory")
    assert (plan.rounds, plan.workers, plan.threads) == (2, 2, 1)
    assert plan.json == tmp_path / "b.json"
    assert (plan.config.attack.eps, plan.config.loss.base) == (8 / 255, "trades")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["parts=phses"], ["unknown part 'phses': did you mean phases?"]),
        (["parts=,"], ["parts: expected names"]),
        (["rounds=0"], ["rounds: expected whole number >= 1, got '0'"]),
        (["runs=two", "threads=-1"], ["runs: expected whole number", "threads: expected whole"]),
        (["threads=5000"], ["threads: expected at most 4096, got 5000"]),
        (["--json", "/nowhere/b.json"], ["json: no folder /nowhere"]),
        (["phases"], ["did you mean parts=phases?"]),
        (["recipe=quikstart"], ["did you mean quickstart?"]),
        (["mi.weight=0"], ["expected a configuration with both kinds of MI"]),
        (["recipe=quickstart-at"], ["expected a configuration with both kinds of MI"]),
        (["mi.estimators=run"], ["mi.estimators cannot be set here"]),
        (["data.root=/tmp"], ["data.root cannot be set here: images are random"]),
        (["eps=8", "rnds=3"], ["did you mean eps=8/255?", "unknown key 'rnds'"]),
        (["data.name=digits", "mi.depth=4"], ["mi.depth must be at most 3 here, got 4"]),
        (["use_gpu=true"], ["use_gpu=true needs a GPU"]),
    ],
)
def test_invalid_words_are_one_error_with_a_line_each(
    words: list[str], parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raymi.commands.bench.options.available_gpus", list)
    with pytest.raises(UserError) as raised:
        requested(words)
    lines = str(raised.value).splitlines()
    assert [part for part in parts if not any(part in line for line in lines)] == []
    assert len(lines) == len(parts)


@pytest.mark.parametrize(
    "words",
    [[], ["mi.form=released"], ["recipe=strong-cifar10"], ["recipe=quickstart-namid-m"],
     ["recipe=paper-tinyimagenet-l2"], ["mi.balance=0.3"], ["attack.start=gaussian"]],
)  # fmt: skip
def test_arms_of_any_recipe_have_the_settings_of_their_name(words: list[str]) -> None:
    config = planned(requested(words)).config
    arms = {arm: arm_config(config, arm) for arm in (AT, STAGED, JOINT, RELEASED)}
    assert not arms[AT].mi.enabled
    assert (arms[STAGED].mi.schedule, arms[JOINT].mi.schedule) == ("staged", "joint")
    assert arms[STAGED].mi.form == arms[JOINT].mi.form == config.mi.form
    released = arms[RELEASED]
    assert (released.mi.form, released.mi.schedule) == ("released", "staged")
    assert (released.loss.base, released.loss.batchnorm) == ("at", "released")
    assert (released.mi.weight, released.mi.balance) == (5.0, None)
    for one in arms.values():
        assert one.attack.steps == config.attack.steps
        assert one.mi.hidden == config.mi.hidden


@pytest.mark.parametrize(
    ("words", "cores", "why"),
    [
        (["workers=2"], 2, None),
        (["workers=1"], 2, "set workers=2 or more"),
        ([], 1, "at least 2 cores are needed, this machine has 1"),
        (["workers=3"], 2, "3 workers need as many cores, this machine has 2"),
        (["batch_size=2", "workers=2"], 4, None),
    ],
)
def test_scaling_that_cannot_be_measured_has_a_reason(
    words: list[str], cores: int, why: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raymi.benchmarks.plan.available_cores", lambda: cores)
    reason = no_scaling(planned(requested([*words, "use_gpu=false"])))
    assert reason == why if why is None else why in (reason or "")


def test_random_images_have_the_shape_of_the_data_set_and_depend_on_the_seed() -> None:
    config = planned(requested(["recipe=paper-tinyimagenet-linf"])).config
    splits = random_splits(config, 7)
    assert (splits.image_size, splits.num_classes, len(splits.train)) == (64, 200, 7)
    assert splits.train.digest == random_splits(config, 7).train.digest
    other = planned(requested(["recipe=paper-tinyimagenet-linf", "seed=1"])).config
    assert splits.train.digest != random_splits(other, 7).train.digest
