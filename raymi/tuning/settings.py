"""Settings of a search: the keys `tune.*`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raymi.fields import Count, Section, Whole, at_most


class TuneConfig(Section):
    """Settings of a search."""

    trials: Annotated[int, Field(ge=1), at_most(100_000)] = 20
    """Number of trials; of a grid the first N combinations, by default all."""
    search: Literal["tpe", "random", "grid", "pbt"] = "tpe"
    """Search algorithm. tpe: tree-structured Parzen estimators; random: uniform draws; grid: every
    combination of a few values of each parameter; pbt, population-based training: trials run side
    by side, and the worst continue from checkpoints and settings of the best."""
    objective: Literal["robust", "clean-robust"] = "robust"
    """Objective on validation: robust accuracy, or the Pareto front of clean and robust
    accuracy."""
    scheduler: Literal["asha", "none"] = "asha"
    """asha: stops trials that are behind others after the same number of epochs; none: every trial
    runs to its end, as with clean-robust and with several seeds in any case."""
    interval: Count = 1
    """pbt: epochs between two checkpoint transfers."""
    first_epochs: Count = 1
    """asha: epochs that every trial gets."""
    factor: Annotated[int, Field(ge=2), at_most(100_000)] = 3
    """Reduction factor: one trial in this number continues, with asha to as many times the epochs,
    in the final evaluation from PGD-40 to AutoAttack."""
    concurrent: Count | None = None
    """Number of concurrent trials; none: as many as the resources allow."""
    finalists: Annotated[Whole, at_most(100_000)] = 3
    """Trials that AutoAttack evaluates on validation images: the best under PGD-40 of `factor`
    times as many. The best of them wins. 0: the validation during training decides."""
    samples: Count | None = None
    """Number of images for these attacks, on validation and, once, on the test set; none: all."""
    test_suite: Literal["standard", "quick", "none"] = "standard"
    """Attacks on the test images, for the winner only."""

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the objectives."""
        return ("robust",) if self.objective == "robust" else ("clean", "robust")
