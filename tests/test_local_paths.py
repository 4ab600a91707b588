"""Addresses are refused wherever a path is expected: they would become local folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from raymi import evaluate, export, probe, report, standalone, train, tune
from raymi.local_paths import address_problem

COMMANDS: list[tuple[Callable[[list[str]], int], list[str]]] = [
    (train.main, ["out={}"]),
    (train.main, ["data.root={}"]),
    (train.main, ["data.generated={}"]),
    (train.main, ["mi.pretrained={}"]),
    (train.main, ["mi.estimators={}", "mi.schedule=staged"]),
    (train.main, ["resume={}"]),
    (train.main, ["resume=a", "out={}"]),
    (standalone.main, ["name=a", "out={}"]),
    (tune.main, ["space=smoke", "out={}"]),
    (tune.main, ["space={}.toml"]),
    (tune.main, ["resume={}"]),
    (tune.main, ["resume=a", "out={}"]),
    (evaluate.main, ["model={}"]),
    (evaluate.main, ["model=a", "results={}"]),
    (evaluate.main, ["model=a", "surrogate={}"]),
    (evaluate.main, ["model=a", "--json", "{}"]),
    (export.main, ["model={}"]),
    (export.main, ["model=a", "out={}"]),
    (probe.main, ["run={}"]),
    (probe.main, ["run=a", "out={}"]),
    (report.main, ["{}"]),
    (report.main, ["a", "out={}"]),
]


@pytest.mark.parametrize("address", ["s3://bucket/folder", "file:///tmp/folder", "gs://a"])
@pytest.mark.parametrize(("main", "words"), COMMANDS)
def test_an_address_is_refused_and_becomes_no_folder(
    main: Callable[[list[str]], int],
    words: list[str],
    address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([word.format(address) for word in words]) == 2
    said = capsys.readouterr().err
    assert "got the address" in said
    assert address in said
    assert "mount the storage" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("variable", ["RAYMI_CACHE", "RAYMI_DATA"])
def test_an_address_of_the_environment_is_refused(
    variable: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, "s3://bucket/data")
    assert train.main(["data.name=cifar10"]) == 2
    assert f"{variable}: expected a path" in capsys.readouterr().err


@pytest.mark.parametrize(
    "path", ["runs", "/tmp/a", "~/a", "a:b", "my_module:Net", "./s3:/a", Path("/tmp/s3:/a")]
)
def test_paths_are_no_addresses(path: str | Path) -> None:
    assert address_problem(path) is None


def test_a_path_object_has_lost_a_slash_and_is_still_an_address() -> None:
    assert address_problem(Path("s3://bucket/folder")) is not None
