"""Environment variables that hold while Ray starts."""

from __future__ import annotations

import os

import pytest
from ray.tune.execution.class_cache import _ActorClassCache

from raymi.orchestration.ray_session import _environment
from raymi.orchestration.tuning import hand_on_no_keys

OWN = {"RAYMI_TEST_SET": "the user's", "RAYMI_TEST_EMPTY": ""}
SETTINGS = dict.fromkeys([*OWN, "RAYMI_TEST_ABSENT"], "raymi's")


@pytest.fixture(autouse=True)
def users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    for name, value in OWN.items():
        monkeypatch.setenv(name, value)


def settings_there() -> dict[str, str]:
    return {name: os.environ[name] for name in SETTINGS if name in os.environ}


def test_settings_hold_within_and_the_users_own_come_back() -> None:
    with _environment(SETTINGS):
        assert settings_there() == SETTINGS
    assert settings_there() == OWN


def test_the_users_own_come_back_after_an_error_too() -> None:
    with pytest.raises(KeyboardInterrupt), _environment(SETTINGS):
        raise KeyboardInterrupt
    assert settings_there() == OWN


def test_the_users_own_come_back_after_settings_that_are_gone() -> None:
    with _environment(SETTINGS):
        for name in SETTINGS:
            del os.environ[name]
    assert settings_there() == OWN


def test_none_takes_a_variable_away() -> None:
    with _environment({"RAYMI_TEST_SET": None, "RAYMI_TEST_ABSENT": None}):
        assert settings_there() == {"RAYMI_TEST_EMPTY": ""}
    assert settings_there() == OWN


def test_trials_get_no_keys_by_a_way_that_ray_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t")
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    hand_on_no_keys()
    handed_on = _ActorClassCache().get(type("Trainable", (), {}))._default_options["runtime_env"]
    assert handed_on["env_vars"]["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "0.2"
    assert "s3cr3t" not in str(handed_on)
