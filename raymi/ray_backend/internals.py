"""Private names of Ray that raymi needs, to check before a new Ray is allowed.

Any release of Ray may change them, so `pyproject.toml` bounds Ray from above. Tests import them
all, and fail if another module of raymi uses a private name.
"""

from __future__ import annotations

# Hooks before Ray Train resizes a group of workers, which public callbacks lack.
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

# Its `poll_status` shows whether workers have ended after the request to save.
from ray.train.v2._internal.execution.worker_group import WorkerGroup

# Variables that Ray Tune copies to every trial's runtime environment, AWS keys among them; no
# setting removes them.
from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE

__all__ = ["ENV_VARS_TO_PROPAGATE", "ControllerCallback", "WorkerGroup", "WorkerGroupCallback"]
