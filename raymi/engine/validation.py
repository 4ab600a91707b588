"""Evaluation of a run's classifiers: on validation after an epoch, on the test set at the end.

The validation split alone chooses the model; the test set is used once, after training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial

import torch
from torch import nn

from raymi.collectives import Collectives
from raymi.config import Config
from raymi.data import ImageSet, Splits, load_splits
from raymi.engine.block_metrics import FGSMAccuracy, MIEstimates, TermMetrics
from raymi.engine.context import StopReason
from raymi.engine.pgd_evaluation import (
    Accuracy,
    BlockMetric,
    Heartbeat,
    PGDAttack,
    evaluate_pgd,
)
from raymi.engine.probes import probe_classifier
from raymi.engine.storage import Storage
from raymi.engine.train_state import TrainState
from raymi.runs.pretrained import save_weights


def load_data(config: Config) -> Splits:
    """Loads the images of a run.

    Raises:
        UserError: settings or files are invalid.
    """
    data = config.data
    return load_splits(
        data.name,
        data.root,
        image_size=data.image_size,
        val_fraction=data.val_fraction,
        split_seed=data.split_seed,
        download=data.download,
        limit=data.limit,
        generated=data.generated,
    )


class Validation:
    """Validation, evaluation and probes of a run.

    Args:
        config: of the run.
        splits: its images.
        storage: its folder.
        group: the workers.
        device: of this worker.
        write: appends an event to the journal: its kind, and fields.
        stop_requested: called after each block on every worker; a reason that it returns ends the
            evaluation.
    """

    def __init__(
        self,
        config: Config,
        splits: Splits,
        storage: Storage,
        group: Collectives,
        device: torch.device,
        write: Callable[..., None],
        stop_requested: Callable[[], StopReason | None],
    ) -> None:
        self.config, self.splits, self.storage, self.group = config, splits, storage, group
        self.device = device
        self.val = splits.val.at_most(config.validation.max_samples).to(device)
        self.test = splits.test.at_most(config.evaluation.max_samples).to(device)
        self.write, self.stop_requested = write, stop_requested

    def validate(
        self, state: TrainState, epoch: int
    ) -> tuple[dict[str, float], list[str]] | StopReason:
        """Validates each classifier, and keeps its weights if it is the best so far.

        Returns:
            Metrics, and the suffixes of the classifiers that are the best so far; or the reason of
            a stop, before any is kept.
        """
        models = state.classifiers() or {"": state.model}
        results: dict[str, dict[str, float]] = {}
        for suffix, model in models.items():
            outcome = self._validate(state, model, with_mi=suffix == "")
            if isinstance(outcome, StopReason):
                return outcome
            results[suffix] = outcome
        val: dict[str, float] = {}
        better = []
        for suffix, metrics in results.items():
            prefix = suffix.removeprefix("-") + "/" if suffix else ""
            val |= {f"{prefix}{name}": value for name, value in metrics.items()}
            best = state.best.get(suffix)
            robust, clean = metrics["robust_acc"], metrics["clean_acc"]
            if best is not None and best.offer(epoch, robust, clean, models[suffix]):
                better.append(suffix)
        return val, better

    def _validate(
        self, state: TrainState, model: nn.Module, *, with_mi: bool
    ) -> dict[str, float] | StopReason:
        attack = validation_attack(self.config)
        metrics: list[BlockMetric] = [
            FGSMAccuracy(
                model,
                attack.eps,
                attack.norm,
                self.group,
                self.device,
                state.autocast,
                self.config.scaling.micro_batch,
            )
        ]
        block = None
        if with_mi and state.estimators is not None:
            block = state.config.optim.batch_size  # as many negatives as in training
            micro_batch = self.config.scaling.micro_batch
            metrics.append(
                MIEstimates(state.estimators, state.config.mi, self.group, block, micro_batch)
            )
        if with_mi and state.mi.closed_form:
            block = state.config.optim.batch_size
            metrics.append(TermMetrics(state.mi, self.group))
        accuracy = self._accuracy(
            model,
            self.val,
            attack,
            "validate",
            block=block,
            autocast=state.autocast,
            metrics=metrics,
        )
        if isinstance(accuracy, StopReason):
            return accuracy
        values = {"clean_acc": accuracy.clean, "robust_acc": accuracy.robust}
        for metric in metrics:
            values |= metric.compute()
        return values

    def save_models(self, state: TrainState) -> None:
        """Writes the weights of the last and the best models, without the test set."""
        for _ in self._saved_models(state):
            pass

    def _saved_models(self, state: TrainState) -> Iterator[tuple[str, str, nn.Module, int]]:
        """Writes weights of each classifier, the last ones, then the best ones.

        Yields:
            "last" or "best", the suffix of the classifier, the model, which has these weights until
            the next iteration, and their epoch.
        """
        for suffix, model in state.classifiers().items():
            best = state.best[suffix]
            for which, epoch in (("last", state.position.epoch), ("best", best.epoch)):
                if which == "best":
                    model.load_state_dict(best.weights)
                self._save_weights(f"{which}{suffix}", model, epoch)
                yield which, suffix, model, epoch

    def evaluate(self, state: TrainState) -> StopReason | None:
        """Evaluates the last and the best models on the test set, then probes the chosen one.

        In fp32. The chosen model has the highest robust validation accuracy.

        Returns:
            The reason of a stop, or None.
        """
        config = self.config
        attack = PGDAttack(
            config.attack.norm,
            config.attack.eps,
            config.evaluation.alpha or config.attack.eps / 4,
            config.evaluation.steps,
        )
        chosen = max(state.best, key=lambda s: (state.best[s].robust_acc, state.best[s].clean_acc))
        for which, suffix, model, epoch in self._saved_models(state):
            name = f"{which}{suffix}"
            if which == "last" or epoch != state.position.epoch:  # otherwise the same model
                outcome = self._accuracy(model, self.test, attack, name)
                if isinstance(outcome, StopReason):
                    return outcome
                accuracy = outcome
            self.write(
                "evaluation", which=name, of_epoch=epoch, attack=asdict(attack),
                chosen=(which, suffix) == ("best", chosen), **asdict(accuracy),
            )  # fmt: skip
        if config.probe.steps > 0:
            return self._probe(state.classifiers()[chosen], f"best{chosen}")
        return None

    def _probe(self, model: nn.Module, name: str) -> StopReason | None:
        """Trains fresh estimators on a classifier and records their validation estimates."""
        estimates = probe_model(
            self.config,
            self.splits,
            model,
            self.group,
            self.device,
            heartbeat=self._heartbeat("probe"),
        )
        if isinstance(estimates, StopReason):
            return estimates
        self.write("probe", which=name, estimates=estimates)
        return None

    def _save_weights(self, name: str, model: nn.Module, epoch: int) -> None:
        about = {"epoch": str(epoch), "train_digest": self.splits.train.digest}
        path = self.storage.folder.weights(name)
        self.storage.write("weights", path, partial(save_weights, path, model, about))

    def _accuracy(
        self,
        model: nn.Module,
        images: ImageSet,
        attack: PGDAttack,
        what: str,
        *,
        block: int | None = None,
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
        metrics: Sequence[BlockMetric] = (),
    ) -> Accuracy | StopReason:
        return evaluate_pgd(
            model,
            images,
            attack,
            self.group,
            block=block or self.config.evaluation.block * self.group.world_size,
            micro_batch=self.config.scaling.micro_batch,
            autocast=autocast,
            heartbeat=self._heartbeat(what),
            metrics=metrics,
        )

    def _heartbeat(self, what: str) -> Heartbeat:
        def beat(done: int, total: int) -> StopReason | None:
            self.write("evaluating", what=what, done=done, of=total)
            return self.stop_requested()

        return beat


def probe_model(
    config: Config,
    splits: Splits,
    model: nn.Module,
    group: Collectives,
    device: torch.device,
    *,
    heartbeat: Heartbeat,
) -> dict[str, float] | StopReason:
    """Trains fresh estimators on a classifier of a run, and evaluates them on validation.

    Returns:
        Estimates or a reason, as `probes.probe_classifier` does.
    """
    return probe_classifier(
        model,
        splits.train.at_most(config.probe.max_samples).to(device),
        splits.val.at_most(config.validation.max_samples).to(device),
        validation_attack(config),
        config.probe,
        group,
        heartbeat=heartbeat,
    )


def validation_attack(config: Config) -> PGDAttack:
    """Returns the attack of robust validation accuracy; its step is 2.5 * eps / steps."""
    attack, steps = config.attack, config.validation.steps
    return PGDAttack(attack.norm, attack.eps, 2.5 * attack.eps / steps, steps)
