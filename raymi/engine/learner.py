"""Learner: a task with its optimiser and schedule, on one worker or several."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from raymi.collectives import Collectives
from raymi.engine.ddp_hook import ONE_BUCKET_MB, average_in_order
from raymi.engine.schedules import fast_forward


@dataclass
class Learner:
    """Task with its optimiser and schedule; under DDP with several workers.

    Attributes:
        task: a module whose forward returns a loss.
        optimizer: of its parameters.
        schedule: of the learning rate; None: constant.
        clip_norm: largest norm of the gradient of all parameters; None: no clipping. Under DDP it
            applies to the mean over workers, so that all of them scale alike.
    """

    task: nn.Module
    optimizer: Optimizer
    schedule: LRScheduler | None = None
    clip_norm: float | None = None

    def backward(self, loss: Tensor) -> None:
        """Computes the gradients of the loss, averaged over workers, in place of earlier ones."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()

    def update(self) -> None:
        """Performs an optimiser step with the present gradients."""
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.task.parameters(), self.clip_norm)
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()

    def step(self, loss: Tensor) -> None:
        """Performs an optimiser step with the gradients of the loss."""
        self.backward(loss)
        self.update()

    def state_dict(self) -> dict[str, Any]:
        """Returns the states of optimiser and schedule."""
        schedule = None if self.schedule is None else self.schedule.state_dict()
        return {"optimizer": self.optimizer.state_dict(), "schedule": schedule}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the content of `state_dict` in a learner without a step.

        Momentum, second moments and the position of the schedule come from the state; learning
        rates and other settings are this learner's own.
        """
        own = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({**state["optimizer"], "param_groups": own})
        if self.schedule is not None:
            fast_forward(self.schedule, state["schedule"]["last_epoch"])


def distributed(
    task: nn.Module, group: Collectives, device: torch.device, *, some_unused: bool = False
) -> nn.Module:
    """Wraps a task in DDP; returns it unchanged for one worker.

    Gradients are averaged in an order that does not depend on earlier steps, so that a resumed run
    adds up as the uninterrupted one.

    Args:
        task: a module whose forward returns a loss, or outputs of one.
        group: the workers.
        device: of the task.
        some_unused: whether a backward pass may skip parameters.
    """
    if group.world_size == 1:
        return task
    # Two forwards precede one backward, so buffers must not be broadcast in between.
    parameters = signature(DistributedDataParallel.__init__).parameters
    new, old = "forward_sync_buffers", "broadcast_buffers"  # torch 2.12 and later, earlier
    settings: dict[str, Any] = {new if new in parameters else old: False}
    in_order = group.world_size > 2 and device.type == "cpu"
    if in_order:
        settings["bucket_cap_mb"] = ONE_BUCKET_MB
    ddp = DistributedDataParallel(
        task, gradient_as_bucket_view=True, find_unused_parameters=some_unused, **settings
    )
    if in_order:
        places = {parameter: place for place, parameter in enumerate(task.parameters())}
        ddp.register_comm_hook(places, average_in_order)
    return ddp
