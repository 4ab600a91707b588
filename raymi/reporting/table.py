"""Runs side by side in the paper's layout: methods in rows, attacks in columns, and a table of its
own for each question, so that only numbers of the same images, threat and attack share a column."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from raymi.commands.compare.results import markdown
from raymi.formatting import printable
from raymi.reporting.look import threat_text
from raymi.reporting.numbers import Entry
from raymi.selection.candidate import CLEAN, Protocol
from raymi.statistics import Accuracy

READING = (
    "Only numbers of the same images, threat and attack share a column. Bold: the highest of its "
    "column by more than noise, as intervals do not overlap."
)

_ORDER = ("pgd", "autoattack", "fwa", "ti-dim", "cw", "ddn")
"""Attacks as the paper's tables have them; others come after."""
_NAMES = {
    CLEAN: "Clean",
    "autoattack": "AutoAttack",
    "autoattack-plus": "AutoAttack+",
    "autoattack-rand": "AutoAttack rand",
    "ti-dim": "TI-DIM",
}
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "[": "{[}", "]": "{]}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
}  # fmt: skip


class Compared(NamedTuple):
    """A run as a row of tables: its name, method and seed, and all that was measured of it."""

    run: str
    method: str
    seed: int
    entries: Sequence[Entry]


class Cell(NamedTuple):
    """An accuracy in a table; `best`: it is the highest of its column by more than noise, as its
    95% interval lies above that of the second."""

    number: Accuracy
    best: bool


class Row(NamedTuple):
    """A run in a table: a cell for each column, None where it was not measured; doubts in words."""

    run: str
    method: str
    seed: int
    cells: tuple[Cell | None, ...]
    doubts: str


class ComparisonTable(NamedTuple):
    """What runs came to on one question: attacks in columns, runs in rows."""

    protocol: Protocol
    attacks: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def header(self) -> tuple[str, ...]:
        """What the columns are called."""
        return ("method", "run", "seed", *map(attack_text, self.attacks))

    @property
    def caption(self) -> str:
        """What the numbers are of, and how they are to be read."""
        protocol = self.protocol
        norm, _, eps = protocol.threat.partition("_")
        threat = threat_text(norm, _number(eps))
        by = "at the end of training" if protocol.of_training else "by raymi.evaluate"
        return (
            f"Accuracy in % on {protocol.num} images of {protocol.data} "
            f"({protocol.digest[:8]}), {threat}, measured {by}, with 95% Wilson intervals."
        )

    def as_json(self) -> dict[str, Any]:
        """In JSON's types; accuracies are fractions."""
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


def comparison_tables(runs: Sequence[Compared]) -> list[ComparisonTable]:
    """A table for each question that any run has numbers of: those of `raymi.evaluate` first, and
    of these the ones that most runs share."""
    by_question: dict[Protocol, list[tuple[Compared, Entry]]] = {}
    for run in runs:
        for entry in run.entries:
            by_question.setdefault(entry.protocol, []).append((run, entry))
    tables = [_table(protocol, found) for protocol, found in by_question.items()]
    return sorted(
        tables, key=lambda one: (one.protocol.of_training, -len(one.rows), -len(one.attacks))
    )


def attack_text(name: str) -> str:
    """An attack as papers write it, such as `PGD-40`."""
    plain = name.partition("-of-training")[0]
    alpha = name.partition("-alpha-")[2]
    text = _NAMES.get(plain) or re.sub(
        r"^(pgd|fwa|cw|ddn|apgd|fab|fgsm)", lambda found: found[0].upper(), plain
    )
    return f"{text} (alpha {alpha})" if alpha else text


def number_text(number: Accuracy) -> str:
    """An accuracy with its interval, in percent, such as `71.3 (66.4-75.8)`."""
    return f"{100 * number.accuracy:.1f} ({100 * number.low:.1f}-{100 * number.high:.1f})"


def as_markdown(tables: Sequence[ComparisonTable]) -> str:
    """All tables as Markdown, each below its caption."""
    parts = []
    for table in tables:
        rows = [_markdown_row(row) for row in table.rows]
        lines = markdown([table.header, *rows])
        parts.append(f"{printable(table.caption)}\n\n{lines}{_doubts(table)}")
    return "\n".join([*parts, READING, ""])


def as_latex(tables: Sequence[ComparisonTable]) -> str:
    """All tables as LaTeX, for `\\usepackage{booktabs}`."""
    parts = []
    for table in tables:
        lines = [" & ".join(map(_escaped, table.header)) + r" \\"]
        rows = [
            " & ".join([*map(_escaped, _names(row)), *_latex_cells(row)]) + r" \\"
            for row in table.rows
        ]
        columns = "llr" + "r" * len(table.attacks)
        body = ["\\toprule", *lines, "\\midrule", *rows, "\\bottomrule"]
        caption = _escaped(f"{table.caption} {READING}" + _doubts(table).replace("\n", " "))
        parts.append(
            "\n".join(
                [
                    "\\begin{table}",
                    f"\\caption{{{caption}}}",
                    f"\\begin{{tabular}}{{{columns}}}",
                    *body,
                    "\\end{tabular}",
                    "\\end{table}",
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


def _table(protocol: Protocol, found: Sequence[tuple[Compared, Entry]]) -> ComparisonTable:
    there = {name for _, entry in found for name in entry.numbers}
    attacks = tuple(sorted(there, key=_place))
    best = {name: _best(name, [entry.numbers for _, entry in found]) for name in attacks}
    rows = []
    for run, entry in found:
        cells = tuple(
            Cell(entry.numbers[name], entry.numbers[name] is best[name])
            if name in entry.numbers
            else None
            for name in attacks
        )
        rows.append(Row(run.run, run.method, run.seed, cells, entry.doubts))
    return ComparisonTable(protocol, attacks, tuple(rows))


def _best(name: str, rows: Sequence[Mapping[str, Accuracy]]) -> Accuracy | None:
    """The highest number of a column, if it is so by more than noise."""
    numbers = sorted((row[name] for row in rows if name in row), key=lambda one: -one.accuracy)
    clear = len(numbers) > 1 and numbers[0].low > numbers[1].high
    return numbers[0] if clear else None


def _place(name: str) -> tuple[int, int, str]:
    if name == CLEAN:
        return (-1, 0, name)
    kinds = [k for k, kind in enumerate(_ORDER) if name.startswith(kind)]
    steps = re.search(r"-(\d+)", name)
    return (kinds[0] if kinds else len(_ORDER), int(steps[1]) if steps else 0, name)


def _markdown_row(row: Row) -> list[str]:
    cells = []
    for cell in row.cells:
        text = "-" if cell is None else number_text(cell.number)
        cells.append(f"**{text}**" if cell is not None and cell.best else text)
    return [*_names(row), *cells]


def _names(row: Row) -> list[str]:
    return [row.method, row.run + (" †" if row.doubts else ""), str(row.seed)]


def _latex_cells(row: Row) -> list[str]:
    cells = []
    for cell in row.cells:
        text = "--" if cell is None else number_text(cell.number).replace("-", "--")
        cells.append(f"\\textbf{{{text}}}" if cell is not None and cell.best else text)
    return cells


def _doubts(table: ComparisonTable) -> str:
    lines = [
        printable(f"† {row.run}: signs of false robustness: {row.doubts}")
        for row in table.rows
        if row.doubts
    ]
    return "".join(f"\n{line}\n" for line in lines)


def _escaped(text: str) -> str:
    """A text in LaTeX, literal: without ligatures, and where `\\\\` would take [ for an option."""
    escaped = "".join(_LATEX.get(letter, letter) for letter in printable(text))
    return escaped.replace("†", r"\dag{}").replace("--", "-{}-")


def _number(text: str) -> float:
    over, _, under = text.partition("_")
    return float(over) / float(under or 1)
