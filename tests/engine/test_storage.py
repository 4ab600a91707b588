"""A full disk or a folder that is gone ends every worker at the same point, and costs no more than
the work since the last checkpoint."""

from __future__ import annotations

import os
import resource

import pytest
from full_disk import files_of_at_most
from gloo import run_ranks
from safetensors.torch import load_file
from tiny_runs import tiny_config, tiny_run

from raymi.engine.context import LocalContext
from raymi.engine.loop import train
from raymi.errors import StorageError
from raymi.runs.checkpoint import load_checkpoint
from raymi.runs.journal import Journal, JournalReader
from raymi.runs.run_folder import RunFolder

SETTINGS = {"mi.weight": 0}


class Happening(LocalContext):
    """Something happens to rank 0's storage at a step (5 an epoch), or once an epoch is saved."""

    def __init__(self, action, step=None, epoch=None):
        super().__init__("cpu")
        self.action, self.step, self.epoch, self.asked = action, step, epoch, 0

    def stop_requested(self):
        self._happen(self.asked == self.step)
        self.asked += 1
        return super().stop_requested()

    def report(self, metrics):
        self._happen(metrics["epoch"] == self.epoch)

    def _happen(self, now):
        if now and self.group.rank == 0:
            self.action()


def run_on_a_disk_that_fills_up(rank, world_size, folder, num_bytes, when):
    """What each worker says."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))

    try:
        train(tiny_config(SETTINGS), Happening(fill, **when), RunFolder(folder))
    except StorageError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return "finished"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of two workers."""
    folder = tmp_path_factory.mktemp("whole")
    run_ranks(tiny_run, 2, folder / "run", SETTINGS, [], tmp_path=folder)
    return folder / "run"


CASES = {
    "checkpoint": (20_000, {"step": 8}, "cannot write the checkpoint of step 10 to", 5),
    "journal": (100, {"step": 8}, "cannot write the journal to", 5),
    "weights": (100, {"epoch": 2}, "cannot write weights to", 10),
}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=[] if name == "checkpoint" else pytest.mark.exhaustive)
        for name, case in CASES.items()
    ],
)
def test_a_full_disk_ends_all_workers_with_one_message_and_loses_no_checkpoint(
    case, whole, tmp_path
):
    num_bytes, when, message, newest = case
    folder = tmp_path / "run"
    told = run_ranks(run_on_a_disk_that_fills_up, 2, folder, num_bytes, when, tmp_path=tmp_path)
    assert told[0].startswith(message)
    assert str(folder) in told[0]
    assert "(File too large)" in told[0], "the system's own reason"
    assert f"the newest intact one is of step {newest}: the work since then is lost" in told[0]
    assert "Free space there, then continue the run" in told[0]
    assert told[1].startswith("rank 0 could not write ")
    assert load_checkpoint(folder / "checkpoints")["position"]["global_step"] == newest
    run_ranks(tiny_run, 2, folder, SETTINGS, [], tmp_path=tmp_path)
    expect_same_end(whole, folder)


def expect_same_end(whole, folder):
    """Both runs recorded the same and ended with the same bits; an epoch may be recorded twice."""
    for which in ("best", "last"):
        one, other = (load_file(RunFolder(path).weights(which)) for path in (whole, folder))
        assert one.keys() == other.keys()
        assert all(one[name].equal(other[name]) for name in one)
    one, other = ({e["epoch"]: e["val"] for e in events(path, "epoch")} for path in (whole, folder))
    assert one == other


def events(folder, kind):
    journal = JournalReader(RunFolder(folder).journal)
    return [event for event in journal.new_events() if event["kind"] == kind]


def run_whose_folder_is_moved_away(rank, world_size, folder):
    def move():
        os.rename(folder, f"{folder}-away")

    try:
        train(tiny_config(SETTINGS), Happening(move, step=8), RunFolder(folder))
    except StorageError as error:
        return str(error)
    return "finished"


def test_a_folder_that_is_gone_is_not_made_anew(whole, tmp_path):
    folder = tmp_path / "run"
    told = run_ranks(run_whose_folder_is_moved_away, 2, folder, tmp_path=tmp_path)
    assert "the run's folder is not there any more. Bring its storage back" in told[0]
    assert not folder.exists()
    os.rename(f"{folder}-away", folder)
    run_ranks(tiny_run, 2, folder, SETTINGS, [], tmp_path=tmp_path)
    expect_same_end(whole, folder)


def test_what_a_full_disk_did_not_take_of_the_journal_comes_later(tmp_path):
    journal, reader = Journal(tmp_path / "j"), JournalReader(tmp_path / "j")
    with files_of_at_most(100):
        for number in range(4):
            journal.write("n", number=number)
        with pytest.raises(OSError, match="File too large"):
            journal.flush()
    assert [event["number"] for event in reader.new_events()] in ([0], [0, 1])
    journal.write("n", number=4)
    journal.flush()
    journal.close()
    numbers = [event["number"] for event in JournalReader(tmp_path / "j").new_events()]
    assert numbers == [0, 1, 2, 3, 4]
