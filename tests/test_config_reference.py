"""docs/configuration.md is generated from the settings."""

from __future__ import annotations

from pathlib import Path

from raymi.config_reference import PAGE, configuration_page, main
from raymi.overrides import leaves

ROOT = Path(__file__).parents[1]


def test_page_in_docs_is_current() -> None:
    assert (ROOT / PAGE).read_text(encoding="utf-8") == configuration_page(), (
        "stale: run python -m raymi.config_reference"
    )


def test_page_has_one_row_for_each_key() -> None:
    rows = [line for line in configuration_page().splitlines() if line.count(" | ") >= 3]
    keys = [row.split("`")[1] for row in rows if row.startswith("| `")]
    assert [key for key, _ in leaves() if keys.count(key) == 0] == []
    every = [row for row in rows if "`attack.eps`" in row]
    assert every == [
        "| `attack.eps` | `8/255` | number >= 0 | Radius of the perturbation, in [0, 1] pixel "
        "units. |"
    ]


def test_default_is_the_value_of_an_empty_configuration() -> None:
    assert "| `mi.balance` | `0.2` | number >= 0, or a schedule" in configuration_page()


def test_main_writes_to_the_given_file(tmp_path: Path) -> None:
    assert main([str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == configuration_page()
