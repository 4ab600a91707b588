"""`python -m raymi.select [experiment=NAME] [metric=NAME] ['clean>=0.80'] [--dry-run]`: ranks the
models in MLflow by robust accuracy and points an alias of the registry at the best one.

Candidates are the logged models of an experiment; sweep=NAME restricts them to a sweep, run=A,B to
single runs. Only accuracies of one protocol are compared: the same images, threat and attack.
Accuracies of raymi.evaluate take precedence over accuracies from the end of a training. data= and
threat= choose among several image sets or threats. metric: autoattack, or the name of another
attack in MLflow's metrics; default: AutoAttack, or the attack with the lowest mean accuracy.

Words such as 'clean>=0.80' or 'pgd-40>=0.4', in quotes, are constraints. Models with signs of false
robustness are listed but not chosen, unless doubtful=allow.

The alias (champion) is set on the registered version of the chosen model, which is registered first
if necessary, and the reasons become tags of that version. --dry-run changes nothing; running the
command again changes nothing either. --json FILE writes all numbers.
"""

from __future__ import annotations

from functools import partial

from raymi.commands.cli import print_help, wants_help
from raymi.commands.select.options import COMMAND, SelectOptions, requested
from raymi.commands.select.run import select_model
from raymi.terminal.console import Terminal
from raymi.terminal.selection import print_choice, print_ranking

USAGE = (
    f"{COMMAND} [experiment=NAME] [sweep=NAME | run=A,B] [metric=NAME] [data=NAME] [threat=NAME] "
    "['clean>=0.80' ...] [doubtful=allow] [alias=NAME] [registered_name=NAME] [--dry-run] "
    "[--json FILE] [--help]"
)


def select_command(words: list[str]) -> int:
    """Chooses a model and points an alias at it.

    Args:
        words: of the command line.

    Returns:
        The exit code.

    Raises:
        UserError: options are invalid, no model is eligible, or the store fails.
    """
    console = Terminal()
    if wants_help(words):
        print_help(console, USAGE, __doc__, {}, lambda key: False, SelectOptions)
        return 0
    request = requested(words)
    ranking, update = select_model(request, partial(print_ranking, console))
    print_choice(console, ranking, update)
    return 0
