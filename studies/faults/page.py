"""Tables of docs/faults.md, between its markers."""

from __future__ import annotations

from pathlib import Path

from studies.faults.record import MEANING, load, table

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
BEGIN, END = "<!-- tables of studies/faults -->", "<!-- end of the tables -->"


def tables(results: Path) -> str:
    """Returns the tables of all results that exist, and the meaning of their columns."""
    files = [results / f"{part}.json" for part in ("kills", "bytes", "inputs")]
    shown = [table(load(file)) for file in files if file.is_file()]
    meanings = "\n".join(f"- {name}: {text}" for name, text in MEANING.items())
    return "\n\n".join([*shown, meanings])


def write_tables(results: Path) -> None:
    """Replaces the tables in the page."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables(results)}\n\n{END}{after}")
