"""Environment variables of a Ray session, and connection to a cluster."""

from __future__ import annotations

import os

import pytest
import ray
from ray.tune.execution.class_cache import _ActorClassCache

from raymi.config import ScalingConfig
from raymi.errors import UserError
from raymi.ray_backend import connection, session
from raymi.ray_backend.connection import _environment
from raymi.ray_backend.tune import withhold_aws_keys

OWN = {"RAYMI_TEST_SET": "the user's", "RAYMI_TEST_EMPTY": ""}
SETTINGS = dict.fromkeys([*OWN, "RAYMI_TEST_ABSENT"], "raymi's")


@pytest.fixture(autouse=True)
def users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    for name, value in OWN.items():
        monkeypatch.setenv(name, value)


def current_settings() -> dict[str, str]:
    return {name: os.environ[name] for name in SETTINGS if name in os.environ}


def test_settings_are_restored_on_exit() -> None:
    with _environment(SETTINGS):
        assert current_settings() == SETTINGS
    assert current_settings() == OWN


def test_settings_are_restored_after_an_error() -> None:
    with pytest.raises(KeyboardInterrupt), _environment(SETTINGS):
        raise KeyboardInterrupt
    assert current_settings() == OWN


def test_settings_are_restored_after_their_removal() -> None:
    with _environment(SETTINGS):
        for name in SETTINGS:
            del os.environ[name]
    assert current_settings() == OWN


def test_none_removes_a_variable() -> None:
    with _environment({"RAYMI_TEST_SET": None, "RAYMI_TEST_ABSENT": None}):
        assert current_settings() == {"RAYMI_TEST_EMPTY": ""}
    assert current_settings() == OWN


def test_the_runtime_environment_of_trials_has_no_aws_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t")
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    withhold_aws_keys()
    options = _ActorClassCache().get(type("Trainable", (), {}))._default_options["runtime_env"]
    assert options["env_vars"]["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "0.2"
    assert "s3cr3t" not in str(options)


def test_a_slow_cluster_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([ConnectionError("not yet"), RuntimeError("not yet"), None])

    def init(**_: object) -> None:
        if (error := next(answers)) is not None:
            raise error

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(ray, "init", init)
    connection._join()
    assert not list(answers)


def test_a_cluster_that_does_not_answer_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise ConnectionError("Failed to connect") from RuntimeError(
            "no raylet here. Last error: Traceback:\nand more"
        )

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(connection, "_JOIN_SECONDS", -1.0)
    message = r"RAY_ADDRESS=10.0.0.1:6379 does not answer \(no raylet here\): .* unset RAY_ADDRESS"
    with pytest.raises(UserError, match=message):
        with session.ray_session(ScalingConfig()):
            pass
