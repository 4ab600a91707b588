"""Slots for workers on the nodes of a cluster, and the wait for them."""

from __future__ import annotations

import time
from collections.abc import Callable

from raymi.config import ScalingConfig
from raymi.errors import UserError

_MESSAGE_SECONDS = 60.0  # between two messages about a wait


def num_slots(bundle: dict[str, int]) -> int:
    """Returns the number of workers that fit on the nodes, used slots included."""
    import ray

    return sum(
        min(int(node["Resources"].get(kind, 0) // amount) for kind, amount in bundle.items())
        for node in ray.nodes()
        if node["Alive"]
    )


def num_free_slots(bundle: dict[str, int]) -> int:
    """Returns an upper bound on the number of slots that no other job uses."""
    import ray

    free = ray.available_resources()
    return min(int(free.get(kind, 0) // amount) for kind, amount in bundle.items())


def print_missing_slots(
    scaling: ScalingConfig, bundle: dict[str, int], print_line: Callable[[str], None]
) -> None:
    """Prints the missing slots of a run that has to wait for other jobs."""
    slots, free = num_slots(bundle), num_free_slots(bundle)
    if free < scaling.least_workers:
        print_line(
            f"{_missing_slots(scaling, bundle, slots, free)}; the run starts when other jobs end"
        )


def wait_for_slots(
    scaling: ScalingConfig,
    bundle: dict[str, int],
    print_line: Callable[[str], None],
    check: Callable[[], None],
) -> None:
    """Waits at most `wait_minutes` until an autoscaling cluster has a slot for each worker.

    Args:
        scaling: Requested workers.
        bundle: Resources of one worker.
        print_line: Prints a message about the wait each minute.
        check: Called during the wait; an exception ends it.

    Raises:
        UserError: The cluster has fewer slots than the minimum number of workers.
    """
    from ray.autoscaler.sdk import request_resources

    deadline = time.monotonic() + 60 * scaling.wait_minutes
    if scaling.wait_minutes > 0:
        request_resources(bundles=[bundle] * scaling.most_workers)
    next_message = time.monotonic()
    try:
        while (slots := num_slots(bundle)) < scaling.most_workers:
            check()
            now = time.monotonic()
            if now >= deadline:
                if slots >= scaling.least_workers:
                    return
                raise UserError(
                    f"scaling.workers={scaling.workers} with {_resources_text(bundle)}, but the "
                    f"nodes of the cluster have slots for {slots}: ask for fewer workers, add "
                    "nodes, or set scaling.wait_minutes to wait for an autoscaler"
                )
            if now >= next_message:
                next_message = now + _MESSAGE_SECONDS
                left = (deadline - now) / 60
                missing = _missing_slots(scaling, bundle, slots, num_free_slots(bundle))
                print_line(
                    f"{missing}; waiting up to {left:.0f} more minutes for nodes "
                    f"(scaling.wait_minutes={scaling.wait_minutes})"
                )
            time.sleep(1)
    finally:
        if scaling.wait_minutes > 0:
            request_resources(bundles=[])  # a request holds until the next one


def _missing_slots(scaling: ScalingConfig, bundle: dict[str, int], slots: int, free: int) -> str:
    return (
        f"waiting for slots: scaling.workers={scaling.workers} with {_resources_text(bundle)}, the "
        f"nodes have slots for {slots}, {min(slots, free)} of them free"
    )


def _resources_text(bundle: dict[str, int]) -> str:
    return " and ".join(f"{amount} {kind}" for kind, amount in bundle.items()) + " each"
