"""What a sweep does next, trained without Ray: also when it is cut off and continued."""

from __future__ import annotations

import pytest
from raymi_command import events
from safetensors.torch import load_file
from tiny_runs import same
from tiny_sweeps import CPU, begin

from raymi.tuning.run_trial import Ended, in_this_process, run_trial
from raymi.tuning.space import Space
from raymi.tuning.sweep_folder import TrialRun
from raymi.tuning.trial_queue import trial_queue_of

PBT = {"search": "pbt", "trials": 4}


def work(sweep, jobs=None, fails=()):
    """Brings a sweep on by so many jobs, or to its end, as one process would; what the jobs were,
    and what they were for their runs."""
    study, done = sweep.study(), []
    queue = trial_queue_of(sweep, study)
    while jobs is None or len(done) < jobs:
        job = queue.next()
        if job is None:
            assert queue.over
            break
        if (job.run.number, job.until_epoch) in fails:
            ended = Ended("failed", "expected finite losses")
        else:
            train_run = in_this_process(CPU, sweep.stop_file)
            ended = run_trial(sweep, job.run, job.values, train_run, job.until_epoch)
        done.append((job, queue.ended(job.run, ended)))
    return done, list(study)


def test_members_of_a_population_take_over_from_the_best(tmp_path):
    sweep = begin(tmp_path / "sweep", PBT, **{"optim.epochs": 3})
    done, trials = work(sweep)
    assert [job.until_epoch for job, _ in done] == [1] * 4 + [2] * 4 + [None] * 4
    assert [kind for _, kind in done] == ["advanced"] * 8 + ["finished"] * 4
    assert [trial.state for trial in trials] == ["finished"] * 4
    first = {job.run.number: job.values for job, _ in done[:4]}
    second = {job.run.number: job.values for job, _ in done[4:8]}
    (follower,) = (number for number in first if first[number] != second[number])
    (taken, *_) = events(sweep.folder_of(TrialRun(follower, 0)).path, "exploited")
    leader = int(taken["from"])
    robust = {n: sweep.validated(TrialRun(n, 0))[1].robust for n in range(4) if n != follower}
    assert robust[leader] == max(robust.values())
    assert 0.01 <= second[follower]["optim.lr"] <= 0.1
    last = {job.run.number: job.values for job, _ in done[8:]}
    assert {trial.number: trial.values for trial in trials} == last, "what it goes on with"
    for trial in trials:
        assert (
            sweep.folder_of(TrialRun(trial.number, 0)).read_config().optim.lr
            == trial.values["optim.lr"]
        )
        assert trial.objectives == (sweep.measured(TrialRun(trial.number, 0))[-1].robust,)


def test_a_population_that_is_cut_off_anywhere_ends_as_it_would_have(tmp_path):
    whole, cut = (begin(tmp_path / name, PBT, **{"optim.epochs": 2}) for name in ("whole", "cut"))
    expected, trials = work(whole)
    found = []
    for jobs in (1, 3, 2, None):  # within, at the end of, and after a generation
        found += work(cut, jobs)[0]
    assert [job for job, _ in found] == [job for job, _ in expected]
    assert list(cut.study()) == trials
    for run in (TrialRun(number, 0) for number in range(4)):
        one, other = (load_file(sweep.folder_of(run).weights("last")) for sweep in (whole, cut))
        assert same(one, other)
    assert trial_queue_of(cut, cut.study()).over


def test_a_member_that_fails_is_replaced_and_the_last_failures_are_told(tmp_path):
    sweep = begin(tmp_path / "sweep", PBT, **{"optim.epochs": 3})
    done, trials = work(sweep, 5, fails={(2, 1)})
    assert done[2][1] == "failed"
    assert [trial.state for trial in trials] == ["running"] * 4
    assert events(sweep.folder_of(TrialRun(2, 0)).path, "exploited")
    _, trials = work(sweep, fails={(0, None)})
    assert [trial.state for trial in trials] == ["failed", *["finished"] * 3]
    assert trials[0].reason == "failed in generation 3: expected finite losses"


def test_a_population_of_which_all_fail_is_over(tmp_path):
    sweep = begin(tmp_path / "sweep", PBT, **{"optim.epochs": 2})
    done, trials = work(sweep, fails={(number, 1) for number in range(4)})
    assert len(done) == 4
    assert {trial.state for trial in trials} == {"failed"}


def test_runs_of_several_seeds_make_a_trial(tmp_path):
    space = Space(name="lr", description="", parameters={"optim.lr": {"choice": (0.02, 1e30)}})
    how = {"search": "grid"}
    sweep = begin(tmp_path / "sweep", how, space, seeds=(1, 2), **{"optim.epochs": 1})
    done, trials = work(sweep, 1)
    assert trials[0].state == "running"
    more, trials = work(sweep)
    assert [job.run for job, _ in done + more] == [TrialRun(0, 1), TrialRun(0, 2), TrialRun(1, 1)]
    first, second = trials
    robust = [sweep.measured(run)[-1].robust for run in sweep.runs_of(0)]
    assert first.objectives == (pytest.approx(sum(robust) / 2),)
    assert second.state == "failed"
    assert second.reason.startswith("seed 1: expected finite losses")


def test_what_was_validated_and_not_kept_is_done_again(tmp_path):
    """As after a kill between the journal's event and the checkpoint."""
    sweep = begin(tmp_path / "sweep", {**PBT, "trials": 2}, **{"optim.epochs": 2})
    work(sweep, 1)
    folder = sweep.folder_of(TrialRun(0, 0))
    for path in folder.checkpoints.iterdir():
        path.unlink()
    assert sweep.validated(TrialRun(0, 0)).keys() == {1}
    done, trials = work(sweep)
    assert [job.run.number for job, _ in done] == [0, 1, 0, 1]
    assert {trial.state for trial in trials} == {"finished"}


def test_the_last_generation_is_over_with_its_last_word(tmp_path):
    sweep = begin(tmp_path / "sweep", {**PBT, "trials": 2}, **{"optim.epochs": 2})
    work(sweep, 3)
    folder = sweep.folder_of(TrialRun(0, 0))
    whole = folder.journal.read_text().splitlines(keepends=True)
    folder.journal.write_text("".join(line for line in whole if '"finished"' not in line))
    done, trials = work(sweep)
    assert [job.run.number for job, _ in done] == [0, 1]
    assert {trial.state for trial in trials} == {"finished"}
