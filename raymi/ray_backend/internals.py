"""Private names of Ray that raymi needs: the one list to check before a new Ray is allowed.

Ray may move or change these in any release, so `pyproject.toml` bounds Ray from above. Tests import
them all, and fail where another module of raymi uses such a name.
"""

from __future__ import annotations

# Called before Ray Train ends workers to start another number of them: public callbacks are not.
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

# Its `poll_status` shows whether workers that were asked to save have ended.
from ray.train.v2._internal.execution.worker_group import WorkerGroup

# Variables that Ray Tune copies into every trial's runtime environment, AWS keys among them: no
# setting removes any.
from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE

__all__ = ["ENV_VARS_TO_PROPAGATE", "ControllerCallback", "WorkerGroup", "WorkerGroupCallback"]
