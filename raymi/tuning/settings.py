"""How a sweep searches: the keys `tune.*`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raymi.config import Count, Section, Whole, at_most


class TuneConfig(Section):
    """How a sweep searches."""

    trials: Annotated[int, Field(ge=1), at_most(100_000)] = 20
    """Trials in all; of a grid all combinations, or so many of them as are asked for."""
    search: Literal["tpe", "random", "grid", "pbt"] = "tpe"
    """How settings are drawn: by tree-structured Parzen estimators, evenly, or every combination of
    a few values of each. pbt, population-based training: trials go on side by side, and the worst
    take over checkpoints and settings of the best."""
    objective: Literal["robust", "clean-robust"] = "robust"
    """What is maximised, on validation: robust accuracy, or the front of clean and robust
    accuracy."""
    scheduler: Literal["asha", "none"] = "asha"
    """asha: trials that are behind others after the same epochs are stopped; none: all run to their
    end, as they do for clean-robust and for several seeds in any case."""
    interval: Count = 1
    """pbt: epochs after which trials take over from others."""
    first_epochs: Count = 1
    """asha: epochs that every trial gets."""
    factor: Annotated[int, Field(ge=2), at_most(100_000)] = 3
    """One in so many goes on: with asha to so many times as many epochs, in the final from PGD-40
    to AutoAttack."""
    concurrent: Count | None = None
    """Trials at the same time; none: as many as there are places for."""
    finalists: Annotated[Whole, at_most(100_000)] = 3
    """Trials that AutoAttack judges on validation images, the best ones under PGD-40 of `factor`
    times as many; the best of them wins. 0: the validation of training decides."""
    samples: Count | None = None
    """Images for these attacks, of validation and, once, of the test set; none: all."""
    test_suite: Literal["standard", "quick", "none"] = "standard"
    """Attacks on the test images, of the winner only."""

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of what is maximised."""
        return ("robust",) if self.objective == "robust" else ("clean", "robust")
