"""Training attack of the user, in place of PGD."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from raymi.attacks.catalogue import Threat
from raymi.attacks.settings import AttackConfig
from raymi.attacks.user_attack import adversarial_images, import_attack
from raymi.collectives import Shard
from raymi.counter_rng import random_key
from raymi.errors import UserError
from raymi.models.micro_batches import pieces_of
from raymi.models.modes import FullPrecision, evaluation_mode
from raymi.random_state import random_state_kept


class UserAttacker:
    """Attack by a user's function on the bare classifier, in eval mode.

    Its generator is seeded by step, worker and piece, so that a resumed run draws the same numbers;
    with another number of workers it draws others.

    Args:
        model: the bare classifier.
        attack: the threat model, and the function as `attack.name`.
        autocast: returns the context in which the classifier runs.
        micro_batch: samples that are attacked together; None: all.

    Raises:
        UserError: the function cannot be imported.
    """

    folded = None

    def __init__(
        self,
        model: nn.Module,
        attack: AttackConfig,
        autocast: Callable[[], AbstractContextManager[object]],
        micro_batch: int | None = None,
    ) -> None:
        import_attack(attack.name)
        self.model, self.attack = model, attack
        self.autocast = autocast
        self.micro_batch = micro_batch

    def __call__(self, x: Tensor, y: Tensor, shard: Shard) -> Tensor:
        """Returns adversarial samples (b, 3, H, W) in [0, 1], within eps of x.

        Raises:
            UserError: the result is none, or the function changed the classifier.
        """
        parts = pieces_of(self.micro_batch, x, y)
        rank = shard.group.rank
        return torch.cat(
            [
                self._attack(random_key(shard.key, "user attack", rank, number) % 2**31, *part)
                for number, part in enumerate(parts)
            ]
        )

    def _attack(self, seed: int, x: Tensor, y: Tensor) -> Tensor:
        if not len(x):
            return x
        parameters = list(self.model.parameters())
        before = [(parameter.grad, parameter._version) for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        attack, model = self.attack, FullPrecision(self.model)
        threat = Threat(attack.norm, attack.eps)
        devices = [x.device] if x.device.type == "cuda" else []
        try:
            with (
                random_state_kept(seed, devices),
                self.autocast(),
                evaluation_mode(model),
                torch.enable_grad(),
            ):
                x_adv = adversarial_images(attack.name, model, x, y, threat, seed)
        finally:
            for parameter, (gradient, _) in zip(parameters, before, strict=True):
                parameter.grad = gradient
        if any(p._version != version for p, (_, version) in zip(parameters, before, strict=True)):
            raise UserError(
                f"attack {attack.name!r} changed parameters: let it change a copy.deepcopy(model)"
            )
        return x_adv
