"""Global random state of torch, numpy and Python."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def random_state_kept(
    seed: int | None = None, devices: Iterable[torch.device] = ()
) -> Iterator[None]:
    """Restores the global random state of torch, numpy and Python on exit.

    Args:
        seed: seed inside the context; None: the state is not changed on entry.
        devices: GPUs whose state is restored, besides the CPU's.
    """
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng(sorted(devices, key=str)):
            if seed is not None:
                torch.manual_seed(seed)
                np.random.seed(seed % 2**32)  # noqa: NPY002
                random.seed(seed)
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
