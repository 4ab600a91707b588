"""A run's journal as metrics: names, steps, and each event once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Event = Mapping[str, Any]


def told_by(
    event: Event, state: Mapping[str, Any]
) -> tuple[Mapping[str, Any], int, dict[str, Any]]:
    """What an event of the journal tells in metrics.

    Args: state, of what was told before: `step`, `epoch_step`, `best_robust`, `evaluations`,
        `probed`.
    Returns: values by the names of metrics, none of a replayed event; their step; and what of the
        state is another one once they are told.
    """
    kind, phase, step, epoch = (event[k] for k in ("kind", "phase", "global_step", "epoch"))
    prefix = "" if phase == "classifier" else f"{phase}/"
    if kind == "step" and step > state["step"]:
        metrics = {f"{prefix}train_steps/{k}": v for k, v in event["metrics"].items()}
        return metrics, step, {"step": step}
    if kind == "epoch" and step > state["epoch_step"]:
        metrics = {f"train/{k}": v for k, v in event["train"].items()}
        metrics |= {f"val/{k}": v for k, v in event["val"].items()}
        metrics |= {k: event[k] for k in ("lr", "images_per_s")}
        then = {"epoch_step": step}
        if (best := _best_robust(event, state)) is not None:
            metrics["val/best_robust_acc"] = then["best_robust"] = best
        return {f"{prefix}{k}": v for k, v in metrics.items()}, epoch, then
    if kind == "evaluation" and event["which"] not in state["evaluations"]:
        which, attack = event["which"], event["attack"]
        name = f"pgd{attack['steps']}_acc"
        values = {"clean_acc": event["clean"], name: event["robust"]}
        metrics = {f"test/{which}/{k}": v for k, v in values.items()}
        evaluations = {**state["evaluations"], which: event}
        metrics |= _overfitting_gap(evaluations, which)
        return metrics, epoch, {"evaluations": evaluations}
    if kind == "probe" and not state["probed"]:
        metrics = {f"probe/{k}": v for k, v in event["estimates"].items()}
        return metrics, epoch, {"probed": True}
    return {}, epoch, {}


def _best_robust(event: Event, state: Mapping[str, Any]) -> float | None:
    """The highest robust validation accuracy of the classifier by now, by which models and runs are
    chosen; None of other phases, and where nothing is validated."""
    if event["phase"] != "classifier":
        return None
    now = [float(v) for k, v in event["val"].items() if k in ("robust_acc", "averaged/robust_acc")]
    return max((v for v in [*now, state["best_robust"]] if v is not None), default=None)


def _overfitting_gap(evaluations: dict[str, Event], which: str) -> dict[str, float]:
    """How much robust accuracy the last model has lost against the best, once both are known."""
    suffix = which.removeprefix("best")
    if not which.startswith("best") or f"last{suffix}" not in evaluations:
        return {}
    gap = evaluations[which]["robust"] - evaluations[f"last{suffix}"]["robust"]
    return {f"test/robust_overfitting_gap{suffix}": gap}
