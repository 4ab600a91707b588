"""Black-box transfer: attacks on a surrogate whose samples are tried on other classifiers.

A surrogate attacks all images, also the misclassified ones, and its samples are saved. Each target
is measured on the images that it classifies right itself; its clean errors count as errors, as in
every evaluation.

Source: Papernot, McDaniel, Goodfellow, "Transferability in machine learning", 2016.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from raymi.attacks.catalogue import Threat, find_attack
from raymi.attacks.execution import Batch
from raymi.attacks.suites import Ensemble
from raymi.evaluation.blocks import Step
from raymi.evaluation.outcome_store import OutcomeStore
from raymi.evaluation.scheduler import Lookup

ON_SURROGATE = "crafted-"
"""Prefix of the names of ensembles that surrogates run."""


def surrogate_ensemble(attack: str) -> Ensemble:
    """Returns the ensemble that attacks all images on a surrogate.

    Raises:
        UserError: the attack is unknown.
    """
    return Ensemble(f"{ON_SURROGATE}{attack}", (find_attack(attack),), everyone=True)


def transfer_ensemble(attack: str, surrogate: str, identity: str) -> Ensemble:
    """Returns the ensemble that tries a surrogate's samples on a target.

    Args:
        attack: name.
        surrogate: name of the classifier that the samples were made on.
        identity: of the surrogate's outcome store.
    """
    original = find_attack(attack)
    settings = {**original.settings, "attack": attack, "surrogate": identity}
    name = transfer_name(attack, surrogate, identity)
    transferred = replace(
        original, name=name, function=_not_on_target, settings=settings, by_gradient=False
    )
    return Ensemble(name, (transferred,))


def transfer_name(attack: str, surrogate: str, identity: str) -> str:
    """Returns the name of a target's transfer accuracy, unique among surrogates of one name."""
    return f"{attack}-from-{surrogate}-{identity}"


def transfer_lookup(stores: Mapping[str, tuple[OutcomeStore, str]]) -> Lookup:
    """Returns a function that finds the samples of surrogates.

    Args:
        stores: the surrogate's outcome store and the attack, by the name of the transfer ensemble.
    """

    def find(step: Step, samples: Tensor) -> Tensor | None:
        if step.ensemble not in stores:
            return None
        store, attack = stores[step.ensemble]
        saved = store.load_x_adv(Step(f"{ON_SURROGATE}{attack}", 0, attack, step.block))
        if saved is None:
            raise LookupError(f"{store.folder} lacks the samples of block {step.block}")
        selected, x_adv = saved
        return x_adv[torch.searchsorted(selected, samples)]

    return find


def _not_on_target(model: nn.Module, batch: Batch, threat: Threat) -> Tensor:
    raise LookupError("samples of a surrogate are made on the surrogate")


def is_on_surrogate(step: Step) -> bool:
    """Returns whether a step runs on a surrogate, so that its samples are saved."""
    return step.ensemble.startswith(ON_SURROGATE)
