"""Where the time of a training step goes.

The pieces are timed from outside: calls of the learners and tasks are watched, the training code
itself has no timers. On a GPU every piece is waited for, so their sum is more than a step takes.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch

from raymi.benchmarks.arms import AT, GIVEN, JOINT, STAGED, arm_config, trainee
from raymi.benchmarks.clock import Clock, Stopwatch
from raymi.benchmarks.plan import Plan
from raymi.benchmarks.section import Section, number
from raymi.config import Config
from raymi.engine.step import Attacker

DATA, CRAFTING, CLASSIFIER = (
    "data: order, augmentation",
    "PGD crafting",
    "classifier: forward, backward",
)
UPDATE, TERM, OPTIMISER = "MI: estimators' update", "MI: the classifier's term", "optimisers"
REST = "rest"
PHASES = (DATA, CRAFTING, CLASSIFIER, UPDATE, TERM, OPTIMISER, REST)


def measure_phases(plan: Plan) -> Section:
    """Times the phases of AT, staged and joint NAMID in turn; medians over the rounds."""
    arms = {arm: watched_step(plan.config, arm, plan.device) for arm in (AT, STAGED, JOINT)}
    for call in arms.values():
        call()
    rounds: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    for _ in range(plan.rounds):
        for arm, call in arms.items():
            rounds[arm].append(call())
    batch = plan.config.optim.batch_size
    milliseconds = {
        arm: {
            phase: 1000 / batch * median(seconds.get(phase, 0.0) for seconds in each)
            for phase in PHASES
        }
        for arm, each in rounds.items()
    }
    totals = {arm: sum(phases.values()) for arm, phases in milliseconds.items()}
    rows = [
        [phase, *(_shown(milliseconds[arm][phase], totals[arm]) for arm in arms)]
        for phase in PHASES
    ]
    rows.append(["all", *(f"{number(totals[arm])} 100%" for arm in arms)])
    return Section(
        "Phases of a step: ms per sample, and share",
        ("phase", *arms),
        rows,
        {"ms_per_sample": milliseconds, "rounds": plan.rounds},
    )


def watched_step(config: Config, arm: str, device: torch.device) -> Callable[[], dict[str, float]]:
    """A call that makes one step of an arm, from the data on, and returns seconds by phase."""
    attack = arm_config(config, arm)
    made = trainee(arm_config(config, arm, GIVEN), device)  # what is outside of the attack
    state = made.state
    craft = Attacker(
        state.model,
        attack.attack,
        attack.attack_objective,
        state.autocast,
        fold_batchnorm=attack.scaling.fold_batchnorm,
    )
    watch = Stopwatch(Clock(device))
    learner, estimators = state.classifier, state.estimator_learner
    assert learner is not None
    watch.watch(learner.task, "forward", TERM)  # of which the next two are not part
    watch.watch(learner.task, "forward_pair", CLASSIFIER)
    watch.watch(learner.task, "adversarial_loss", CLASSIFIER)
    watch.watch(learner, "backward", CLASSIFIER)
    watch.watch(learner, "update", OPTIMISER)
    if estimators is not None:
        watch.watch(estimators.task, "forward", UPDATE)
        watch.watch(estimators, "backward", UPDATE)
        watch.watch(estimators, "update", OPTIMISER)

    def step() -> dict[str, float]:
        with watch.measure(DATA):
            batch = next(made.batches)
        with watch.measure(CRAFTING):
            craft(batch.x, batch.y, batch.sample, 0)
        with watch.measure(REST):
            state.step(batch, 0)
        return watch.take()

    return step


def _shown(milliseconds: float, total: float) -> str:
    return f"{number(milliseconds)} {milliseconds / total:4.0%}"
