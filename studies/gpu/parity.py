"""Training steps of all methods on the device, compared with the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from raymi.benchmarks.arms import trainee
from raymi.benchmarks.section import Section
from raymi.config import Config
from raymi.engine.train_loader import Batch
from raymi.errors import first_line
from raymi.overrides import nest, validate

METHODS: dict[str, dict[str, Any]] = {
    "AT": {"mi.weight": 0.0},
    "TRADES": {"mi.weight": 0.0, "loss.base": "trades"},
    "MART": {"mi.weight": 0.0, "loss.base": "mart"},
    "IKL": {"mi.weight": 0.0, "loss.base": "ikl"},
    "bounded": {},
    "bounded, L2": {"attack.norm": "l2", "attack.eps": 0.5},
    "bounded, AWP, averaged": {"optim.awp": 0.005, "optim.ema": 0.999},
    "bounded, micro-batches": {"scaling.micro_batch": 8},
    "paper": {"mi.form": "paper", "mi.schedule": "staged"},
    "released": {
        "mi.form": "released",
        "mi.schedule": "staged",
        "loss.batchnorm": "released",
    },
    "wmim": {"mi.form": "wmim"},
    "random": {"mi.form": "random"},
    "teacher": {"mi.form": "teacher"},
    "adr": {"mi.form": "adr"},
    "js on TRADES": {"mi.form": "js", "loss.base": "trades"},
}
"""Settings of each method."""
OPTIONS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "channels_last": {"scaling.channels_last": True},
    "fold": {"scaling.fold_batchnorm": True},
    "bf16": {"scaling.precision": "bf16"},
    "compile": {"scaling.compile": True},
}
"""Settings of scaling that change the rounding only."""
LIMITS = {"float64": 1e-7, "fp32": 2e-2, "channels_last": 2e-2, "fold": 2e-2, "compile": 2e-2}
"""Largest accepted difference; bf16 has none, as it rounds to three digits.

A gradient close to 0 may get another sign in fp32, and a pixel of x_adv another value.
"""


class Step(NamedTuple):
    """Results of one step: loss, and the change of all weights as one vector, in float64."""

    loss: float
    change: torch.Tensor


class Difference(NamedTuple):
    """Relative difference of a step to the CPU's, or the error in its place."""

    loss: float = 0.0
    change: float = 0.0
    error: str = ""

    def __str__(self) -> str:
        return self.error[:60] or f"{max(self.loss, self.change):.1e}"


def config_of(settings: Mapping[str, Any], *, small: bool) -> Config:
    """Returns the configuration of a method."""
    size = {"model.width": 0.25, "optim.batch_size": 16} if small else {"optim.batch_size": 64}
    common = {
        "data.name": "cifar10",
        "model.name": "small-resnet",
        "attack.eps": 8 / 255,
        "attack.steps": 3,
        "mi.hidden": 32,
        "mi.base_width": 8,
        "optim.epochs": 1,
        "optim.schedule": "constant",
        **size,
    }
    if settings.get("mi.form") in ("teacher", "adr", "js"):
        common = {k: v for k, v in common.items() if not k.startswith("mi.")}
    return validate(nest({**common, **settings}))


def step_of(config: Config, device: torch.device, dtype: torch.dtype = torch.float32) -> Step:
    """Makes one step from the initial weights on the first batch.

    Args:
        config: what to train.
        device: where.
        dtype: of weights and images.
    """
    torch.set_default_dtype(dtype)
    try:
        made = trainee(config, device)
        before = _weights(made.state.model)
        batch: Batch = next(made.batches)
        metrics = made.state.step(batch._replace(x=batch.x.to(dtype)))
        change = _weights(made.state.model) - before
    finally:
        torch.set_default_dtype(torch.float32)
    return Step(float(metrics["loss"]), change)


def compare(config: Config, expected: Step, device: torch.device, dtype: torch.dtype) -> Difference:
    """Returns the difference of a step on the device to the expected one."""
    try:
        found = step_of(config, device, dtype)
    except Exception as error:  # other methods continue
        return Difference(error=f"{type(error).__name__}: {first_line(error)}")
    scale = expected.change.norm()
    return Difference(
        abs(found.loss - expected.loss) / max(abs(expected.loss), 1e-12),
        float((found.change - expected.change).norm() / scale),
    )


def measure_parity(device: torch.device, *, small: bool, compiled: bool) -> Section:
    """Compares every method, in float64 and with each option.

    Args:
        device: compared with the CPU.
        small: thin networks and few images.
        compiled: also with `torch.compile`.
    """
    cpu = torch.device("cpu")
    options = {k: v for k, v in OPTIONS.items() if compiled or k != "compile"}
    rows, data = [], dict[str, Any]()
    for name, settings in METHODS.items():
        plain = config_of(settings, small=small)
        double = step_of(plain, cpu, torch.float64)
        single = step_of(plain, cpu)  # with other initial weights
        found = {"float64": compare(plain, double, device, torch.float64)}
        for option, scaling in options.items():
            config = config_of({**settings, **scaling}, small=small)
            found[option] = compare(config, single, device, torch.float32)
        rows.append([name, *map(str, found.values())])
        data[name] = {option: one._asdict() for option, one in found.items()}
    beyond = [
        f"{name}, {option}"
        for name, found in data.items()
        for option, one in found.items()
        if one["error"] or max(one["loss"], one["change"]) > LIMITS.get(option, float("inf"))
    ]
    note = f"beyond its limit: {'; '.join(beyond)}" if beyond else "all within their limits"
    return Section(
        "Relative difference of a step to the CPU: the larger of loss and change of weights",
        ("method", "float64", *options),
        rows,
        {"differences": data, "limits": LIMITS, "beyond": beyond},
        (note,),
    )


def measure_syncs(device: torch.device, *, small: bool) -> Section:
    """Finds steps in which the CPU waits for the GPU (`torch.cuda.set_sync_debug_mode`)."""
    title = "Steps without waiting for the GPU"
    if device.type != "cuda":
        return Section(title, (), (), {"skipped": "no GPU"}, ("not measured: no GPU",))
    rows, data = [], dict[str, str]()
    for name, settings in METHODS.items():
        made = trainee(config_of(settings, small=small), device)
        batch = next(made.batches)
        made.state.step(batch)  # allocates the optimisers' state
        torch.cuda.set_sync_debug_mode("error")
        try:
            made.state.step(batch)
            data[name] = ""
        except RuntimeError as error:
            data[name] = first_line(error)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        rows.append([name, data[name] or "none"])
    return Section(title, ("method", "first wait"), rows, {"waits": data})


def _weights(model: torch.nn.Module) -> torch.Tensor:
    tensors = [p.detach().double().cpu().flatten() for p in model.parameters()]
    return torch.cat(tensors)
