"""Tables of runs: methods in rows, attacks in columns, and one table for each protocol."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from raymi.evaluation.protocol import parse_threat
from raymi.formatting import markdown_table, number_text, printable, threat_text
from raymi.reporting.accuracies import ProtocolAccuracies
from raymi.selection.candidate import CLEAN, Protocol
from raymi.statistics import Number

READING = (
    "Only numbers of the same images, threat and attack share a column. Bold: the highest number "
    "of a column, if its interval overlaps with no other."
)

_ORDER = ("pgd", "autoattack", "fwa", "ti-dim", "cw", "ddn")
"""Attacks in the order of the paper's tables; others follow."""
_NAMES = {
    CLEAN: "Clean",
    "autoattack": "AutoAttack",
    "autoattack-plus": "AutoAttack+",
    "autoattack-rand": "AutoAttack rand",
    "ti-dim": "TI-DIM",
}


class RunAccuracies(NamedTuple):
    """A run with its accuracies under all protocols."""

    run: str
    method: str
    seed: int
    accuracies: Sequence[ProtocolAccuracies]


class Cell(NamedTuple):
    """An accuracy, and whether it is the best one of its column beyond noise."""

    number: Number
    best: bool


class Row(NamedTuple):
    """A run in a table: a cell for each column, None where nothing was measured."""

    run: str
    method: str
    seed: int
    cells: tuple[Cell | None, ...]
    doubts: str

    @property
    def names(self) -> list[str]:
        """Cells before the accuracies."""
        return [self.method, self.run + (" †" if self.doubts else ""), str(self.seed)]


class ComparisonTable(NamedTuple):
    """Accuracies of runs under one protocol: attacks in columns, runs in rows."""

    protocol: Protocol
    attacks: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def header(self) -> tuple[str, ...]:
        """Names of the columns."""
        return ("method", "run", "seed", *map(attack_text, self.attacks))

    @property
    def caption(self) -> str:
        """Images, threat and unit of the numbers."""
        protocol = self.protocol
        threat = threat_text(*parse_threat(protocol.threat))
        by = "at the end of training" if protocol.of_training else "by raymi.evaluate"
        return (
            f"Accuracy in % on {protocol.num} images of {protocol.data} "
            f"({protocol.digest[:8]}), {threat}, measured {by}, with 95% Wilson intervals."
        )

    @property
    def doubts(self) -> list[str]:
        """Lines below the table: signs of false robustness by run."""
        return [
            f"† {row.run}: signs of false robustness: {row.doubts}"
            for row in self.rows
            if row.doubts
        ]

    def as_json(self) -> dict[str, Any]:
        """Returns the table in JSON's types; accuracies are fractions."""
        return {
            **self.protocol._asdict(),
            "rows": [
                {
                    "run": row.run,
                    "method": row.method,
                    "seed": row.seed,
                    "doubts": row.doubts,
                    "accuracies": {
                        name: None if cell is None else cell.number._asdict()
                        for name, cell in zip(self.attacks, row.cells, strict=True)
                    },
                }
                for row in self.rows
            ],
        }


def comparison_tables(runs: Sequence[RunAccuracies]) -> list[ComparisonTable]:
    """Returns a table for each protocol: `raymi.evaluate` first, and many runs before few."""
    by_protocol: dict[Protocol, list[tuple[RunAccuracies, ProtocolAccuracies]]] = {}
    for run in runs:
        for accuracies in run.accuracies:
            by_protocol.setdefault(accuracies.protocol, []).append((run, accuracies))
    tables = [_table(protocol, members) for protocol, members in by_protocol.items()]
    return sorted(
        tables, key=lambda one: (one.protocol.of_training, -len(one.rows), -len(one.attacks))
    )


def attack_text(name: str) -> str:
    """Returns an attack as papers write it, such as `PGD-40`."""
    plain = name.partition("-of-training")[0]
    alpha = name.partition("-alpha-")[2]
    text = _NAMES.get(plain) or re.sub(
        r"^(pgd|fwa|cw|ddn|apgd|fab|fgsm)", lambda match: match[0].upper(), plain
    )
    return f"{text} (alpha {alpha})" if alpha else text


def as_markdown(tables: Sequence[ComparisonTable]) -> str:
    """Returns all tables as Markdown, each below its caption."""
    parts = []
    for table in tables:
        rows = [
            [*row.names, *(_cell_text(cell, "**{}**") for cell in row.cells)] for row in table.rows
        ]
        parts += [printable(table.caption), markdown_table([table.header, *rows])]
        parts += map(printable, table.doubts)
    return "\n\n".join([*parts, READING, ""])


def as_latex(tables: Sequence[ComparisonTable]) -> str:
    r"""Returns all tables as LaTeX, for `\usepackage{booktabs}`."""
    return "\n".join(map(_latex, tables))


def _latex(table: ComparisonTable) -> str:
    cells = [
        [*map(printable, row.names), *(_cell_text(cell, "{}") for cell in row.cells)]
        for row in table.rows
    ]
    bold = [
        [*("",) * 3, *("textbf:--rwrap" if cell and cell.best else "" for cell in row.cells)]
        for row in table.rows
    ]
    frame = pd.DataFrame(cells, columns=[printable(name) for name in table.header])
    style = frame.style.hide(axis="index").format(escape="latex")
    style = style.format_index(escape="latex", axis="columns")
    style = style.apply(lambda _: pd.DataFrame(bold, columns=frame.columns), axis=None)
    caption = " ".join([table.caption, READING, *table.doubts])
    columns = "llr" + "r" * len(table.attacks)
    return style.to_latex(hrules=True, column_format=columns, caption=_latex_text(caption))


def _latex_text(text: str) -> str:
    """Returns a text in LaTeX, escaped by pandas."""
    cell = pd.DataFrame([[printable(text)]]).style.hide(axis="index").hide(axis="columns")
    return cell.format(escape="latex").to_string().strip()


def _table(
    protocol: Protocol, members: Sequence[tuple[RunAccuracies, ProtocolAccuracies]]
) -> ComparisonTable:
    names = {name for _, accuracies in members for name in accuracies.numbers}
    attacks = tuple(sorted(names, key=_sort_key))
    all_numbers = [accuracies.numbers for _, accuracies in members]
    best = {name: _best(name, all_numbers) for name in attacks}
    rows = []
    for run, accuracies in members:
        numbers = accuracies.numbers
        cells = tuple(
            Cell(numbers[name], numbers[name] is best[name]) if name in numbers else None
            for name in attacks
        )
        rows.append(Row(run.run, run.method, run.seed, cells, accuracies.doubts))
    return ComparisonTable(protocol, attacks, tuple(rows))


def _best(name: str, rows: Sequence[Mapping[str, Number]]) -> Number | None:
    """Returns the highest number of a column, if the intervals show that it is."""
    numbers = sorted((row[name] for row in rows if name in row), key=lambda one: -one.accuracy)
    clear = len(numbers) > 1 and numbers[0].low > numbers[1].high
    return numbers[0] if clear else None


def _sort_key(name: str) -> tuple[int, int, str]:
    if name == CLEAN:
        return (-1, 0, name)
    kinds = [k for k, kind in enumerate(_ORDER) if name.startswith(kind)]
    steps = re.search(r"-(\d+)", name)
    return (kinds[0] if kinds else len(_ORDER), int(steps[1]) if steps else 0, name)


def _cell_text(cell: Cell | None, emphasis: str) -> str:
    if cell is None:
        return "-"
    text = number_text(cell.number, unit="")
    return emphasis.format(text) if cell.best else text
