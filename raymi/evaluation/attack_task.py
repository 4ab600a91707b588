"""One step of an evaluation, wherever it is made, and what is said where it cannot be."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from raymi.errors import UserError, first_line, what_happened
from raymi.evaluation.blocks import BlockAttacker, Outcome, Step


class AttackTask(NamedTuple):
    """A step to make: of which classifier, by its name; the samples that are left for it, (M,)
    int64; x_adv (M, 3, H, W) where the attack was made before, on another classifier; `keep`, its
    adversarial samples are asked for."""

    source: str
    step: Step
    samples: Tensor
    x_adv: Tensor | None = None
    keep: bool = False

    def __str__(self) -> str:
        step = self.step
        attack = step.attack if step.attack == step.ensemble else f"{step.ensemble}'s {step.attack}"
        return f"{attack} on block {step.block}" + (f" of {self.source}" if self.source else "")


class AttackResult(NamedTuple):
    """What came of a step; x_adv (M, 3, H, W) only where it is to be kept."""

    step: Step
    outcome: Outcome
    x_adv: Tensor | None = None


class StepFailed(RuntimeError):
    """A step cannot be made, and no setting of raymi's would change that.

    The message says which step, what happened and where: it stands alone.
    """


def make(task: AttackTask, attacker_of: Callable[[str], BlockAttacker]) -> AttackResult:
    """Makes a step.

    Args: task; attacker_of, what attacks the classifier of a name.
    Raises: UserError for what the user can put right, too little memory included; StepFailed where
        anything else fails, such as the user's own network.
    """
    try:
        attacker = attacker_of(task.source)
        outcome, x_adv = attacker.perform(task.step, task.samples, task.x_adv)
    except UserError as error:
        raise UserError(f"{task}: {error}") from error
    except Exception as error:
        if _is_lack_of_memory(error):
            raise UserError(
                f"{task}: {len(task.samples)} images at once do not fit into memory, set a smaller "
                f"evaluation.block ({type(error).__name__}: {first_line(error)})"
            ) from error
        raise StepFailed(f"{task}: {what_happened(error)}") from error
    return AttackResult(task.step, outcome, x_adv if task.keep else None)


def _is_lack_of_memory(error: Exception) -> bool:
    """PyTorch has a type of its own for most cases, not for all."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text
    )
