"""Places for workers on the nodes of a cluster, and the wait for them."""

from __future__ import annotations

import time
from collections.abc import Callable

from raymi.config import ScalingConfig
from raymi.errors import UserError

_SAY_SECONDS = 60.0  # between two lines about a wait


def num_slots(bundle: dict[str, int]) -> int:
    """Returns the number of workers that the nodes have room for, each of them on one node."""
    import ray

    return sum(
        min(int(node["Resources"].get(kind, 0) // amount) for kind, amount in bundle.items())
        for node in ray.nodes()
        if node["Alive"]
    )


def num_free_slots(bundle: dict[str, int]) -> int:
    """Returns at most how many of the places no other job holds."""
    import ray

    free = ray.available_resources()
    return min(int(free.get(kind, 0) // amount) for kind, amount in bundle.items())


def print_missing_slots(
    scaling: ScalingConfig, bundle: dict[str, int], print_line: Callable[[str], None]
) -> None:
    """Says what a run waits for where other jobs hold the places that it needs."""
    there, free = num_slots(bundle), num_free_slots(bundle)
    if free < scaling.least_workers:
        print_line(f"{_awaited(scaling, bundle, there, free)}; the run begins when other jobs end")


def wait_for_slots(
    scaling: ScalingConfig,
    bundle: dict[str, int],
    print_line: Callable[[str], None],
    check: Callable[[], None],
) -> None:
    """Waits at most `wait_minutes` for a cluster that grows to have a place for each worker.

    Args:
        scaling: Workers that are asked for.
        bundle: Resources of each.
        say: Takes a line about the wait each minute.
        check: Called during the wait; an exception ends it.

    Raises:
        UserError: The cluster then has not even places for the least number.
    """
    from ray.autoscaler.sdk import request_resources

    deadline = time.monotonic() + 60 * scaling.wait_minutes
    if scaling.wait_minutes > 0:
        request_resources(bundles=[bundle] * scaling.most_workers)
    say_next = time.monotonic()
    try:
        while (there := num_slots(bundle)) < scaling.most_workers:
            check()
            now = time.monotonic()
            if now >= deadline:
                if there >= scaling.least_workers:
                    return
                raise UserError(
                    f"scaling.workers={scaling.workers} with {_each(bundle)}, but the nodes of the "
                    f"cluster have places for {there}: ask for fewer workers, add nodes, or set "
                    "scaling.wait_minutes to wait for an autoscaler"
                )
            if now >= say_next:
                say_next = now + _SAY_SECONDS
                left = (deadline - now) / 60
                missing = _awaited(scaling, bundle, there, num_free_slots(bundle))
                print_line(
                    f"{missing}; waiting for nodes, "
                    f"at most {left:.0f} minutes more (scaling.wait_minutes={scaling.wait_minutes})"
                )
            time.sleep(1)
    finally:
        if scaling.wait_minutes > 0:
            request_resources(bundles=[])  # Ray keeps a request until it is replaced


def _awaited(scaling: ScalingConfig, bundle: dict[str, int], there: int, free: int) -> str:
    return (
        f"waiting for places: asked for scaling.workers={scaling.workers} with {_each(bundle)}, "
        f"the nodes have places for {there}, {min(there, free)} of them free"
    )


def _each(bundle: dict[str, int]) -> str:
    return " and ".join(f"{amount} {kind}" for kind, amount in bundle.items()) + " each"
