"""Options of `python -m raymi.select`: ranks the models in MLflow by robust accuracy.

An alias of the registry then points at the best one. Candidates are the logged models of an
experiment; sweep=NAME restricts them to a sweep, run=A,B to single runs. Only accuracies of one
protocol are compared: the same images, threat and attack. Accuracies of raymi.evaluate take
precedence over accuracies from the end of a training. data= and threat= choose among several image
sets or threats. metric: autoattack, or the name of another attack in MLflow's metrics; default:
AutoAttack, or the attack with the lowest mean accuracy.

Words such as 'clean>=0.80' or 'pgd-40>=0.4', in quotes, are constraints. Models with signs of false
robustness are listed but not chosen, unless doubtful=allow.

The alias (champion) is set on the registered version of the chosen model, which is registered first
if necessary, and the reasons become tags of that version. --dry-run changes nothing; running the
command again changes nothing either. --json FILE writes all numbers.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from raymi.commands.command_line import Command
from raymi.commands.option_types import Names, NewFile
from raymi.config import TrackingConfig
from raymi.fields import Section
from raymi.formatting import as_typed, shown
from raymi.overrides import leaves
from raymi.selection.candidate import CLEAN
from raymi.selection.constraints import Constraint, is_constraint, read_constraints

_ALIAS = re.compile(r"(?!v\d+$|latest$)[A-Za-z0-9_-]+")  # MLflow refuses others


def _check_alias(text: str) -> str:
    if not _ALIAS.fullmatch(text):
        raise ValueError(
            f"expected letters, digits, - and _, not latest and not v1, got {shown(text)}"
        )
    return text


def _check_name(text: str | None) -> str | None:
    if set(text or "") & set("/:"):
        raise ValueError(f"expected a name without / and :, got {shown(text)}")
    return text


class SelectOptions(Section):
    """Options of `python -m raymi.select`, beside its constraints."""

    experiment: str = TrackingConfig().experiment
    """Experiment in MLflow."""
    sweep: str | None = None
    """Sweep whose models are candidates; none: all models."""
    run: Names = ()
    """Runs whose models are candidates, comma-separated names or ids; none: all models."""
    metric: str | None = None
    """Attack to rank by; none: AutoAttack, or the attack with the lowest mean accuracy."""
    data: str | None = None
    """Name of the images; none: the only ones."""
    threat: str | None = None
    """Threat, such as linf-8/255; none: the only one."""
    alias: Annotated[str, AfterValidator(_check_alias)] = "champion"
    """Alias in the registry."""
    doubtful: Literal["allow", "refuse"] = "refuse"
    """Allow models with signs of false robustness to be chosen."""
    registered_name: Annotated[str | None, AfterValidator(_check_name)] = None
    """Name under which the model is registered; none: of its run."""
    json_file: Annotated[NewFile | None, Field(alias="json")] = None
    """File for all numbers."""
    dry_run: bool = False
    """Rank only, and leave MLflow as it is."""

    @property
    def threat_name(self) -> str | None:
        """Threat as metrics name it: `linf_8_255` for `linf-8/255`."""
        return self.threat and re.sub(r"[^\w.]", "_", self.threat)


@dataclass(frozen=True)
class SelectRequest:
    """Checked command line.

    Attributes:
        options: of the command.
        constraints: on the chosen model.
        command: with the same effect, without options for output.
    """

    options: SelectOptions
    constraints: tuple[Constraint, ...]
    command: str


def requested(words: Sequence[str]) -> SelectRequest:
    """Parses the words of a command line.

    Raises:
        UserError: with a line for each invalid option.
    """
    line = COMMAND.parse(words)
    problems: list[str] = []
    constraints = read_constraints(line.others, problems)
    line.refuse(*problems)
    options = line.options.model_dump(exclude_unset=True, exclude={"json_file", "dry_run"})
    selecting = [*line.others, *(f"{key}={as_typed(value)}" for key, value in options.items())]
    command = f"{COMMAND.program} {shlex.join(selecting)}".strip()
    return SelectRequest(line.options, constraints, command)


COMMAND: Command[SelectOptions] = Command(
    "select",
    SelectOptions,
    requested,
    "raymi.commands.select.command:select_command",
    takes=lambda key: False,
    refusal=lambda key: (
        f"{key} has no effect on a selection: expected one of "
        + ", ".join(key for key, _ in leaves(SelectOptions))
    ),
    others="['clean>=0.80' ...]",
    is_other=lambda word: is_constraint(word) or word.partition("=")[0] == CLEAN,
)
