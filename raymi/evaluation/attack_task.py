"""Attack tasks: steps of an evaluation, as they are sent to workers and run there."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from raymi.errors import UserError, first_line, what_happened
from raymi.evaluation.blocks import BlockAttacker, Outcome, Step


class AttackTask(NamedTuple):
    """A step to run on one classifier.

    Args:
        source: name of the classifier.
        step: attack and block.
        samples: (M,) int64, samples of the block to attack.
        x_adv: (M, 3, H, W) made on another classifier; None: run the attack.
        keep: return the adversarial images, too.
    """

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
    """Outcome of a step; x_adv (M, 3, H, W) only if the task keeps it."""

    step: Step
    outcome: Outcome
    x_adv: Tensor | None = None


class StepFailed(RuntimeError):
    """Failure of a step that no setting can prevent.

    The message is complete: it names the step, the error and its place.
    """


def run_task(task: AttackTask, attacker_of: Callable[[str], BlockAttacker]) -> AttackResult:
    """Runs a step.

    Args:
        task: step and samples.
        attacker_of: returns the attacker of a classifier by name.

    Raises:
        UserError: the user can fix it; out of memory, too.
        StepFailed: any other error, such as one in the user's network.
    """
    try:
        attacker = attacker_of(task.source)
        outcome, x_adv = attacker.run(task.step, task.samples, task.x_adv)
    except UserError as error:
        raise UserError(f"{task}: {error}") from error
    except Exception as error:
        if _is_out_of_memory(error):
            raise UserError(
                f"{task}: a batch of {len(task.samples)} images does not fit into memory, set a "
                f"smaller evaluation.block ({type(error).__name__}: {first_line(error)})"
            ) from error
        raise StepFailed(f"{task}: {what_happened(error)}") from error
    return AttackResult(task.step, outcome, x_adv if task.keep else None)


def _is_out_of_memory(error: Exception) -> bool:
    """Recognises out-of-memory errors, some of which have no type of their own in PyTorch."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text
    )
