"""Selection of a model: find candidates, rank them, point the alias at the best one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from raymi.commands.select.options import SelectRequest
from raymi.files import save_json
from raymi.formatting import number_text
from raymi.runs.run_paths import home_folder
from raymi.selection.alias_update import AliasUpdate
from raymi.selection.protocols import by_protocol, check_names, strongest
from raymi.selection.ranking import Ranking, rank
from raymi.tracking.alias import set_alias
from raymi.tracking.candidates import find_candidates
from raymi.tracking.faults import store_errors_as_user_errors
from raymi.tracking.outcomes import PairedOutcomes
from raymi.tracking.stale_runs import close_stale_runs
from raymi.tracking.store import connect, require_store, tracking_uri


def select_model(
    request: SelectRequest, on_ranking: Callable[[Ranking, Sequence[str]], None]
) -> tuple[Ranking, AliasUpdate]:
    """Ranks logged models and points an alias at the best one.

    Args:
        request: checked command line.
        on_ranking: called with the ranking, and the names of models that were not measured under
            its protocol, before a model is chosen.

    Returns:
        The ranking, and the change of the alias in the registry: not made in a dry run.

    Raises:
        UserError: where no model is eligible, or the store fails.
    """
    options, uri = request.options, tracking_uri(home_folder())
    require_store(uri, "change to the folder with mlflow.db, or set MLFLOW_TRACKING_URI")
    with store_errors_as_user_errors(uri):
        client = connect(uri)
        candidates = find_candidates(client, options.experiment, options.sweep, options.run)
        comparable = by_protocol(candidates, options.metric, options.data, options.threat_name)
        metric = options.metric or strongest(comparable)
        check_names(comparable, request.constraints)
        measured = [one for one in comparable if metric in one.numbers]
        ranking = rank(
            measured,
            metric,
            request.constraints,
            allow_doubtful=options.doubtful == "allow",
            paired=PairedOutcomes(client, metric).compare,
        )
    on_ranking(ranking, sorted({one.name for one in candidates} - {one.name for one in measured}))
    if options.json_file is not None:
        save_json(options.json_file, ranking.as_json(), "nothing was changed in MLflow")
    chosen = ranking.chosen
    with store_errors_as_user_errors(uri):
        update = set_alias(
            client,
            chosen,
            options.alias,
            _reasons(ranking, request.command),
            name=options.registered_name,
            dry_run=options.dry_run,
        )
    if not options.dry_run:
        with suppress(Exception):  # of other runs; the alias is set
            experiment = client.get_experiment_by_name(options.experiment)
            close_stale_runs(client, experiment.experiment_id)
    return ranking, update


def _reasons(ranking: Ranking, command: str) -> dict[str, str]:
    """Returns the reasons for the choice, as tags of the version."""
    chosen, metric, protocol = ranking.chosen, ranking.metric, ranking.protocol
    runner_up = "none"
    if len(ranking.eligible) > 1:
        second = ranking.eligible[1]
        accuracy = number_text(ranking.number(second.candidate))
        runner_up = f"{second.candidate.name}: {accuracy}"
        if second.difference is not None:
            noise = "within noise" if second.difference.within_noise else "more than noise"
            runner_up += f", {100 * second.difference.value:+.1f} points, {noise}"
    return {
        "selected_by": f"{metric} {number_text(ranking.number(chosen))} on {protocol.text()}",
        "constraints": " ".join(map(str, ranking.constraints)) or "none",
        "candidates": f"{len(ranking.eligible)} of {len(ranking.ranked)} could be chosen",
        "runner_up": runner_up,
        "doubts": chosen.doubts or "none",
        "command": command,
    }
