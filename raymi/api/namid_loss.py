"""`raymi.NAMIDLoss`: NAMID as a loss for any training loop."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from raymi.collectives import Collectives, Metrics, ProcessGroup, Shard
from raymi.counter_rng import random_key
from raymi.engine.build_phase import build_estimators, build_objective
from raymi.engine.learner import Learner, distributed
from raymi.engine.step import EstimatorUpdate
from raymi.errors import UserError
from raymi.given import name_of
from raymi.losses.base import AdversarialLoss
from raymi.losses.own import check_loss, loss_of
from raymi.losses.registry import build_loss, lists_losses, losses
from raymi.mi.estimation import EstimatorTask
from raymi.mi.forms.base import TermContext
from raymi.mi.forms.own import check_term
from raymi.mi.forms.registry import build_term
from raymi.models.batchnorm import convert_batchnorm
from raymi.overrides import validate


@lists_losses
class NAMIDLoss(nn.Module):
    """Adversarial loss plus weighted MI loss (Eq. 9), with the estimators of both kinds of MI.

    In each step of a loop, call `update` with detached outputs, then the loss, then step your own
    optimiser, which must not have this module's parameters:

        logits, logits_adv = model(x), model(x_adv)
        loss.update(x, x_adv, logits.detach(), logits_adv.detach())
        loss(x, x_adv, logits, logits_adv, y).backward()

    Where torch.distributed is initialised, negatives come from the batch of all processes, whose
    sizes may differ, and losses are such that DDP's averaged gradient is that of this batch. Build
    it after `init_process_group`. `state_dict` holds the estimators and their optimiser.

    Args:
        num_classes: K.
        image_size: height and width, in pixels.
        loss: adversarial loss: name (`raymi.losses.losses()`, or `module:name` of your
            own); a subclass of `raymi.losses.AdversarialLoss`, or an object of one,
            such as `raymi.losses.trades.TRADES(beta=4.0)`.
        seed: of the initial weights.
        **mi: settings of the section `mi`, such as form, weight or balance, hidden; see the
            configuration reference.

    Attributes:
        estimators: None without MI.
        metrics: detached values of the last call, whose mean over processes is the batch's: `loss`,
            `loss_adv`, `loss_mi`, `mi/...` in nats.

    Raises:
        UserError: A setting is invalid, your own loss fails its checks, or images are too small for
            the estimators.

    Source: Zhou et al. 2022, Eq. 8 and 9; the forms are raymi's (docs/method.md).
    """

    def __init__(
        self,
        num_classes: int,
        image_size: int,
        *,
        loss: AdversarialLoss | type[AdversarialLoss] | str = "at",
        seed: int = 0,
        **mi: Any,
    ) -> None:
        super().__init__()
        named = loss if isinstance(loss, str) else "at"
        config = validate({"mi": mi, "loss": {"base": named}, "seed": seed})
        if config.mi.averages_model:
            raise UserError(
                f"NAMIDLoss sees outputs only, but mi.form={config.mi.form} averages the "
                "classifier: train with raymi.fit, or choose another form"
            )
        for key in ("weight", "balance", "temperature"):
            if isinstance(value := getattr(config.mi, key), str):
                raise UserError(
                    f"NAMIDLoss does not know the length of training, got {key}={value}: give a "
                    "number, such as weight=1.0"
                )
        if isinstance(loss, str):
            loss = build_loss(loss, config.loss.settings())
        else:
            named = name_of(loss)
            loss = loss_of(named, loss, {})
        if type(loss) not in losses().values():
            check_loss(named, loss, num_classes)
        self.num_classes, self.image_size = num_classes, image_size
        self.loss, self.metrics = loss, dict[str, Tensor]()
        with torch.random.fork_rng([]):
            torch.manual_seed(random_key(seed, "estimators"))
            self.estimators = build_estimators(config.mi, num_classes, image_size)
        self._group: Collectives = ProcessGroup() if dist.is_initialized() else Collectives()
        self._mi = build_term(TermContext(config.mi, self.estimators))
        if ":" in config.mi.form:
            check_term(config.mi.form, self._mi, num_classes, image_size, loss)
        self._objective = build_objective(config.mi)
        self._needs_labels = config.mi.objective != "mim" or config.mi.negative_classes == "other"
        self._learner: Learner | None = None
        if self.estimators is not None:
            if self._group.world_size > 1:
                convert_batchnorm(self.estimators)
            adam = torch.optim.Adam(self.estimators.parameters(), lr=config.mi.estimator_lr)
            self._learner = Learner(EstimatorTask(self.estimators, config.mi), adam)

    def update(
        self,
        x: Tensor,
        x_adv: Tensor,
        logits: Tensor,
        logits_adv: Tensor,
        y: Tensor | None = None,
    ) -> Metrics:
        """Performs an optimiser step of the estimators.

        Args:
            x: (b, 3, H, W) in [0, 1].
            x_adv: (b, 3, H, W) in [0, 1].
            logits: (b, K) of x.
            logits_adv: (b, K) of x_adv.
            y: (b,) labels; needed by objectives that select samples (contrast) or
                negatives.

        Returns:
            Detached values, whose mean over processes is the batch's; none without estimators.
        """
        self._check(x, x_adv, logits, logits_adv)
        if self._learner is None:
            return {}
        assert self.estimators is not None
        if y is None:
            if self._needs_labels:
                raise UserError("this objective selects samples by their labels: give y")
            y = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        if isinstance(self._learner.task, EstimatorTask):  # DDP needs the final device
            self._learner.task = distributed(self._learner.task, self._group, x.device)
        self.estimators.train()
        shard = self._shard(x)
        step = EstimatorUpdate(self._learner)
        return step(x, x_adv, logits.detach(), logits_adv.detach(), y, shard)

    def forward(
        self, x: Tensor, x_adv: Tensor, logits: Tensor, logits_adv: Tensor, y: Tensor
    ) -> Tensor:
        """Computes the classifier's loss, with frozen estimators.

        Args:
            x: (b, 3, H, W) in [0, 1].
            x_adv: (b, 3, H, W) in [0, 1].
            logits: (b, K) of x; may be without gradient for AT without cosine terms.
            logits_adv: (b, K) of x_adv.
            y: (b,) labels.

        Returns:
            0-d; its mean over processes is the loss of the batch of all of them.
        """
        self._check(x, x_adv, logits, logits_adv)
        needed = self.loss.needs_clean_gradient or self._mi.needs_clean_gradient
        if needed and logits_adv.requires_grad and not logits.requires_grad:
            raise UserError(
                f"the gradient of {self.loss.title} at the clean logits is needed, got logits "
                "without one: compute model(x) outside of no_grad()"
            )
        shard = self._shard(x)
        loss_adv = self.loss(logits, logits_adv, y, shard)
        loss_mi, mi_metrics = self._mi(x, x_adv, logits, logits_adv, y, shard)
        loss, metrics = self._objective(loss_adv, loss_mi, [logits, logits_adv], shard)
        self.metrics = metrics | {"loss_adv": loss_adv.detach()} | mi_metrics
        return loss

    def get_extra_state(self) -> dict[str, Any]:
        """Returns states of optimiser, loss and MI term: tensors and plain values."""
        learner = {} if self._learner is None else self._learner.state_dict()
        states = {"loss": self.loss.state_dict(), "mi": self._mi.state_dict()}
        return {"estimators": learner, **states}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restores the content of `get_extra_state`."""
        if self._learner is not None:
            self._learner.load_state_dict(state["estimators"])
        self.loss.load_state_dict(state["loss"])
        self._mi.load_state_dict(state["mi"])

    def _shard(self, x: Tensor) -> Shard:
        """Returns the place of this process's samples in the batch of all."""
        group = self._group
        sizes = torch.zeros(group.world_size, dtype=torch.int64, device=x.device)
        sizes[group.rank] = len(x)
        counts = tuple(group.sum(sizes).tolist()) if group.world_size > 1 else (len(x),)
        first = sum(counts[: group.rank])
        return Shard(counts, group, torch.arange(first, first + len(x), device=x.device))

    def _check(self, x: Tensor, x_adv: Tensor, logits: Tensor, logits_adv: Tensor) -> None:
        """Checks shapes and the process group.

        Raises:
            UserError: A shape is wrong, or a group was joined after this was built.
        """
        image, output = (len(x), 3, *(self.image_size,) * 2), (len(x), self.num_classes)
        expected: dict[str, tuple[Tensor, tuple[int, ...]]]
        expected = {"x": (x, image), "x_adv": (x_adv, image)}
        expected |= {"logits": (logits, output), "logits_adv": (logits_adv, output)}
        for name, (tensor, shape) in expected.items():
            if tensor.shape != shape:
                raise UserError(
                    f"{name} must have shape {shape}, got {tuple(tensor.shape)}: give images of "
                    "this size with 3 channels, and logits of num_classes"
                )
        if dist.is_initialized() and dist.get_world_size() != self._group.world_size:
            raise UserError(
                f"NAMIDLoss was built for {self._group.world_size} processes, torch.distributed "
                f"has {dist.get_world_size()}: build it after init_process_group"
            )
