"""The training loop, written once against a small context: epochs, validation, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import safetensors.torch
import torch

from raymi import __version__
from raymi.config import Config
from raymi.counter_rng import random_key
from raymi.data import ImageSet, Splits, load_splits
from raymi.data.augment import to_unit
from raymi.engine.checkpoint import load_checkpoint, save_checkpoint, write_atomically
from raymi.engine.context import Context
from raymi.engine.evaluation import Accuracy, PGDAttack, evaluate_pgd
from raymi.engine.feed import Feed
from raymi.engine.journal import Journal
from raymi.engine.metrics import MetricMeans
from raymi.engine.run_folder import RunFolder
from raymi.engine.state import TrainState
from raymi.errors import UserError
from raymi.models.running_statistics import running_statistics_frozen


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `finished`, or stopped on request with a checkpoint at `global_step`."""

    finished: bool
    epoch: int
    global_step: int


def train(config: Config, context: Context, folder: RunFolder) -> Outcome:
    """Trains, evaluates and records a run in its folder; continues from its newest checkpoint.

    Every worker calls this with the same arguments. Rank 0 alone writes.

    Raises: UserError for data or settings that cannot work; FloatingPointError where a loss is not
        finite.
    """
    data = config.data
    splits = load_splits(
        data.name,
        data.root,
        image_size=data.image_size,
        val_fraction=data.val_fraction,
        split_seed=data.split_seed,
        download=data.download,
        limit=data.limit,
    )
    return _Run(config, context, folder, splits).train()


class _StopRequested(Exception):
    """Somebody asked the run to end; raised at the same point on every worker."""


class _Run:
    """One worker's part of a run."""

    def __init__(self, config: Config, context: Context, folder: RunFolder, splits: Splits) -> None:
        self.config, self.context, self.folder, self.splits = config, context, folder, splits
        self.group, self.device = context.group, context.device
        self.feed = Feed(
            splits.train.to(self.device), config, self.group.rank, self.group.world_size
        )
        self.val = _at_most(splits.val, config.validation.max_samples).to(self.device)
        self.test = _at_most(splits.test, config.evaluation.max_samples).to(self.device)
        total_steps = config.optim.epochs * self.feed.steps_per_epoch
        self.state = TrainState(config, splits, self.group, self.device, total_steps)
        self._check_last_batch()
        self.journal = Journal(folder.journal, enabled=self.group.rank == 0)
        self.epoch_began, self.epoch_images = 0.0, 0  # of this process, for the throughput

    def train(self) -> Outcome:
        self._restore()
        self._announce()
        position = self.state.position
        try:
            try:
                while position.epoch < self.config.optim.epochs:
                    self._train_epoch()
                    self._finish_epoch()
            except _StopRequested:
                self._check_finite(self.state.epoch_means.means(self.group))
                self._save()
                raise
            self._evaluate()
        except _StopRequested:
            self._write("stopped")
            return Outcome(False, position.epoch, position.global_step)
        else:
            self._write("finished")
            return Outcome(True, position.epoch, position.global_step)
        finally:
            self.journal.close()

    def _restore(self) -> None:
        """Continues from the newest intact checkpoint, which must be the same for every worker."""
        checkpoint = load_checkpoint(self.folder.checkpoints)
        step = -1 if checkpoint is None else checkpoint["position"]["global_step"]
        here = torch.tensor([step, -step], device=self.device)
        newest, oldest = (self.group.max(here) * torch.tensor([1, -1], device=self.device)).tolist()
        if newest != oldest:
            raise UserError(
                f"workers see different checkpoints in {self.folder.checkpoints} (of steps "
                f"{oldest} to {newest}): set out=FOLDER to storage that all nodes share"
            )
        if checkpoint is not None:
            self.state.load_state_dict(checkpoint)

    def _train_epoch(self) -> None:
        """Trains to the end of the epoch."""
        state, position, config = self.state, self.state.position, self.config
        state.train_mode()
        recent = MetricMeans()
        since, images = time.perf_counter(), 0
        self.epoch_began, self.epoch_images = since, 0
        for batch in self.feed.epoch(position.epoch, first_step=position.step):
            self._stop_if_requested()
            torch.manual_seed(
                random_key(config.seed, "step", position.global_step, self.group.rank)
            )
            key = random_key(config.seed, "start", position.epoch)
            metrics = state.step(batch, key)
            num = sum(batch.sizes)
            state.epoch_means.add(metrics, num)
            recent.add(metrics, num)
            position.step += 1
            position.global_step += 1
            images += num
            self.epoch_images += num
            if position.global_step % config.tracking.log_every == 0 or position.step == 1:
                means = recent.means(self.group)
                now = time.perf_counter()
                self._check_finite(means)
                self._write(
                    "step",
                    steps_per_epoch=self.feed.steps_per_epoch,
                    metrics=means,
                    lr=self._lr(),
                    images_per_s=images / (now - since),
                )
                recent.clear()
                since, images = now, 0

    def _finish_epoch(self) -> None:
        """Validates, offers the model as best, records, writes the checkpoint, then reports.

        The record comes first: after a crash in between it is there twice, and never missing. A
        run that is stopped while it validates does so again when it is continued.
        """
        state, position, config = self.state, self.state.position, self.config
        means = state.epoch_means.means(self.group)
        self._check_finite(means)
        seconds = time.perf_counter() - self.epoch_began
        epoch = position.epoch + 1
        last = epoch == config.optim.epochs
        val: dict[str, float] = {}
        is_best = False
        if last or epoch % config.validation.every == 0:
            accuracy = self._accuracy_on_validation()
            val = {"clean_acc": accuracy.clean, "robust_acc": accuracy.robust}
            is_best = state.best.offer(epoch, accuracy.robust, accuracy.clean, state.model)
        state.epoch_means.clear()
        position.epoch, position.step = epoch, 0
        if means.get("mi/grad_norm", 0.0) > means.get("grad_norm_adv", math.inf):
            self._write(
                "warning",
                message=f"the MI loss dominated the adversarial one in epoch {epoch}: the norms of "
                f"their gradients at the logits were {means['mi/grad_norm']:.3g} and "
                f"{means['grad_norm_adv']:.3g}; lower mi.weight or use mi.balance",
            )
        self._write(
            "epoch",
            train=means,
            val=val,
            lr=self._lr(),
            is_best=is_best,
            train_seconds=seconds,
            images_per_s=self.epoch_images / seconds,
        )
        if last or position.epoch % config.checkpoint.every == 0:
            self._save()
        self.context.report({"epoch": position.epoch, **{f"val/{k}": v for k, v in val.items()}})

    def _accuracy_on_validation(self) -> Accuracy:
        config = self.config
        steps = config.validation.steps
        attack = PGDAttack(
            config.attack.norm, config.attack.eps, 2.5 * config.attack.eps / steps, steps
        )
        return self._accuracy(self.val, attack, "validate", self.state.autocast)

    def _evaluate(self) -> None:
        """Clean and PGD accuracy of the last and of the best model on the test set, in fp32."""
        config, model = self.config, self.state.model
        eps, steps = config.attack.eps, config.evaluation.steps
        alpha = config.evaluation.alpha or eps / 4
        attack = PGDAttack(config.attack.norm, eps, alpha, steps)
        epochs = {"last": self.state.position.epoch, "best": self.state.best.epoch}
        results: dict[str, Accuracy] = {}
        for which, epoch in epochs.items():
            if which == "best":
                model.load_state_dict(self.state.best.weights)
            if self.group.rank == 0:
                weights = {
                    k: v.clone(memory_format=torch.contiguous_format)
                    for k, v in model.state_dict().items()
                }
                content = safetensors.torch.save(weights, {"epoch": str(epoch)})
                write_atomically(self.folder.weights(which), content)
            same = which == "best" and epoch == epochs["last"]
            results[which] = results["last"] if same else self._accuracy(self.test, attack, which)
            self._write(
                "evaluation", which=which, of_epoch=epoch, attack=asdict(attack),
                **asdict(results[which]),
            )  # fmt: skip

    def _accuracy(
        self,
        images: ImageSet,
        attack: PGDAttack,
        what: str,
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> Accuracy:
        def heartbeat(done: int, total: int) -> None:
            self._write("evaluating", what=what, done=done, of=total)
            self._stop_if_requested()

        return evaluate_pgd(
            self.state.model,
            images,
            attack,
            self.group,
            batch_size=self.config.evaluation.block,
            autocast=autocast,
            heartbeat=heartbeat,
        )

    def _stop_if_requested(self) -> None:
        if self.context.stop_requested():
            raise _StopRequested

    def _check_last_batch(self) -> None:
        """Refuses a last batch of an epoch that is too small for BatchNorm, before it comes."""
        images, workers = self.feed.images, self.group.world_size
        remainder = len(images) % self.config.optim.batch_size
        problem = None
        if 0 < remainder < workers and not self.config.scaling.sync_batchnorm:
            problem = "a worker without images has no BatchNorm statistics of its own"
        elif remainder == 1 and workers == 1:
            self.state.train_mode()
            try:
                with torch.no_grad(), running_statistics_frozen(self.state.model):
                    self.state.model(to_unit(images.images[:1]))
            except ValueError:
                problem = "this network's BatchNorm cannot take statistics of one image"
        if problem is not None:
            raise UserError(
                f"the last batch of an epoch has {remainder} images for {workers} workers, and "
                f"{problem}: set another optim.batch_size"
            )

    def _save(self) -> None:
        content = self.state.state_dict()
        if self.group.rank == 0:
            step = self.state.position.global_step
            save_checkpoint(self.folder.checkpoints, step, content, self.config.checkpoint.keep)

    def _announce(self) -> None:
        splits, state = self.splits, self.state
        modules = {"classifier": state.model, "estimators": state.estimators}
        self._write(
            "start",
            version=__version__,
            workers=self.group.world_size,
            device=_device_name(self.device),
            torch=torch.__version__,
            steps_per_epoch=self.feed.steps_per_epoch,
            epochs=self.config.optim.epochs,
            parameters={
                name: sum(p.numel() for p in module.parameters())
                for name, module in modules.items()
                if module is not None
            },
            data={
                "name": splits.name,
                "num_classes": splits.num_classes,
                "image_size": splits.image_size,
                "mean": list(splits.mean),
                "std": list(splits.std),
                "class_names": list(splits.train.class_names),
                "sizes": {k: len(getattr(splits, k)) for k in ("train", "val", "test")},
                "digests": (
                    {k: getattr(splits, k).digest for k in ("train", "val", "test")}
                    if self.group.rank == 0
                    else {}
                ),
            },
        )

    def _write(self, kind: str, **fields: Any) -> None:
        self.journal.write(kind, **asdict(self.state.position), **fields)

    def _lr(self) -> float:
        return self.state.classifier.optimizer.param_groups[0]["lr"]

    def _check_finite(self, means: Mapping[str, float]) -> None:
        broken = [name for name, value in means.items() if not torch.tensor(value).isfinite()]
        if broken:
            position = self.state.position
            raise FloatingPointError(
                f"expected finite losses, got {', '.join(f'{k} = {means[k]}' for k in broken)} "
                f"at step {position.step} of epoch {position.epoch + 1}: lower lr or mi.weight; "
                f"the newest checkpoint in {self.folder.checkpoints} is from before"
            )


def _at_most(images: ImageSet, num: int | None) -> ImageSet:
    """An evenly spaced selection of `num` images; all where num is None."""
    if num is None or num >= len(images):
        return images
    return images.subset(torch.arange(num) * len(images) // num)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
