"""The evaluation of one classifier, from its question to its report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from raymi.attacks.catalogue import Threat
from raymi.attacks.suites import Ensemble
from raymi.data import ImageSet
from raymi.evaluation.attack_checks import judge_attacks, judge_transfer
from raymi.evaluation.blocks import CLEAN, Outcome, Schedule, Step
from raymi.evaluation.finding import Finding
from raymi.evaluation.fingerprint import Fingerprint
from raymi.evaluation.outcome_store import OutcomeStore, answered_here
from raymi.evaluation.protocol import name_of, protocol_of, settings_of
from raymi.evaluation.report import Report
from raymi.evaluation.scheduler import Lookup, Pool, run
from raymi.evaluation.summary import Robustness, summarise, withstood
from raymi.evaluation.transfer import is_crafting


@dataclass(frozen=True)
class Settings:
    """What all classifiers of an evaluation have in common.

    `images` that are attacked, and `data`, their name; threat; seed; `block`, samples of a block;
    `device`, "cpu" or "cuda"; `threads` of a worker; `results`, the folder of all ledgers.
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
    """One classifier's evaluation.

    Args:
        settings: what it has in common with other classifiers.
        name: of the classifier.
        digest: of its weights and how it is built, see `ModelSource`.
        main: what is reported.
        checks: attacks that look for signs of false robustness.
        seen: what was found without attacks already.
        known_by: what it answers; None: not known.
        transfer: of the ensembles of `main` whose samples a surrogate made, by their names, those
            to compare with the same attack on the classifier itself: the attack's name, and the
            surrogate's.
        keep: whether the adversarial samples of `main` are kept.
    """

    settings: Settings
    name: str
    digest: str
    main: tuple[Ensemble, ...]
    checks: tuple[Ensemble, ...] = ()
    seen: tuple[Finding, ...] = ()
    fingerprint: Fingerprint | None = None
    transfer: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    keep: bool = False
    _outcomes: dict[Step, Outcome] = field(default_factory=dict, init=False, compare=False)

    @property
    def ensembles(self) -> tuple[Ensemble, ...]:
        """All that is made: checks first, so that doubts are told early; what is in both, whole."""
        by_name = {ensemble.name: ensemble for ensemble in (*self.checks, *self.main)}
        return tuple(by_name.values())

    @cached_property
    def schedule(self) -> Schedule:
        """The steps of this evaluation."""
        return Schedule(len(self.settings.images), self.settings.block, self.ensembles)

    @cached_property
    def store(self) -> OutcomeStore:
        """Where outcomes are kept: a folder for each question.

        Raises: UserError, StorageError, as `OutcomeStore`.
        """
        common = self.settings
        protocol = protocol_of(
            self.digest,
            common.images,
            common.threat,
            seed=common.seed,
            block=common.block,
            device=common.device,
            threads=common.threads,
        )
        folder = _folder(common.results, self.name, name_of(protocol), self.fingerprint)
        return OutcomeStore(folder, protocol, settings_of(self.ensembles), self.fingerprint)

    def run(self, pool: Pool, made_before: Lookup) -> Iterator[tuple[Step, Outcome, bool]]:
        """Makes the steps that the ledger does not have; see `run.run`."""
        steps = run(
            self.schedule,
            self.store,
            pool,
            self.name,
            made_before=made_before,
            keep=self._is_kept,
        )
        for step, outcome, known in steps:
            self._outcomes[step] = outcome
            yield step, outcome, known

    def _is_kept(self, step: Step) -> bool:
        reported = any(step.ensemble == ensemble.name for ensemble in self.main)
        return is_crafting(step) or (self.keep and reported)

    def check_findings(self) -> tuple[Finding, ...]:
        """What the checks' attacks say; empty until all of them are done."""
        if not self.checks:
            return ()
        names = {CLEAN, *(ensemble.name for ensemble in self.checks)}
        blocks = self.schedule.blocks_of(self.checks[0])
        made = [
            (step, outcome)
            for step, outcome in self._outcomes.items()
            if step.ensemble in names and step.block in blocks
        ]
        if len(made) < len(blocks) * len(names):
            return ()
        return tuple(judge_attacks(made, len(self.settings.images.class_names)))

    def report(self) -> Report:
        """What was found, once all steps are done.

        Raises: ValueError where some are missing.
        """
        outcomes = sorted(self._outcomes.items())
        results, num = summarise(outcomes, self.main), len(self.settings.images)
        withstand = {result.name: withstood(outcomes, result.name, num) for result in results}
        transfer = [
            judge_transfer(withstand[made], withstand[attack], surrogate)
            for made, (attack, surrogate) in self.transfer.items()
        ]
        return Report(
            name=self.name,
            data=self.settings.data,
            num=num,
            protocol=self.store.protocol,
            attacks=settings_of(self.main),
            folder=self.store.folder,
            results=results,
            findings=(*self.seen, *self.check_findings(), *transfer, *_unusable(results)),
            withstand=withstand,
        )

    def export(self) -> Path:
        """All outcomes as one parquet file in the ledger's folder.

        Raises: StorageError where it cannot be written.
        """
        path = self.store.folder / "outcomes.parquet"
        self.store.export(path)
        return path


def _unusable(results: Sequence[Robustness]) -> Iterator[Finding]:
    """Whether attacks made no image of some samples: those count as right."""
    for result in results:
        num = sum(count.unusable for count in result.attacks)
        if num:
            text = f"{result.name} made no image of {num} samples, which count as right"
            yield Finding(f"no images of {result.name}", True, text)


def _folder(results: Path, name: str, protocol: str, fingerprint: Fingerprint | None) -> Path:
    """Of the ledgers of a question the one of this network, which may have been called otherwise
    before; else a new one. Other answers with the same weights are those of another network."""
    wanted = results / f"{name}-{protocol}"
    known = sorted(results.glob(f"*-{protocol}*")) if results.is_dir() else []
    known.sort(key=lambda folder: folder != wanted)
    for folder in known:
        if answered_here(folder, fingerprint):
            return folder
    others = [results / f"{name}-{protocol}-{number}" for number in range(2, len(known) + 3)]
    return next(folder for folder in (wanted, *others) if not folder.exists())
