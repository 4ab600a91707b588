"""`python -m raymi.select [experiment=NAME] [metric=NAME] ['clean>=0.80'] [--dry-run]`: ranks the
models in MLflow by robust accuracy and points an alias of the registry at the best one.

Candidates are the logged models of an experiment; sweep=NAME takes those of a sweep, run=A,B those
of single runs. Only accuracies on the same images under the same threat are compared, by the same
attack: those of raymi.evaluate, or else those of the end of a training. Where there are several
sets or threats, data= and threat= say which. metric: autoattack, or another attack as it is called
in MLflow's metrics; by default AutoAttack, or the strongest that there is.

Words such as 'clean>=0.80' or 'pgd-40>=0.4', in quotes, are constraints. Models with signs of false
robustness are shown and not chosen, unless doubtful=allow.

The alias (champion) is set on the registered version of the chosen model, which is registered where
it is not yet, and the reasons become tags of that version. --dry-run changes nothing; given again,
the command changes nothing either. --json FILE writes all numbers.
"""

from __future__ import annotations

import sys
from contextlib import suppress

from raymi.commands.cli import print_help, run_command, wants_help
from raymi.commands.select.options import COMMAND, Request, requested
from raymi.errors import UserError
from raymi.files import save_json
from raymi.formatting import number_text
from raymi.runs.run_paths import home_folder
from raymi.selection.protocols import by_protocol, check_names, strongest
from raymi.selection.ranking import Ranking, rank
from raymi.terminal.console import Terminal
from raymi.terminal.print_line import print_line
from raymi.terminal.selection import print_ranking, question_text
from raymi.tracking.alias import Pointed, point_alias
from raymi.tracking.candidates import find_candidates
from raymi.tracking.faults import answering
from raymi.tracking.left_running import close_left_running
from raymi.tracking.outcomes import Outcomes
from raymi.tracking.store import connect, missing_file, tracking_uri

USAGE = (
    f"{COMMAND} [experiment=NAME] [sweep=NAME | run=A,B] [metric=NAME] [data=NAME] [threat=NAME] "
    "['clean>=0.80' ...] [doubtful=allow] [alias=NAME] [registered_name=NAME] [--dry-run] "
    "[--json FILE] [--help]"
)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(_select, argv)


def _select(words: list[str]) -> int:
    console = Terminal()
    if wants_help(words):
        print_help(console, USAGE, __doc__, {}, lambda key: False)
        return 0
    request = requested(words)
    uri = _store()
    with answering(uri):
        client = connect(uri)
        everyone = find_candidates(client, request.experiment, request.sweep, request.runs)
        found = by_protocol(everyone, request.metric, request.data, request.threat)
        metric = request.metric or strongest(found)
        check_names(found, request.constraints)
        measured = [one for one in found if metric in one.numbers]
        ranking = rank(
            measured,
            metric,
            request.constraints,
            allow_doubtful=request.allow_doubtful,
            paired=Outcomes(client, metric).compare,
        )
    print_ranking(console, ranking)
    others = {one.name for one in everyone} - {one.name for one in measured}
    if others:
        text = f"not measured so, and left out: {', '.join(sorted(others))}"
        print_line(console, text, "yellow")
    if request.json is not None:
        save_json(request.json, ranking.as_json(), "nothing was changed in MLflow")
    chosen = ranking.chosen
    with answering(uri):
        pointed = point_alias(
            client,
            chosen,
            request.alias,
            _reasons(ranking, request),
            name=request.name,
            dry_run=request.dry_run,
        )
    if not request.dry_run:
        with suppress(Exception):  # of other runs: the alias is set all the same
            experiment = client.get_experiment_by_name(request.experiment)
            close_left_running(client, experiment.experiment_id)
    print_line(console, f"chosen: {chosen.name}  {_told(pointed, request)}", "bold")
    if ranking.protocol.data.partition("-test")[1]:
        text = "chosen on test images, its accuracy there is flattered: to choose without, evaluate"
        print_line(console, f"{text} split=val and give data=NAME-val")
    return 0


def _store() -> str:
    uri = tracking_uri(home_folder())
    if (file := missing_file(uri)) is not None:
        raise UserError(
            f"there is no MLflow store {file}: go to the folder with mlflow.db, or set "
            "MLFLOW_TRACKING_URI to a store that is there"
        )
    return uri


def _reasons(ranking: Ranking, request: Request) -> dict[str, str]:
    """Why the chosen model is the chosen one, as tags."""
    chosen, metric = ranking.chosen, ranking.metric
    of_what = question_text(ranking.protocol)
    runner_up = "none"
    if len(ranking.eligible) > 1:
        second = ranking.eligible[1]
        runner_up = f"{second.candidate.name}: {number_text(ranking.number(second.candidate))}"
        if second.difference is not None:
            noise = "within noise" if second.difference.within_noise else "more than noise"
            runner_up += f", {100 * second.difference.value:+.1f} points, {noise}"
    return {
        "selected_by": f"{metric} {number_text(ranking.number(chosen))} on {of_what}",
        "constraints": " ".join(map(str, ranking.constraints)) or "none",
        "candidates": f"{len(ranking.eligible)} of {len(ranking.places)} could be chosen",
        "runner_up": runner_up,
        "doubts": chosen.doubts or "none",
        "command": request.command,
    }


def _told(pointed: Pointed, request: Request) -> str:
    version = "a new version" if pointed.version is None else f"version {pointed.version}"
    what = f"{version} of {pointed.name}"
    if not pointed.changed:
        return f"{what} has the alias {pointed.alias} already, with the same reasons"
    moved = pointed.before not in (None, pointed.version)
    if request.dry_run:
        now = f" (now: version {pointed.before})" if moved else ""
        return f"{what} would get the alias {pointed.alias}{now}; nothing was changed"
    before = f" (before: version {pointed.before})" if moved else ""
    return f"{what} has the alias {pointed.alias} now{before}"


if __name__ == "__main__":
    sys.exit(main())
