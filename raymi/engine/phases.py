"""The phases of a run: one for the joint schedule, up to three for the paper's staged one."""

from __future__ import annotations

from dataclasses import dataclass

from raymi.config import Config, LossConfig


@dataclass(frozen=True)
class Phase:
    """A part of a run with a learning problem of its own.

    name: "pretraining", "estimators" or "classifier".
    config: what it trains with; its `optim.epochs` are the phase's.
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
        epochs = mi.estimator_epochs or -(-config.optim.epochs // 2)
        phases.insert(0, Phase("estimators", _lasting(config, epochs), False, True))
        if mi.pretrained is None:
            phases.insert(0, Phase("pretraining", _pretraining(config), True, False))
    return tuple(phases)


def _pretraining(config: Config) -> Config:
    """Plain AT: what a run with mi.weight=0 and loss.base=at is, bit for bit; its average would
    be used by nobody."""
    off = config.mi.model_copy(update={"weight": 0.0, "balance": None})
    at = LossConfig(label_smoothing=config.loss.label_smoothing)
    plain = config.model_copy(update={"mi": off, "loss": at})
    plain = _lasting(plain, config.mi.pretrain_epochs or config.optim.epochs)
    return plain.model_copy(update={"optim": plain.optim.model_copy(update={"ema": 0.0})})


def _lasting(config: Config, epochs: int) -> Config:
    return config.model_copy(update={"optim": config.optim.model_copy(update={"epochs": epochs})})
