"""Trial queue without Ray, also after interruptions."""

from __future__ import annotations

import pytest
from raymi_command import events
from safetensors.torch import load_file
from tiny_runs import same
from tiny_sweeps import CPU, begin

from raymi.tuning.run_trial import TrialResult, in_this_process, run_trial
from raymi.tuning.space import Space
from raymi.tuning.sweep_folder import TrialRun
from raymi.tuning.trial_queue import trial_queue_of

PBT = {"search": "pbt", "trials": 4}


def run_jobs(sweep, jobs=None, fails=()):
    """Runs `jobs` jobs of a sweep, or all, as one process would; returns jobs with their events."""
    study, done = sweep.study(), []
    queue = trial_queue_of(sweep, study)
    while jobs is None or len(done) < jobs:
        job = queue.next()
        if job is None:
            assert queue.exhausted
            break
        if (job.run.number, job.until_epoch) in fails:
            result = TrialResult("failed", "expected finite losses")
        else:
            train_run = in_this_process(CPU, sweep.stop_file)
            result = run_trial(sweep, job.run, job.values, train_run, job.until_epoch)
        done.append((job, queue.complete(job.run, result)))
    return done, list(study)


def test_the_worst_members_continue_from_the_best(tmp_path):
    sweep = begin(tmp_path / "sweep", PBT, **{"optim.epochs": 3})
    done, trials = run_jobs(sweep)
    assert [job.until_epoch for job, _ in done] == [1] * 4 + [2] * 4 + [None] * 4
    assert [kind for _, kind in done] == ["advanced"] * 8 + ["finished"] * 4
    assert [trial.state for trial in trials] == ["finished"] * 4
    first = {job.run.number: job.values for job, _ in done[:4]}
    second = {job.run.number: job.values for job, _ in done[4:8]}
    (target,) = (number for number in first if first[number] != second[number])
    (transfer, *_) = events(sweep.folder_of(TrialRun(target, 0)).path, "exploited")
    source = int(transfer["from"])
    robust = {
        n: sweep.validation_by_epoch(TrialRun(n, 0))[1].robust for n in range(4) if n != target
    }
    assert robust[source] == max(robust.values())
    assert 0.01 <= second[target]["optim.lr"] <= 0.1
    last = {job.run.number: job.values for job, _ in done[8:]}
    assert {trial.number: trial.values for trial in trials} == last, "the latest values"
    for trial in trials:
        assert (
            sweep.folder_of(TrialRun(trial.number, 0)).read_config().optim.lr
            == trial.values["optim.lr"]
        )
        assert trial.objectives == (sweep.measurements(TrialRun(trial.number, 0))[-1].robust,)


def test_an_interrupted_population_ends_as_an_uninterrupted_one(tmp_path):
    whole, cut = (begin(tmp_path / name, PBT, **{"optim.epochs": 2}) for name in ("whole", "cut"))
    expected, trials = run_jobs(whole)
    found = []
    for jobs in (1, 3, 2, None):  # within, at the end of, and after a generation
        found += run_jobs(cut, jobs)[0]
    assert [job for job, _ in found] == [job for job, _ in expected]
    assert list(cut.study()) == trials
    for run in (TrialRun(number, 0) for number in range(4)):
        one, other = (load_file(sweep.folder_of(run).weights("last")) for sweep in (whole, cut))
        assert same(one, other)
    assert trial_queue_of(cut, cut.study()).exhausted


def test_a_failed_member_is_replaced_and_the_last_failures_are_reported(tmp_path):
    sweep = begin(tmp_path / "sweep", PBT, **{"optim.epochs": 3})
    done, trials = run_jobs(sweep, 5, fails={(2, 1)})
    assert done[2][1] == "failed"
    assert [trial.state for trial in trials] == ["running"] * 4
    assert events(sweep.folder_of(TrialRun(2, 0)).path, "exploited")
    _, trials = run_jobs(sweep, fails={(0, None)})
    assert [trial.state for trial in trials] == ["failed", *["finished"] * 3]
    assert trials[0].reason == "failed in generation 3: expected finite losses"


def test_a_population_ends_once_all_members_fail(tmp_path):
    sweep = begin(tmp_path / "sweep", PBT, **{"optim.epochs": 2})
    done, trials = run_jobs(sweep, fails={(number, 1) for number in range(4)})
    assert len(done) == 4
    assert {trial.state for trial in trials} == {"failed"}


def test_a_trial_has_a_run_for_each_seed(tmp_path):
    space = Space(name="lr", description="", parameters={"optim.lr": {"choice": (0.02, 1e30)}})
    how = {"search": "grid"}
    sweep = begin(tmp_path / "sweep", how, space, seeds=(1, 2), **{"optim.epochs": 1})
    done, trials = run_jobs(sweep, 1)
    assert trials[0].state == "running"
    more, trials = run_jobs(sweep)
    assert [job.run for job, _ in done + more] == [TrialRun(0, 1), TrialRun(0, 2), TrialRun(1, 1)]
    first, second = trials
    robust = [sweep.measurements(run)[-1].robust for run in sweep.runs_of(0)]
    assert first.objectives == (pytest.approx(sum(robust) / 2),)
    assert second.state == "failed"
    assert second.reason.startswith("seed 1: expected finite losses")


def test_a_validated_epoch_without_a_checkpoint_is_repeated(tmp_path):
    """A kill between the journal's event and the checkpoint leaves this state."""
    sweep = begin(tmp_path / "sweep", {**PBT, "trials": 2}, **{"optim.epochs": 2})
    run_jobs(sweep, 1)
    folder = sweep.folder_of(TrialRun(0, 0))
    for path in folder.checkpoints.iterdir():
        path.unlink()
    assert sweep.validation_by_epoch(TrialRun(0, 0)).keys() == {1}
    done, trials = run_jobs(sweep)
    assert [job.run.number for job, _ in done] == [0, 1, 0, 1]
    assert {trial.state for trial in trials} == {"finished"}


def test_the_last_generation_needs_the_finished_event(tmp_path):
    sweep = begin(tmp_path / "sweep", {**PBT, "trials": 2}, **{"optim.epochs": 2})
    run_jobs(sweep, 3)
    folder = sweep.folder_of(TrialRun(0, 0))
    whole = folder.journal.read_text().splitlines(keepends=True)
    folder.journal.write_text("".join(line for line in whole if '"finished"' not in line))
    done, trials = run_jobs(sweep)
    assert [job.run.number for job, _ in done] == [0, 1]
    assert {trial.state for trial in trials} == {"finished"}
