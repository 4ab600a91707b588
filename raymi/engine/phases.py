"""The phases of a run: one for the joint schedule, up to three for the paper's staged one."""

from __future__ import annotations

from dataclasses import dataclass

from raymi.config import Config, LossConfig, MIConfig, OptimConfig


@dataclass(frozen=True)
class Phase:
    """A part of a run with a learning problem of its own.

    name: "pretraining", "estimators" or "classifier".
    config: what it trains with; its `optim.epochs` are the phase's. What the phases before the
        classifier's do not read has its default there: where their configurations are equal, they
        learn the same.
    learns_classifier, learns_estimators: what is updated; the rest is frozen.
    """

    name: str
    config: Config
    learns_classifier: bool
    learns_estimators: bool


def phases_of(config: Config) -> tuple[Phase, ...]:
    """The phases of a run, in order; the last one, "classifier", trains what the run is about.

    Staged (Zhou et al. 2022, Alg. 1): a classifier is trained by AT, with this run's other
    settings; the estimators are trained on it, frozen; then the classifier is trained from scratch,
    from the same initial weights, with the estimators frozen. What an earlier run has done
    (`mi.pretrained`, `mi.estimators`) is left out.
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
    """The phases of a run up to the one of that name.

    Raises: ValueError where it has no such phase.
    """
    phases = phases_of(config)
    return phases[: [phase.name for phase in phases].index(last) + 1]


def _pretraining(config: Config) -> Config:
    """Plain AT: what a run with mi.weight=0 and loss.base=at is, bit for bit; its average would
    be used by nobody."""
    epochs = config.mi.pretrain_epochs or config.optim.epochs
    return config.model_copy(
        update={
            "mi": MIConfig(weight=0.0),
            "loss": LossConfig(label_smoothing=config.loss.label_smoothing),
            "optim": config.optim.model_copy(update={"epochs": epochs, "ema": 0.0}),
        }
    )


_OF_OTHER_PHASES = (
    "form",
    "pretrain_epochs",
    "estimator_epochs",
    "weight",
    "balance",
    "alpha_max",
    "samples",
    "gradient",
    "difference",
    "cosine",
    "clamp",
)
"""Keys of `mi` that the estimators do not read: how long phases last, and what the classifier's MI
terms are."""


def _estimation(config: Config) -> Config:
    """Critics on a classifier that stays as it is: of the loss they see what is attacked, of the
    optimiser the batches."""
    mi, optim, attacked = config.mi, config.optim, {"objective": config.attack_objective}
    epochs = mi.estimator_epochs or -(-optim.epochs // 2)
    default = MIConfig()
    unread = {key: getattr(default, key) for key in _OF_OTHER_PHASES}
    return config.model_copy(
        update={
            "attack": config.attack.model_copy(update=attacked),
            "loss": LossConfig(),
            "mi": mi.model_copy(update=unread),
            "optim": OptimConfig(epochs=epochs, batch_size=optim.batch_size),
        }
    )
