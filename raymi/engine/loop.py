"""The training loop, written once against a small context: epochs, validation, checkpoints."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raymi import __version__
from raymi.config import Config
from raymi.counter_rng import random_key
from raymi.data import Splits
from raymi.data.augment import to_unit
from raymi.engine.context import Context
from raymi.engine.health_checks import alarms, finite_means, require_finite_weights
from raymi.engine.metrics import MetricMeans
from raymi.engine.phases import Phase, phases_until
from raymi.engine.storage import Storage
from raymi.engine.system_metrics import watched_machine
from raymi.engine.train_loader import TrainLoader
from raymi.engine.train_state import Position, TrainState
from raymi.engine.validation import Validation, load_data
from raymi.errors import UserError, what_happened
from raymi.hardware import machine_in_words, processor_name
from raymi.models.running_statistics import running_statistics_frozen
from raymi.runs.checkpoint import load_checkpoint, save_checkpoint
from raymi.runs.journal import Journal
from raymi.runs.pretrained import load_weights, pretrained_path, save_weights
from raymi.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `finished`; or stopped, on request or after `until_epoch`, with a checkpoint
    at `global_step`."""

    finished: bool
    epoch: int
    global_step: int


def train(
    config: Config,
    context: Context,
    folder: RunFolder,
    *,
    test: bool = True,
    until: str = "classifier",
    until_epoch: int | None = None,
) -> Outcome:
    """Trains, evaluates and records a run in its folder; continues from its newest checkpoint.

    Every worker calls this with the same arguments. Rank 0 alone writes. Settings are those of
    `config`, also where the checkpoint is of a run with others.

    Args: test, False leaves the test set alone: a run that is one of many that are compared. until,
        the last phase that is trained; where it is not the classifier's, the run is there for
        others to reuse what it has learnt so far, and is measured on validation only. until_epoch,
        so many epochs of that phase, after which the run stops with a checkpoint; None: all of
        them. Schedules are those of the whole run.
    Raises: UserError for data or settings that cannot work; FloatingPointError where a loss is not
        finite; StorageError, on every worker at the same point, where rank 0 cannot write.
    """
    phases = phases_until(config, until)
    with watched_machine(_machine_log(config, context, folder), config.tracking.machine_every or 0):
        return _Run(config, context, folder, load_data(config), phases, until_epoch).train(test)


def _machine_log(config: Config, context: Context, folder: RunFolder) -> Path | None:
    """Where this worker records how busy its machine is; None where it is not to do so."""
    if not config.tracking.enabled or config.tracking.machine_every is None:
        return None
    return folder.machine_log(context.node) if context.first_on_node else None


class _StopRequested(Exception):
    """The run is to end here; raised at the same point on every worker."""


class _Run:
    """One worker's part of a run."""

    def __init__(
        self,
        config: Config,
        context: Context,
        folder: RunFolder,
        splits: Splits,
        phases: tuple[Phase, ...],
        until_epoch: int | None,
    ) -> None:
        self.config, self.context, self.folder, self.splits = config, context, folder, splits
        self.until_epoch = until_epoch
        self.group, self.device = context.group, context.device
        self.loader = TrainLoader(
            splits.train.to(self.device),
            config,
            self.group.rank,
            self.group.world_size,
            None if splits.generated is None else splits.generated.to(self.device),
        )
        self.phases = phases
        self.state = self._begin()
        self._check_last_batch()
        self.storage = Storage(folder, context)
        self.journal = Journal(folder.journal, enabled=False)
        self.storage.write("the journal", folder.journal, self._open_journal)
        self.measurements = Validation(
            config,
            splits,
            self.storage,
            self.group,
            self.device,
            write=self._write,
            stop_if_requested=self._stop_if_requested,
        )
        self.saved_at = time.monotonic()
        self.epoch_began, self.epoch_images = 0.0, 0  # of this process, for the throughput

    def train(self, test: bool) -> Outcome:
        self._announce()
        try:
            try:
                self._train_phases()
            except _StopRequested:
                self._save()
                raise
            if self._is_far_enough():
                raise _StopRequested
            if self.state.phase.name == "classifier":
                self._finish(test)
            else:
                self._hand_over()
        except _StopRequested:
            self._write("stopped")
            self._complete_journal()
            return self._outcome(finished=False)
        else:
            self._write("finished")
            self._complete_journal()
            return self._outcome(finished=True)
        finally:
            self.journal.close()

    def _finish(self, test: bool) -> None:
        if self.state.estimators is not None:
            self._keep(self.folder.estimators, self.state.estimators)
        if test:
            self.measurements.evaluate(self.state)
        else:
            self.measurements.keep_weights(self.state)

    def _outcome(self, *, finished: bool) -> Outcome:
        position = self.state.position
        return Outcome(finished, position.epoch, position.global_step)

    def _begin(self) -> TrainState:
        """The state of the newest intact checkpoint, which must be the same for every worker; else
        that of the first phase, with what earlier runs give to it."""
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
            names = [phase.name for phase in self.phases]
            state = self._state_of(self.phases[names.index(checkpoint["position"]["phase"])])
            state.load_state_dict(checkpoint)
            return state
        first, mi = self.phases[0], self.config.mi
        state = self._state_of(first)
        if first.name == "estimators" and mi.pretrained is not None:
            path = pretrained_path(RunFolder(Path(mi.pretrained)))
            load_weights(path, state.model, self.splits.train.digest)
        if first.name == "classifier" and mi.schedule == "staged" and state.estimators is not None:
            assert mi.estimators is not None
            path = RunFolder(Path(mi.estimators)).estimators
            load_weights(path, state.estimators, self.splits.train.digest)
        return state

    def _state_of(self, phase: Phase) -> TrainState:
        steps = phase.config.optim.epochs * self.loader.steps_per_epoch
        return TrainState(phase, self.splits, self.group, self.device, steps)

    def _train_phases(self) -> None:
        """Trains to the end of the last phase, or to where the run was to stop in it."""
        while True:
            position = self.state.position
            epochs = self.state.config.optim.epochs
            while position.epoch < epochs and not self._is_far_enough():
                self._train_epoch()
                self._finish_epoch()
            if self.state.phase == self.phases[-1]:
                return
            self._begin_next_phase()

    def _is_far_enough(self) -> bool:
        """Whether the run has come to where it was to stop, before its end."""
        epoch, epochs = self.state.position.epoch, self.state.config.optim.epochs
        if self.until_epoch is None or self.state.phase != self.phases[-1]:
            return False
        return self.until_epoch <= epoch < epochs

    def _begin_next_phase(self) -> None:
        """Gives what the phase has learnt to the next one, and to other runs."""
        done, following = self.state, self.phases[self.phases.index(self.state.phase) + 1]
        learnt = self._hand_over().state_dict()
        self.state = self._state_of(following)
        self.state.position = Position(following.name, global_step=done.position.global_step)
        learner = self.state.model if done.phase.learns_classifier else self.state.estimators
        assert learner is not None
        learner.load_state_dict(learnt)
        self._save()

    def _hand_over(self) -> torch.nn.Module:
        """What the phase has learnt, also in a file for other runs: its best classifier, or its
        estimators."""
        if self.state.phase.learns_classifier:
            self.state.model.load_state_dict(self.state.best[""].weights)
            self._keep(self.folder.pretrained, self.state.model)
            return self.state.model
        assert self.state.estimators is not None
        self._keep(self.folder.estimators, self.state.estimators)
        return self.state.estimators

    def _keep(self, path: Path, module: torch.nn.Module) -> None:
        about = {"train_digest": self.splits.train.digest}
        self.storage.write("weights", path, partial(save_weights, path, module, about))

    def _train_epoch(self) -> None:
        """Trains to the end of the epoch."""
        state, position, config = self.state, self.state.position, self.config
        state.train_mode()
        recent = MetricMeans()
        since, images = time.perf_counter(), 0
        self.epoch_began, self.epoch_images = since, 0
        for batch in self.loader.epoch(position.epoch, first_step=position.step):
            self._stop_if_requested()
            of_phase = position.epoch * self.loader.steps_per_epoch + position.step
            torch.manual_seed(random_key(config.seed, "step", of_phase, self.group.rank))
            key = random_key(config.seed, "start", position.epoch)
            metrics = state.step(batch, key)
            num = sum(batch.sizes)
            position.step += 1
            position.global_step += 1
            state.epoch_means.add(metrics, num, position.global_step)
            recent.add(metrics, num, position.global_step)
            images += num
            self.epoch_images += num
            if self._checkpoint_due():
                self._save()
            if position.global_step % config.tracking.log_every == 0 or position.step == 1:
                now = time.perf_counter()
                self._write(
                    "step",
                    metrics=finite_means(recent, state, self.folder.checkpoints),
                    lr=state.lr,
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
        means = finite_means(state.epoch_means, state, self.folder.checkpoints)
        require_finite_weights(state, self.folder.checkpoints)
        seconds = time.perf_counter() - self.epoch_began
        epoch = position.epoch + 1
        last = epoch == state.config.optim.epochs
        val: dict[str, float] = {}
        better: list[str] = []
        if last or epoch % config.validation.every == 0:
            val, better = self.measurements.validate(state, epoch)
        state.epoch_means.clear()
        position.epoch, position.step = epoch, 0
        for message in alarms(epoch, means, val, attacked=config.attack.steps > 0):
            self._write("warning", message=message)
        self._write(
            "epoch",
            train=means,
            val=val,
            lr=state.lr,
            is_best="" in better,
            better=[f"best{suffix}" for suffix in better],
            train_seconds=seconds,
            images_per_s=self.epoch_images / seconds,
        )
        if last or self._is_far_enough() or position.epoch % config.checkpoint.every == 0:
            self._save()
        measured = {f"val/{name}": value for name, value in val.items()}
        self.context.report({"phase": position.phase, "epoch": position.epoch, **measured})

    def _stop_if_requested(self) -> None:
        if self.context.stop_requested():
            raise _StopRequested

    def _check_last_batch(self) -> None:
        """Refuses batches that are too small for BatchNorm, before they come."""
        images, scaling = self.loader.images, self.config.scaling
        workers = here = self.group.world_size
        if scaling.elastic:
            workers = max(workers, scaling.most_workers)
        smallest = len(images) % self.config.optim.batch_size or self.config.optim.batch_size
        problem = None
        if smallest < workers and not scaling.sync_batchnorm:
            problem = "a worker without images has no BatchNorm statistics of its own"
        elif smallest // here == 1 and (here == 1 or not scaling.sync_batchnorm):
            problem = self._problem_with_one_image(to_unit(images.images[:1]))
        if problem is not None:
            raise UserError(
                f"the last batch of an epoch has {smallest} images for {workers} workers, and "
                f"{problem}: set another optim.batch_size"
            )

    def _problem_with_one_image(self, x: Tensor) -> str | None:
        """Describes why the network cannot be trained on one image (1, 3, H, W); None: it can."""
        self.state.train_mode()
        try:
            with torch.no_grad(), running_statistics_frozen(self.state.model):
                self.state.model(x)
        except ValueError:
            return "this network's BatchNorm cannot take statistics of one image"
        except Exception as error:
            return f"this network cannot be trained on one image ({what_happened(error)})"
        return None

    def _checkpoint_due(self) -> bool:
        """Whether a checkpoint within the epoch is due; the same on every worker."""
        every = self.config.checkpoint
        if self.context.checkpoint_requested():
            return True
        if every.every_steps and self.state.position.global_step % every.every_steps == 0:
            return True
        if every.every_minutes is None:
            return False
        return self.context.agree(time.monotonic() - self.saved_at >= 60 * every.every_minutes)

    def _save(self) -> None:
        """Writes a checkpoint, of losses that are finite; the journal is complete up to there."""
        state, checkpoints = self.state, self.folder.checkpoints
        finite_means(state.epoch_means, state, checkpoints)
        require_finite_weights(state, checkpoints)
        self.saved_at = time.monotonic()
        self._complete_journal()
        content, keep = self.state.state_dict(), self.config.checkpoint.keep
        step = self.state.position.global_step
        save = partial(save_checkpoint, checkpoints, step, content, keep)
        self.storage.write(f"the checkpoint of step {step}", checkpoints, save)

    def _open_journal(self) -> None:
        self.journal = Journal(self.folder.journal)

    def _complete_journal(self) -> None:
        self.storage.write("the journal", self.folder.journal, self.journal.flush)

    def _announce(self) -> None:
        splits, state = self.splits, self.state
        sets = splits.sets
        writes = self.group.rank == 0  # digests and duplicates take as long as reading the images
        modules = {"classifier": state.model, "estimators": state.estimators}
        self._write(
            "start",
            version=__version__,
            workers=self.group.world_size,
            device=processor_name(self.device) if self.device.type == "cuda" else self.device.type,
            machine=machine_in_words(),
            torch=torch.__version__,
            steps_per_epoch=self.loader.steps_per_epoch,
            phases={phase.name: phase.config.optim.epochs for phase in self.phases},
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
                "sizes": {name: len(images) for name, images in sets.items()},
                "duplicates": splits.duplicates if writes else {},
                "digests": {name: one.digest for name, one in sets.items()} if writes else {},
            },
        )
        if writes and splits.warning:
            self._write("warning", message=splits.warning)
        for remark in state.facts.remarks:
            self._write("warning", message=remark)

    def _write(self, kind: str, **fields: Any) -> None:
        self.journal.write(kind, **asdict(self.state.position), **fields)
