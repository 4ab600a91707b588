"""Headline of a report: each method's accuracies, and its difference to AT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raymi.formatting import mean_text
from raymi.reporting.table import ComparisonTable, Row, attack_text
from raymi.selection.candidate import CLEAN
from raymi.statistics import Mean, mean_of

REFERENCE = "AT"
"""Method to which others are compared."""

_MOST = 4


def headline(tables: Sequence[ComparisonTable]) -> list[str]:
    """Returns a line for each method of the first table, the most robust one first.

    A line has the means over the seeds of a method with their standard errors. Its difference to AT
    is paired by seed.
    """
    if not tables:
        return []
    table = tables[0]
    clean, attack = _column(table, CLEAN), _column(table, _strongest(table))
    methods = dict.fromkeys(row.method for row in table.rows)
    means = {m: mean_of([v for row, v in attack.items() if row.method == m]) for m in methods}
    measured = [(method, mean) for method, mean in means.items() if mean is not None]
    measured.sort(key=lambda item: -item[1].mean)
    name = attack_text(_strongest(table))
    lines = []
    for method, mean in measured[:_MOST]:
        of_clean = mean_of([v for row, v in clean.items() if row.method == method])
        accuracies = f"{mean_text(of_clean)} clean, {mean_text(mean)} {name}"
        text = f"{method} on {table.protocol.data}: {accuracies}"
        difference = _difference(attack, method)
        if difference is not None:
            points = mean_text(difference, signed=True, unit="")
            seeds = "" if difference.num > 1 else " (one seed)"
            text += f", {points} points over {REFERENCE}{seeds}"
        lines.append(text)
    return lines


def _strongest(table: ComparisonTable) -> str:
    """Returns AutoAttack, or the attack with the lowest accuracy."""
    attacks = [name for name in table.attacks if name != CLEAN]
    if "autoattack" in attacks:
        return "autoattack"

    def lowest(name: str) -> float:
        return min(_column(table, name).values(), default=1.0)

    return min(attacks, key=lowest)


def _column(table: ComparisonTable, attack: str) -> dict[Row, float]:
    """Returns the accuracies under an attack, of the rows that have one."""
    k = table.attacks.index(attack)
    return {row: cell.number.accuracy for row in table.rows if (cell := row.cells[k]) is not None}


def _difference(accuracies: Mapping[Row, float], method: str) -> Mean | None:
    """Returns the mean over common seeds of a method minus AT; None without such seeds.

    Runs of one method and seed, such as two settings, count by their mean.
    """
    if method == REFERENCE:
        return None

    def by_seed(name: str) -> dict[int, float]:
        seeds = {row.seed for row in accuracies if row.method == name}
        means = {
            seed: mean_of([v for r, v in accuracies.items() if (r.method, r.seed) == (name, seed)])
            for seed in seeds
        }
        return {seed: mean.mean for seed, mean in means.items() if mean is not None}

    own, reference = by_seed(method), by_seed(REFERENCE)
    return mean_of([own[seed] - reference[seed] for seed in sorted(own.keys() & reference.keys())])
