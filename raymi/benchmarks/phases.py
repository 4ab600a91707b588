"""Time of a training step by phase.

Calls of learners and tasks are timed from outside; the training code has no timers. On a GPU each
phase waits for the GPU, so that their sum is more than the time of a step.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch

from raymi.benchmarks.arms import AT, JOINT, NO_ATTACK, STAGED, arm_config, trainee
from raymi.benchmarks.clock import Stopwatch
from raymi.benchmarks.plan import Plan
from raymi.benchmarks.section import Section, number
from raymi.config import Config
from raymi.engine.step import Attacker, TrainStep

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
    rounds = [{arm: call() for arm, call in arms.items()} for _ in range(plan.rounds)]
    scale = 1000 / plan.config.optim.batch_size
    milliseconds = {
        arm: {
            phase: scale * median(seconds[arm].get(phase, 0.0) for seconds in rounds)
            for phase in PHASES
        }
        for arm in arms
    }
    totals = {arm: sum(phases.values()) for arm, phases in milliseconds.items()}
    rows = [
        [phase, *(_cell(milliseconds[arm][phase], totals[arm]) for arm in arms)] for phase in PHASES
    ]
    rows.append(["all", *(_cell(total, total) for total in totals.values())])
    return Section(
        "Phases of a step: ms per sample, and share",
        ("phase", *arms),
        rows,
        {"ms_per_sample": milliseconds, "rounds": plan.rounds},
    )


def watched_step(config: Config, arm: str, device: torch.device) -> Callable[[], dict[str, float]]:
    """Returns a call that makes one step of an arm, and returns its seconds by phase."""
    attack_config = arm_config(config, arm)
    made = trainee(arm_config(config, arm, NO_ATTACK), device)
    state = made.state
    attack = Attacker(
        state.model,
        attack_config.attack,
        attack_config.attack_objective,
        state.autocast,
        fold_batchnorm=attack_config.scaling.fold_batchnorm,
    )
    watch = Stopwatch()
    learner, estimators = state.classifier, state.estimator_learner
    assert learner is not None
    watch.watch(learner.task, "forward", CLASSIFIER)
    assert isinstance(state.training_step, TrainStep)
    watch.watch_calls(state.loss, CLASSIFIER)
    watch.watch_calls(state.mi, TERM)
    watch.watch_calls(state.training_step.objective, TERM)
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
            attack(batch.x, batch.y, batch.shard)
        with watch.measure(REST):
            state.step(batch)
        return watch.take()

    return step


def _cell(milliseconds: float, total: float) -> str:
    return f"{number(milliseconds)} {milliseconds / total:4.0%}"
