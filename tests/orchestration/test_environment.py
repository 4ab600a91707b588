"""Environment variables that hold while Ray starts."""

from __future__ import annotations

import os

import pytest

from raymi.orchestration.ray_session import _environment

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
