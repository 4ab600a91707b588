"""Final table of a run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from raymi.recipes import build_config
from raymi.runs.run_folder import RunFolder
from raymi.terminal.summary import print_summary, result_table, result_title


def evaluation(**changes: Any) -> dict[str, Any]:
    attack = {"norm": "linf", "eps": 8 / 255, "alpha": 2 / 255, "steps": 40}
    return {
        "of_epoch": 14, "attack": attack, "clean": 0.95, "robust": 0.6, "num": 100, "chosen": True,
        **changes,
    }  # fmt: skip


EVALUATIONS = {"last": evaluation(of_epoch=15, robust=0.55), "best": evaluation()}


def printed(width: int, folder: Path = Path("/a/b/mine")) -> str:
    file = io.StringIO()
    places = {"run": str(folder), "MLflow UI": "mlflow ui --backend-store-uri sqlite:////a/m.db"}
    config = build_config("quickstart")
    print_summary(Console(file=file, width=width), config, RunFolder(folder), EVALUATIONS, places)
    return file.getvalue()


def test_best_comes_first_and_each_accuracy_has_its_interval() -> None:
    header, best, last = result_table(EVALUATIONS)
    assert header == ("model", "epoch", "clean (95% interval)", "PGD-40 (95% interval)")
    assert best == ("best", "14", "95.0% (88.8-97.8)", "60.0% (50.2-69.1)")
    assert last[:2] == ("last", "15")


def test_title_has_data_set_images_and_threat() -> None:
    config = build_config("quickstart")
    assert result_title(config, EVALUATIONS) == "digits, 100 test images, L_inf eps 8/255"
    attack = {"norm": "l2", "eps": 0.5, "alpha": 0.1, "steps": 10}
    title = result_title(config, {"last": evaluation(attack=attack)})
    assert title == "digits, 100 test images, L2 eps 0.5"


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_value_is_broken_at_any_width(width: int) -> None:
    folder = Path(
        "/a/long/folder/[with]/brackets/and/many/parts/of/its/path/a-name-20261122-131439"
    )
    text = printed(width, folder)
    lines = text.splitlines()
    assert lines[0] == f"{folder.name}: digits, 100 test images, L_inf eps 8/255"
    assert f"run        {folder}" in lines
    assert "MLflow UI  mlflow ui --backend-store-uri sqlite:////a/m.db" in lines
    assert "\x1b" not in text
    if width >= 80:
        assert "60.0% (50.2-69.1)" in text
        assert "PGD-40 (95% interval)" in text
