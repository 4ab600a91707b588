"""Training loop: phases, epochs, validation and checkpoints, in any `Context`."""

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
from raymi.engine.build_phase import build_phase
from raymi.engine.context import Context, StopReason
from raymi.engine.health_checks import finite_means, health_warnings, require_finite_weights
from raymi.engine.initial_weights import digest_of_initial_weights, load_initial_weights
from raymi.engine.metrics import MetricMeans
from raymi.engine.phases import Phase, phases_until
from raymi.engine.storage import Storage
from raymi.engine.system_metrics import record_system_metrics
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
class TrainResult:
    """End of a call of `train`.

    Attributes:
        stop: reason of an earlier end, with a checkpoint; None: the run is complete.
        epoch: complete epochs of the last phase.
        global_step: optimiser steps of all phases.
    """

    stop: StopReason | None
    epoch: int
    global_step: int

    @property
    def finished(self) -> bool:
        """True for a complete run."""
        return self.stop is None


def train(
    config: Config,
    context: Context,
    folder: RunFolder,
    *,
    test: bool = True,
    until: str = "classifier",
    until_epoch: int | None = None,
) -> TrainResult:
    """Trains and evaluates a run in its folder; continues from its newest checkpoint.

    Every worker calls this with the same arguments; rank 0 alone writes. Settings come from
    `config`, also if the checkpoint was written with others.

    Args:
        config: of the run.
        context: of this worker.
        folder: of the run.
        test: whether the models are evaluated on the test set.
        until: last phase to train; before the classifier's, only other runs use the result.
        until_epoch: epochs of that phase after which the run stops with a checkpoint; None: all.
            Schedules do not depend on it.

    Raises:
        UserError: data or settings are invalid.
        FloatingPointError: a loss or weight is not finite.
        StorageError: rank 0 cannot write; raised on every worker at the same point.
    """
    phases = phases_until(config, until)
    with record_system_metrics(
        _machine_log(config, context, folder), config.tracking.machine_every or 0
    ):
        return _Run(config, context, folder, load_data(config), phases, until_epoch).train(test)


def _machine_log(config: Config, context: Context, folder: RunFolder) -> Path | None:
    """Returns the file of this worker's system metrics; None: it records none."""
    if not config.tracking.enabled or config.tracking.machine_every is None:
        return None
    return folder.machine_log(context.node) if context.first_on_node else None


class _Run:
    """Part of a run on one worker."""

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
            self.group,
            None if splits.generated is None else splits.generated.to(self.device),
        )
        self.phases = phases
        self.storage = Storage(folder, context)
        self.state = self._initial_state()
        self._check_last_batch()
        self.journal = Journal(folder.journal, enabled=False)
        self.storage.write("the journal", folder.journal, self._open_journal)
        self.validation = Validation(
            config,
            splits,
            self.storage,
            self.group,
            self.device,
            write=self._write,
            stop_requested=self.context.stop_requested,
        )
        self.saved_at = time.monotonic()
        self.epoch_began, self.epoch_images = 0.0, 0  # in this process, for the throughput

    def train(self, test: bool) -> TrainResult:
        self._write_start()
        try:
            stop = self._train_phases() or self._finish(test)
            self._write("finished" if stop is None else "stopped")
            self._complete_journal()
        finally:
            self.journal.close()
        position = self.state.position
        return TrainResult(stop, position.epoch, position.global_step)

    def _finish(self, test: bool) -> StopReason | None:
        """Saves and evaluates what the last phase has learnt; returns the reason of a stop."""
        if self.state.phase.name != "classifier":
            self._save_phase_result()
            return None
        if self.state.estimators is not None:
            self._save_weights(self.folder.estimators, self.state.estimators)
        if test:
            return self.validation.evaluate(self.state)
        self.validation.save_models(self.state)
        return None

    def _initial_state(self) -> TrainState:
        """Builds the state of the newest intact checkpoint, or else of the first phase.

        Raises:
            UserError: workers see different checkpoints.
        """
        checkpoint = load_checkpoint(self.folder.checkpoints)
        step = -1 if checkpoint is None else checkpoint["position"]["global_step"]
        steps = torch.tensor([step, -step], device=self.device)
        newest, oldest = (
            self.group.max(steps) * torch.tensor([1, -1], device=self.device)
        ).tolist()
        if newest != oldest:
            raise UserError(
                f"workers see different checkpoints in {self.folder.checkpoints} (of steps "
                f"{oldest} to {newest}): set out=FOLDER to storage that all nodes share"
            )
        if checkpoint is not None:
            names = [phase.name for phase in self.phases]
            state = self._new_state(self.phases[names.index(checkpoint["position"]["phase"])])
            state.load_state_dict(checkpoint)
            return state
        first, mi = self.phases[0], self.config.mi
        state = self._started_state(first)
        if first.name == "estimators" and mi.pretrained is not None:
            path = pretrained_path(RunFolder(Path(mi.pretrained)))
            load_weights(path, state.model, self.splits.train.digest)
        if first.name == "classifier" and mi.schedule == "staged" and state.estimators is not None:
            assert mi.estimators is not None
            path = RunFolder(Path(mi.estimators)).estimators
            load_weights(path, state.estimators, self.splits.train.digest)
        return state

    def _new_state(self, phase: Phase) -> TrainState:
        steps = phase.config.optim.epochs * self.loader.steps_per_epoch
        return build_phase(phase, self.splits, self.group, self.device, steps)

    def _started_state(self, phase: Phase) -> TrainState:
        """Returns the state of a phase before its first step."""
        state = self._new_state(phase)
        if phase.config.model.weights is not None:
            load_initial_weights(phase.config, state.model, self.storage)
        return state

    def _train_phases(self) -> StopReason | None:
        """Trains to the end of the last phase; returns the reason of an earlier stop."""
        while True:
            position = self.state.position
            epochs = self.state.config.optim.epochs
            while position.epoch < epochs:
                if self._reached_until_epoch():
                    return StopReason.EPOCH
                stop = self._train_epoch() or self._finish_epoch()
                if stop is not None:
                    self._save()
                    return stop
            if self.state.phase == self.phases[-1]:
                return None
            self._begin_next_phase()

    def _reached_until_epoch(self) -> bool:
        """Returns whether the run reached `until_epoch` before the end of the phase."""
        epoch, epochs = self.state.position.epoch, self.state.config.optim.epochs
        if self.until_epoch is None or self.state.phase != self.phases[-1]:
            return False
        return self.until_epoch <= epoch < epochs

    def _begin_next_phase(self) -> None:
        """Starts the next phase with the weights that this one has learnt."""
        previous, phase = self.state, self.phases[self.phases.index(self.state.phase) + 1]
        weights = self._save_phase_result().state_dict()
        self.state = self._started_state(phase)
        self.state.position = Position(phase.name, global_step=previous.position.global_step)
        learnt = previous.phase.learns_classifier
        module = self.state.model if learnt else self.state.estimators
        assert module is not None
        module.load_state_dict(weights)
        self._save()

    def _save_phase_result(self) -> torch.nn.Module:
        """Returns the phase's best classifier or its estimators, also saved for other runs."""
        if self.state.phase.learns_classifier:
            self.state.model.load_state_dict(self.state.best[""].weights)
            self._save_weights(self.folder.pretrained, self.state.model)
            return self.state.model
        assert self.state.estimators is not None
        self._save_weights(self.folder.estimators, self.state.estimators)
        return self.state.estimators

    def _save_weights(self, path: Path, module: torch.nn.Module) -> None:
        about = {"train_digest": self.splits.train.digest}
        self.storage.write("weights", path, partial(save_weights, path, module, about))

    def _train_epoch(self) -> StopReason | None:
        """Trains to the end of the epoch; returns the reason of an earlier stop."""
        state, position, config = self.state, self.state.position, self.config
        state.train_mode()
        recent = MetricMeans()
        since, images = time.perf_counter(), 0
        self.epoch_began, self.epoch_images = since, 0
        for batch in self.loader.epoch(position.epoch, first_step=position.step):
            if (stop := self.context.stop_requested()) is not None:
                return stop
            phase_step = position.epoch * self.loader.steps_per_epoch + position.step
            torch.manual_seed(random_key(config.seed, "step", phase_step, self.group.rank))
            metrics = state.step(batch)
            num = batch.shard.num
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
        return None

    def _finish_epoch(self) -> StopReason | None:
        """Validates, writes the journal, then the checkpoint, then reports.

        In this order a crash in between can repeat an event but not lose one. A run that is stopped
        during validation repeats it.

        Returns:
            The reason of a stop during validation, or None.
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
            state.follow_schedules()  # also where a run continues with this validation
            outcome = self.validation.validate(state, epoch)
            if isinstance(outcome, StopReason):
                return outcome
            val, better = outcome
        state.end_epoch()
        state.epoch_means.clear()
        position.epoch, position.step = epoch, 0
        attacked, num_val = config.attack.steps > 0, len(self.validation.val.labels)
        for message in health_warnings(epoch, means, val, attacked=attacked, num_val=num_val):
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
        if last or self._reached_until_epoch() or position.epoch % config.checkpoint.every == 0:
            self._save()
        values = {f"val/{name}": value for name, value in val.items()}
        self.context.report({"phase": position.phase, "epoch": position.epoch, **values})
        return None

    def _check_last_batch(self) -> None:
        """Refuses batches that are too small for BatchNorm before training.

        Raises:
            UserError: the last batch of an epoch is too small.
        """
        images, scaling = self.loader.images, self.config.scaling
        workers = world_size = self.group.world_size
        if scaling.elastic:
            workers = max(workers, scaling.most_workers)
        smallest = len(images) % self.config.optim.batch_size or self.config.optim.batch_size
        problem = None
        if smallest < workers and not scaling.sync_batchnorm:
            problem = "a worker without images has no BatchNorm statistics of its own"
        elif smallest // world_size == 1 and (world_size == 1 or not scaling.sync_batchnorm):
            problem = self._problem_with_one_image(to_unit(images.images[:1]))
        if problem is not None:
            raise UserError(
                f"the last batch of an epoch has {smallest} images for {workers} workers, and "
                f"{problem}: set another optim.batch_size"
            )

    def _problem_with_one_image(self, x: Tensor) -> str | None:
        """Returns why the network cannot be trained on one image (1, 3, H, W); None: it can."""
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
        """Returns whether a checkpoint within the epoch is due; the same on every worker."""
        every = self.config.checkpoint
        if self.context.checkpoint_requested():
            return True
        if every.every_steps and self.state.position.global_step % every.every_steps == 0:
            return True
        if every.every_minutes is None:
            return False
        return self.context.agree(time.monotonic() - self.saved_at >= 60 * every.every_minutes)

    def _save(self) -> None:
        """Writes a checkpoint, after the journal up to it; losses and weights must be finite."""
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

    def _write_start(self) -> None:
        splits, state = self.splits, self.state
        sets = splits.sets
        writes = self.group.rank == 0  # digests and duplicates are slow
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
            **digest_of_initial_weights(self.folder.initial),
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
