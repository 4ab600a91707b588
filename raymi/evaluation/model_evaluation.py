"""The evaluation of one classifier, from its protocol to its report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from raymi.attacks.catalogue import Threat
from raymi.attacks.suites import Ensemble
from raymi.data import ImageSet
from raymi.evaluation.attack_checks import attack_findings, transfer_finding
from raymi.evaluation.blocks import CLEAN, Outcome, Schedule, Step
from raymi.evaluation.finding import Finding
from raymi.evaluation.fingerprint import Fingerprint
from raymi.evaluation.outcome_store import OutcomeStore, matches_fingerprint
from raymi.evaluation.protocol import (
    attack_inputs,
    attack_settings,
    protocol_hash,
    protocol_of,
)
from raymi.evaluation.report import Report
from raymi.evaluation.scheduler import Lookup, Pool, run_schedule
from raymi.evaluation.summary import Robustness, mean_results, robust_samples, summarise
from raymi.evaluation.transfer import is_on_surrogate


@dataclass(frozen=True)
class Settings:
    """Settings that all classifiers of an evaluation share.

    Args:
        images: images to attack.
        data: name of the images.
        threat: norm and radius.
        seed: of all attacks.
        block: samples in a block.
        device: "cpu" or "cuda".
        threads: CPU threads of a worker.
        results: folder of all outcome stores.
    """

    images: ImageSet
    data: str
    threat: Threat
    seed: int
    block: int
    device: str
    threads: int
    results: Path


@dataclass(frozen=True)
class ModelEvaluation:
    """Evaluation of one classifier.

    Args:
        settings: shared with other classifiers.
        name: of the classifier.
        digest: of its weights and architecture, see `ModelSource`.
        main: ensembles to report.
        checks: attacks that look for signs of false robustness.
        static_findings: findings of the static checks.
        fingerprint: of the classifier; None: unknown.
        transfer: attack and surrogate of those ensembles of `main` whose samples a surrogate made,
            by the ensemble's name; they are compared with the white-box attack.
        keep: keep the adversarial samples of `main`.
    """

    settings: Settings
    name: str
    digest: str
    main: tuple[Ensemble, ...]
    checks: tuple[Ensemble, ...] = ()
    static_findings: tuple[Finding, ...] = ()
    fingerprint: Fingerprint | None = None
    transfer: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    keep: bool = False
    _outcomes: dict[Step, Outcome] = field(default_factory=dict, init=False, compare=False)

    @property
    def ensembles(self) -> tuple[Ensemble, ...]:
        """All ensembles to run: checks first, for early findings; `main` in full."""
        by_name = {ensemble.name: ensemble for ensemble in (*self.checks, *self.main)}
        return tuple(by_name.values())

    @cached_property
    def schedule(self) -> Schedule:
        """Steps of this evaluation."""
        return Schedule(len(self.settings.images), self.settings.block, self.ensembles)

    @cached_property
    def store(self) -> OutcomeStore:
        """Outcome store; its folder belongs to the protocol and the fingerprint.

        Raises:
            UserError: as `OutcomeStore`.
            StorageError: as `OutcomeStore`.
        """
        settings = self.settings
        protocol = protocol_of(
            self.digest,
            settings.images,
            settings.threat,
            seed=settings.seed,
            block=settings.block,
            device=settings.device,
            threads=settings.threads,
            inputs=attack_inputs(self.ensembles),
        )
        folder = _folder(settings.results, self.name, protocol_hash(protocol), self.fingerprint)
        return OutcomeStore(folder, protocol, attack_settings(self.ensembles), self.fingerprint)

    def run(self, pool: Pool, lookup: Lookup) -> Iterator[tuple[Step, Outcome, bool]]:
        """Runs the steps that are not in the store; see `run_schedule`."""
        steps = run_schedule(
            self.schedule, self.store, pool, self.name, lookup=lookup, keep=self._keeps_x_adv
        )
        for step, outcome, cached in steps:
            self._outcomes[step] = outcome
            yield step, outcome, cached

    def _keeps_x_adv(self, step: Step) -> bool:
        reported = any(step.ensemble == ensemble.name for ensemble in self.main)
        return is_on_surrogate(step) or (self.keep and reported)

    def check_findings(self) -> tuple[Finding, ...]:
        """Returns the findings of the checks' attacks; empty until all of them have run."""
        if not self.checks:
            return ()
        names = {CLEAN, *(ensemble.name for ensemble in self.checks)}
        blocks = self.schedule.blocks_of(self.checks[0])
        outcomes = [
            (step, outcome)
            for step, outcome in self._outcomes.items()
            if step.ensemble in names and step.block in blocks
        ]
        if len(outcomes) < len(blocks) * len(names):
            return ()
        return tuple(attack_findings(outcomes, len(self.settings.images.class_names)))

    def report(self) -> Report:
        """Returns the report of a finished evaluation.

        Raises:
            ValueError: steps are missing.
        """
        outcomes = sorted(self._outcomes.items())
        results, num = summarise(outcomes, self.main), len(self.settings.images)
        robust = {result.name: robust_samples(outcomes, result.name, num) for result in results}
        transfer = [
            transfer_finding(robust[name], robust[attack], surrogate)
            for name, (attack, surrogate) in self.transfer.items()
        ]
        return Report(
            name=self.name,
            data=self.settings.data,
            num=num,
            protocol=self.store.protocol,
            attacks=attack_settings(self.main),
            folder=self.store.folder,
            results=(*results, *mean_results(self.main, robust)),
            findings=(
                *self.static_findings, *self.check_findings(), *transfer, *_unusable(results)
            ),
            robust=robust,
        )  # fmt: skip

    def export(self) -> Path:
        """Writes all outcomes to one parquet file in the store's folder.

        Raises:
            StorageError: it cannot be written.
        """
        path = self.store.folder / "outcomes.parquet"
        self.store.export(path)
        return path


def _unusable(results: Sequence[Robustness]) -> Iterator[Finding]:
    """Yields a finding for each ensemble that returned no valid image of some samples."""
    for result in results:
        num = sum(count.unusable for count in result.attacks)
        if num:
            text = f"{result.name} made no image of {num} samples, which count as right"
            yield Finding(f"no images of {result.name}", True, text)


def _folder(results: Path, name: str, protocol: str, fingerprint: Fingerprint | None) -> Path:
    """Returns the folder of a protocol whose network matches, under any name, or a new one."""
    wanted = results / f"{name}-{protocol}"
    existing = sorted(results.glob(f"*-{protocol}*")) if results.is_dir() else []
    existing.sort(key=lambda folder: folder != wanted)
    for folder in existing:
        if matches_fingerprint(folder, fingerprint):
            return folder
    numbered = [results / f"{name}-{protocol}-{number}" for number in range(2, len(existing) + 3)]
    return next(folder for folder in (wanted, *numbered) if not folder.exists())
