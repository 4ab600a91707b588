"""Throughput of training and of evaluation on the device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch

from raymi.attacks.catalogue import Threat, find_attack
from raymi.attacks.execution import Batch, run_attack
from raymi.benchmarks.arms import AT, JOINT, arm_config, trainee
from raymi.benchmarks.clock import interleaved, now
from raymi.benchmarks.section import Section, number
from raymi.config import Config
from raymi.errors import first_line
from raymi.models.modes import evaluation_mode
from raymi.overrides import nest, validate
from studies.gpu.naive import naive_step

TRAIN_IMAGES = 50_000
OPTIONS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"scaling.precision": "bf16"},
    "bf16, channels_last": {"scaling.precision": "bf16", "scaling.channels_last": True},
    "bf16, channels_last, fold": {
        "scaling.precision": "bf16",
        "scaling.channels_last": True,
        "scaling.fold_batchnorm": True,
    },
    "bf16, channels_last, compile": {
        "scaling.precision": "bf16",
        "scaling.channels_last": True,
        "scaling.compile": True,
    },
}
ATTACKS = ("pgd-40", "apgd-ce", "malt", "apgd-t", "fab-t", "square")


def config_of(batch: int, settings: dict[str, Any], *, small: bool) -> Config:
    """Returns PGD-10 on ResNet-18 at 32x32 pixels; `small`: a thin network and PGD-2."""
    size = {"model.name": "small-cnn", "model.depth": 4, "attack.steps": 2, "mi.hidden": 16}
    whole = {"model.name": "resnet18", "attack.steps": 10, "mi.hidden": 512}
    common = {
        "data.name": "cifar10",
        "attack.eps": 8 / 255,
        "attack.alpha": 2 / 255,
        "optim.batch_size": batch,
        **(size if small else whole),
    }
    return validate(nest({**common, **settings}))


def measure_training(
    device: torch.device, batch: int, rounds: int, *, small: bool, compiled: bool
) -> Section:
    """Times steps of AT and of NAMID (bounded, joint) with each option, beside a plain script.

    Args:
        device: where.
        batch: images in a batch.
        rounds: measurements in turn.
        small: a thin network.
        compiled: also with `torch.compile`.
    """
    calls: dict[str, Callable[[], object]] = {}
    plain = trainee(arm_config(config_of(batch, {}, small=small), AT), device)
    one = next(plain.batches)
    attack, optim = plain.config.attack, plain.config.optim
    sgd = torch.optim.SGD(
        plain.state.model.parameters(), optim.lr, optim.momentum, weight_decay=optim.weight_decay
    )
    calls["plain script, fp32"] = partial(
        naive_step,
        plain.state.model,
        sgd,
        one.x,
        one.y,
        eps=attack.eps,
        alpha=attack.step_size,
        steps=attack.steps,
    )
    failures = {}
    for option, settings in OPTIONS.items():
        if "compile" in option and not compiled:
            continue
        for arm in (AT, JOINT):
            name = f"{'AT' if arm == AT else 'NAMID'}, {option}"
            try:
                config = arm_config(config_of(batch, settings, small=small), arm)
                made = trainee(config, device)
                call = partial(made.state.step, next(made.batches))
                call()
                calls[name] = call
            except Exception as error:  # other options continue
                failures[name] = f"{type(error).__name__}: {first_line(error)}"
    seconds = {name: median(each) for name, each in interleaved(calls, rounds).items()}
    base = seconds["plain script, fp32"]
    rows = [
        [name, number(batch / s), number(TRAIN_IMAGES * s / batch), f"{base / s:.2f}"]
        for name, s in seconds.items()
    ]
    rows += [[name, why[:60], "", ""] for name, why in failures.items()]
    return Section(
        f"Training steps at batch {batch}",
        ("step", "images/s", f"s for {TRAIN_IMAGES:,} images", "/ plain script"),
        rows,
        {"seconds_per_step": seconds, "failures": failures, "batch": batch},
        ("targets: 2.5 times a plain fp32 loop; 7 s for an epoch of PGD-10 ResNet-18",),
    )


def measure_attacks(device: torch.device, num: int, *, small: bool) -> Section:
    """Times attacks of the suites on images that they do not break, their longest case.

    Args:
        device: where.
        num: images, attacked in one block at a radius of 0.01/255.
        small: a thin network.
    """
    config = config_of(num, {"scaling.channels_last": True}, small=small)
    made = trainee(arm_config(config, AT), device)
    model, x = made.state.model, next(made.batches).x
    index = torch.arange(num, device=device)
    rows, data = [], dict[str, float]()
    with evaluation_mode(model):
        with torch.no_grad():
            labels = model(x).argmax(dim=1)
        batch, threat = Batch(x, labels, index, 0), Threat("linf", 0.01 / 255)
        for name in ATTACKS[:2] if small else ATTACKS:
            start = now()
            run_attack(find_attack(name), model, batch, threat)
            data[name] = now() - start
            rows.append([name, number(data[name]), number(num / data[name])])
    total = sum(data[name] for name in data if name not in ("pgd-40", "malt"))
    note = f"AutoAttack of {num} robust images: {number(total)} s, {number(num / total)} images/s"
    return Section(
        f"Attacks on {num} images that withstand",
        ("attack", "s", "images/s"),
        rows,
        {"seconds": data, "images": num},
        (note,),
    )
