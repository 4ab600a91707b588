"""The evaluation of one classifier, from its question to its report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from raymi.attacks.catalogue import Threat
from raymi.attacks.suites import Ensemble
from raymi.data import ImageSet
from raymi.evaluation.blocks import CLEAN, Outcome, Schedule, Step
from raymi.evaluation.checks import Finding, judge_attacks, judge_transfer
from raymi.evaluation.ledger import Ledger
from raymi.evaluation.question import name_of, question_of, settings_of
from raymi.evaluation.report import Report, which_withstood
from raymi.evaluation.robustness import summarise
from raymi.evaluation.run import Lookup, Pool, run
from raymi.evaluation.transfer import is_crafting, transfer_name


@dataclass(frozen=True)
class Settings:
    """What all classifiers of an evaluation have in common.

    `images` that are attacked, and `data`, their name; threat; seed; `block`, samples of a block;
    `device`, "cpu" or "cuda"; `results`, the folder of all ledgers.
    """

    images: ImageSet
    data: str
    threat: Threat
    seed: int
    block: int
    device: str
    results: Path


@dataclass(frozen=True)
class Assessment:
    """One classifier's evaluation.

    Args: name of the classifier; digest, of its weights and how it is built; main, what is
        reported; checks, the attacks that look for signs of false robustness; outputs, what was
        found of its outputs already; surrogates, names of those whose samples it is judged by;
        keep, whether all adversarial samples are kept.
    """

    settings: Settings
    name: str
    digest: str
    main: tuple[Ensemble, ...]
    checks: tuple[Ensemble, ...] = ()
    outputs: tuple[Finding, ...] = ()
    surrogates: tuple[str, ...] = ()
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
    def ledger(self) -> Ledger:
        """Where outcomes are kept: a folder for each question.

        Raises: UserError, StorageError, as `Ledger`.
        """
        common = self.settings
        question = question_of(
            self.digest,
            common.images,
            common.threat,
            seed=common.seed,
            block=common.block,
            device=common.device,
        )
        name = name_of(question)
        # The same network may have been called otherwise before.
        known = sorted(common.results.glob(f"*-{name}")) if common.results.is_dir() else []
        folder = known[0] if known else common.results / f"{self.name}-{name}"
        return Ledger(folder, question, settings_of(self.ensembles))

    def run(self, pool: Pool, made_before: Lookup) -> Iterator[tuple[Step, Outcome, bool]]:
        """Makes the steps that the ledger does not have; see `run.run`."""
        steps = run(
            self.schedule,
            self.ledger,
            pool,
            self.name,
            made_before=made_before,
            keep=lambda step: is_crafting(step) or (self.keep and step.attack != CLEAN),
        )
        for step, outcome, known in steps:
            self._outcomes[step] = outcome
            yield step, outcome, known

    def check_findings(self) -> tuple[Finding, ...]:
        """What the checks' attacks say; empty until all of them are done."""
        if not self.checks:
            return ()
        names = {CLEAN, *(ensemble.name for ensemble in self.checks)}
        blocks = self.schedule.blocks_of(self.checks[0])
        made = [(s, o) for s, o in self._outcomes.items() if s.ensemble in names]
        made = [(step, outcome) for step, outcome in made if step.block < blocks]
        if len(made) < blocks * len(names):
            return ()
        num = min(len(self.settings.images), blocks * self.settings.block)
        return tuple(judge_attacks(made, num, len(self.settings.images.class_names)))

    def report(self) -> Report:
        """What was found, once all steps are done.

        Raises: ValueError where some are missing.
        """
        outcomes = sorted(self._outcomes.items())
        results = summarise(outcomes, self.main)
        withstand = which_withstood(outcomes, results, len(self.settings.images))
        transfer = [
            judge_transfer(withstand[made], withstand[ensemble.name], surrogate)
            for ensemble in self.main
            for surrogate in self.surrogates
            if (made := transfer_name(ensemble.name, surrogate)) in withstand
        ]
        num = len(self.settings.images)
        return Report(
            name=self.name,
            data=f"{num} images of {self.settings.data}",
            question=self.ledger.question,
            attacks=settings_of(self.main),
            folder=self.ledger.folder,
            results=results,
            findings=(*self.outputs, *self.check_findings(), *transfer),
            withstand=withstand,
        )

    def export(self) -> Path:
        """All outcomes as one parquet file in the ledger's folder.

        Raises: StorageError where it cannot be written.
        """
        path = self.ledger.folder / "outcomes.parquet"
        self.ledger.export(path, sorted(self._outcomes.items()))
        return path
