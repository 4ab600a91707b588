"""Health checks of training: errors that end a run, and warnings for its user."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from raymi.engine.metrics import MetricMeans
from raymi.engine.train_state import TrainState
from raymi.runs.checkpoint import newest_checkpoint


def finite_means(recorded: MetricMeans, state: TrainState, checkpoints: Path) -> dict[str, float]:
    """Returns the means of recorded metrics, which must be finite; a collective operation.

    Args:
        recorded: metrics since the last call.
        state: of the run.
        checkpoints: folder of the run's checkpoints.

    Raises:
        FloatingPointError: a mean is not finite; names the terms, the first step, and the
            checkpoint to go back to.
    """
    means = recorded.means(state.group)
    if all(math.isfinite(value) for value in means.values()):
        return means
    broken = recorded.first_not_finite(state.group)
    broken = broken or dict.fromkeys(means, state.position.global_step)
    first = min(broken.values())
    terms = [f"{name} = {means[name]}" for name, step in broken.items() if step == first]
    raise FloatingPointError(
        f"expected finite losses, got {', '.join(terms)} at step {first} "
        f"{_where_to_go_back(state, checkpoints)}"
    )


def require_finite_weights(state: TrainState, checkpoints: Path) -> None:
    """Refuses weights and statistics that are not finite, which the next loss would show.

    Raises:
        FloatingPointError: names the modules, the step and the checkpoint to go back to.
    """
    if broken := state.modules_not_finite():
        raise FloatingPointError(
            f"expected finite weights, got others in {' and '.join(broken)} at step "
            f"{state.position.global_step} {_where_to_go_back(state, checkpoints)}"
        )


def health_warnings(
    epoch: int,
    train: Mapping[str, float],
    val: Mapping[str, float],
    *,
    attacked: bool,
    num_val: int,
) -> Iterator[str]:
    """Yields warnings about an epoch, a line each.

    Args:
        epoch: its number, from 1.
        train: means of its training metrics.
        val: its validation metrics.
        attacked: whether training is adversarial.
        num_val: number of validation images.
    """
    norm_mi, norm_adv = train.get("mi/grad_norm", 0.0), train.get("grad_norm_adv", math.inf)
    if norm_mi > norm_adv:
        yield (
            f"the MI loss dominated the adversarial one in epoch {epoch}: the norms of their "
            f"gradients at the logits were {norm_mi:.3g} and {norm_adv:.3g}; lower mi.weight or "
            "use mi.balance"
        )
    cheap, strong = val.get("fgsm_acc", 0.0), val.get("robust_acc", 1.0)
    if attacked and overfits_catastrophically(cheap, strong, num_val):
        yield (
            f"catastrophic overfitting in epoch {epoch}: on validation {100 * cheap:.1f}% "
            f"withstand one attack step and {100 * strong:.1f}% several; raise attack.steps, or "
            "lower attack.alpha or optim.lr"
        )


def overfits_catastrophically(cheap: float, strong: float, num: int) -> bool:
    """Returns whether accuracies under a one-step and an iterative attack show overfitting.

    A classifier that masks its gradient withstands one step but not ten; a sound one loses a few
    points between them. True if the strong attack leaves less than half of the cheap one's
    accuracy, and 10 points less; of few images, more than three standard errors less.

    Args:
        cheap: accuracy under one step, a fraction.
        strong: accuracy under several steps, a fraction.
        num: number of images.

    Source: Wong, Rice, Kolter 2020, Sec. 5 (catastrophic overfitting).
    """
    error = math.sqrt((cheap * (1 - cheap) + strong * (1 - strong)) / num)
    least = max(0.1, 3 * error, 3 / num)
    return strong < 0.5 * cheap and cheap - strong > least


def _where_to_go_back(state: TrainState, checkpoints: Path) -> str:
    position, checkpoint = state.position, newest_checkpoint(checkpoints)
    before = "there is no checkpoint yet" if checkpoint is None else f"go back to {checkpoint}"
    remedy = "a lower lr, mi.weight or mi.balance, or with mi.form=bounded"
    remedy = remedy if state.config.mi.enabled else "a lower lr"
    return (
        f"(phase {position.phase}, epoch {position.epoch + 1}): start a new run with {remedy}; "
        f"{before}"
    )
