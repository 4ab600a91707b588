"""Black-box transfer: samples made on a surrogate, by which other classifiers are judged.

A surrogate attacks all images, also those that it misclassifies; its samples are kept. Each target
is then judged on those of the images that it classifies right itself. As in every evaluation, what
it gets wrong already is wrong under the attack as well.

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

CRAFTED = "crafted-"
"""What the name of an ensemble begins with whose samples are made for others."""


def crafting(attack: str) -> Ensemble:
    """The ensemble with which a surrogate makes samples of all images.

    Raises: UserError where there is no such attack.
    """
    return Ensemble(f"{CRAFTED}{attack}", (find_attack(attack),), everyone=True)


def transferred(attack: str, surrogate: str, identity: str) -> Ensemble:
    """The ensemble by which a target is judged: the samples of a surrogate.

    Args: attack, its name; surrogate, the name of the classifier that it was made on; identity of
        the ledger that has them.
    """
    made = find_attack(attack)
    settings = {**made.settings, "attack": attack, "surrogate": identity}
    name = transfer_name(attack, surrogate, identity)
    elsewhere = replace(
        made, name=name, function=_made_elsewhere, settings=settings, by_gradient=False
    )
    return Ensemble(name, (elsewhere,))


def transfer_name(attack: str, surrogate: str, identity: str) -> str:
    """Under which the accuracy of a target is reported: others may be called as the surrogate
    is."""
    return f"{attack}-from-{surrogate}-{identity}"


def lookup(kept: Mapping[str, tuple[OutcomeStore, str]]) -> Lookup:
    """Finds the samples of surrogates.

    Args: kept, for the name of each ensemble of `transferred` the ledger of the surrogate, and the
        attack.
    """

    def find(step: Step, samples: Tensor) -> Tensor | None:
        if step.ensemble not in kept:
            return None
        store, attack = kept[step.ensemble]
        found = store.adversarial(Step(f"{CRAFTED}{attack}", 0, attack, step.block))
        if found is None:
            raise LookupError(f"{store.folder} lacks the samples of block {step.block}")
        selected, x_adv = found
        return x_adv[torch.searchsorted(selected, samples)]

    return find


def _made_elsewhere(model: nn.Module, batch: Batch, threat: Threat) -> Tensor:
    raise LookupError("samples of a surrogate are made on the surrogate, and given")


def is_crafting(step: Step) -> bool:
    """Whether the samples of a step are for others, and to be kept."""
    return step.ensemble.startswith(CRAFTED)
