"""Phases of a run: one in the joint schedule, up to three in the paper's staged one."""

from __future__ import annotations

from dataclasses import dataclass

from raymi.config import Config, OptimConfig
from raymi.losses.settings import LossConfig
from raymi.mi.settings import MIConfig


@dataclass(frozen=True)
class Phase:
    """Part of a run with its own learning problem.

    Attributes:
        name: "pretraining", "estimators" or "classifier".
        config: of the phase, with its `optim.epochs`. Before the classifier's phase, settings that
            the phase does not use have their defaults: equal configurations learn the same.
        learns_classifier: whether the classifier is updated, or frozen.
        learns_estimators: whether the estimators are updated, or frozen.
    """

    name: str
    config: Config
    learns_classifier: bool
    learns_estimators: bool


def phases_of(config: Config) -> tuple[Phase, ...]:
    """Returns the phases of a run, in order; "classifier" is the last one.

    Staged (Zhou et al. 2022, Alg. 1): a classifier is trained by AT, with this run's other
    settings; the estimators are trained on it, frozen; then the classifier is trained from the same
    initial weights, with the estimators frozen. Phases that an earlier run replaces
    (`mi.pretrained`, `mi.estimators`) are omitted.
    """
    mi = config.mi
    if mi.schedule == "joint" or not mi.has_estimators:
        return (Phase("classifier", config, True, mi.has_estimators),)
    phases = [Phase("classifier", config, True, False)]
    if mi.estimators is None:
        phases.insert(0, Phase("estimators", _estimation(config), False, True))
        if mi.pretrained is None:
            phases.insert(0, Phase("pretraining", _pretraining(config), True, False))
    return tuple(phases)


def phases_until(config: Config, last: str) -> tuple[Phase, ...]:
    """Returns the phases of a run up to the named one.

    Raises:
        ValueError: the run has no such phase.
    """
    phases = phases_of(config)
    return phases[: [phase.name for phase in phases].index(last) + 1]


def _pretraining(config: Config) -> Config:
    """Returns the configuration of plain AT: mi.weight=0 and loss.base=at, without averaging."""
    epochs = config.mi.pretrain_epochs or config.optim.epochs
    return config.model_copy(
        update={
            "mi": MIConfig(weight=0.0),
            "loss": LossConfig(base="at", **config.loss.settings("at")),
            "optim": config.optim.model_copy(update={"epochs": epochs, "ema": 0.0}),
        }
    )


_UNUSED_BY_ESTIMATORS = (
    "form",
    "pretrain_epochs",
    "estimator_epochs",
    "weight",
    "balance",
    "alpha_max",
    "samples",
    "difference",
    "cosine",
    "clamp",
    "natural_cap",
)
"""Keys of `mi` that do not affect the estimators: lengths of phases, and the classifier's terms."""


def _estimation(config: Config) -> Config:
    """Returns the configuration of estimators on a frozen classifier.

    Of the loss they depend on the attack's objective alone, of the optimiser on the batches.
    """
    mi, optim = config.mi, config.optim
    attacked = {"objective": config.attack_objective, "radius_warmup": 0.0}
    epochs = mi.estimator_epochs or -(-optim.epochs // 2)
    default = MIConfig()
    unused = {key: getattr(default, key) for key in _UNUSED_BY_ESTIMATORS}
    return config.model_copy(
        update={
            "attack": config.attack.model_copy(update=attacked),
            "loss": LossConfig(),
            "mi": mi.model_copy(update=unused),
            "optim": OptimConfig(epochs=epochs, batch_size=optim.batch_size),
        }
    )
