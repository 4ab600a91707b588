"""An interrupted evaluation continues and returns the same numbers; laws of the outcome store."""

from __future__ import annotations

import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from raymi.attacks.catalogue import Threat
from raymi.attacks.suites import Ensemble, ensembles_of, find_attack
from raymi.data import ImageSet
from raymi.errors import StorageError, UserError
from raymi.evaluation.attack_task import run_task
from raymi.evaluation.blocks import CLEAN, BlockAttacker, Outcome, Schedule, Step, block_seed
from raymi.evaluation.outcome_store import OutcomeStore
from raymi.evaluation.scheduler import LocalPool, run_schedule

THREAT = Threat("linf", 0.1)
ENSEMBLES = (
    *ensembles_of(["pgd-3", "ti-dim"], THREAT, 5),
    Ensemble("pair", (find_attack("fgsm"), find_attack("pgd-2x2"))),
)
PROTOCOL = {"model": "abc", "threat": {"norm": "linf", "eps": 0.1}}


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (23, 3, 12, 12), dtype=torch.uint8)
    return ImageSet(pixels, torch.randint(0, 5, (23,)), tuple("abcde"))


@pytest.fixture(scope="module")
def attacker(images):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 5))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images.images / 255), images.labels).backward()
        optimizer.step()
    return BlockAttacker(model, images, ENSEMBLES, THREAT, seed=3)


def schedule():
    return Schedule(23, 10, ENSEMBLES)


def num_steps(schedule):
    return sum(schedule.steps_by_attack().values())


class Counting(LocalPool):
    """Counts steps; stops the evaluation before step `die_at`."""

    def __init__(self, attacker, die_at=None):
        super().__init__(lambda source: attacker)
        self.num_steps, self.die_at = 0, die_at

    def next(self):
        if self.num_steps == self.die_at:
            raise KeyboardInterrupt
        self.num_steps += 1
        return super().next()


def evaluate(attacker, folder, die_at=None):
    """Returns outcomes by step, and the number of steps that ran."""
    pool = Counting(attacker, die_at)
    found = {
        step: outcome
        for step, outcome, _ in run_schedule(schedule(), OutcomeStore(folder, PROTOCOL), pool)
    }
    return found, pool.num_steps


def expect_equal(one: dict[Step, Outcome], other: dict[Step, Outcome]):
    assert one.keys() == other.keys()
    for step, outcome in one.items():
        for name in (
            "samples",
            "places",
            "labels",
            "predictions",
            "broken",
            "usable",
            "linf",
            "l2",
        ):
            assert torch.equal(getattr(outcome, name), getattr(other[step], name)), (step, name)


@pytest.fixture(scope="module")
def whole(attacker, tmp_path_factory):
    return evaluate(attacker, tmp_path_factory.mktemp("whole") / "store")[0]


def test_each_attack_gets_the_samples_that_earlier_attacks_did_not_break(whole):
    assert len(whole) == num_steps(schedule()) == 3 * (1 + 1 + 2 + 1)
    for step, outcome in whole.items():
        if step.attack == CLEAN:
            expected = torch.arange(10 * step.block, min(23, 10 * step.block + 10))
        elif step.position == 0:
            expected = whole[Step(CLEAN, 0, CLEAN, step.block)].unbroken
        else:
            before = Step(step.ensemble, 0, "fgsm", step.block)
            expected = whole[before].unbroken
        assert torch.equal(outcome.samples, expected)
    broken = {step.attack: int(outcome.broken.sum()) for step, outcome in whole.items()}
    assert max(broken.values()) > 0


@pytest.mark.parametrize("die_at", [0, 1, 4, 9, 14])
def test_an_interrupted_evaluation_runs_only_missing_steps(die_at, attacker, whole, tmp_path):
    folder = tmp_path / "store"
    with pytest.raises(KeyboardInterrupt):
        evaluate(attacker, folder, die_at)
    found, made = evaluate(attacker, folder)
    assert made == len(whole) - die_at, "recorded steps do not run again"
    expect_equal(found, whole)
    again, made = evaluate(attacker, folder)
    assert made == 0
    expect_equal(again, whole)


def test_outcomes_do_not_depend_on_the_order_of_steps(attacker, whole, tmp_path):
    class LastFirst:
        """Pool that runs the latest task first."""

        workers = 1

        def __init__(self):
            self.waiting = []

        def submit(self, task):
            self.waiting.append(task)

        def next(self):
            return run_task(self.waiting.pop(), lambda source: attacker)

    found = run_schedule(schedule(), OutcomeStore(tmp_path / "store", PROTOCOL), LastFirst())
    expect_equal({step: outcome for step, outcome, _ in found}, whole)


def test_a_step_with_a_damaged_file_runs_again(attacker, whole, tmp_path):
    folder = tmp_path / "store"
    evaluate(attacker, folder)
    flipped, cut = sorted(folder.rglob("*.parquet"))[3:5]
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:20])
    with pytest.warns(UserWarning, match="is damaged: the block is attacked again"):
        found, made = evaluate(attacker, folder)
    assert made == 2
    expect_equal(found, whole)


def test_an_outcome_of_other_samples_is_not_used(attacker, whole, tmp_path):
    """Such as after an earlier step ran again on a machine that rounds otherwise."""
    store = OutcomeStore(tmp_path / "store", PROTOCOL)
    step = Step("pgd-3", 0, "pgd-3", 1)
    store.save_outcome(step, attacker.run(step, torch.tensor([10, 11]))[0])
    expect_equal(evaluate(attacker, tmp_path / "store")[0], whole)


def test_two_protocols_never_share_a_store(tmp_path):
    OutcomeStore(tmp_path / "store", PROTOCOL)
    OutcomeStore(tmp_path / "store", json.loads(json.dumps(PROTOCOL)))
    other = {"model": "abd", "threat": {"norm": "linf", "eps": 0.1}}
    with pytest.raises(UserError, match=r'model: there "abc", now "abd"'):
        OutcomeStore(tmp_path / "store", other)
    with pytest.raises(UserError, match=r"threat.eps: there 0.1, now nothing"):
        OutcomeStore(tmp_path / "store", {"model": "abc", "threat": {"norm": "linf"}})
    for more in ({"extra": None}, {"extra": {}}):
        with pytest.raises(UserError, match=r"extra: there nothing, now (null|\{\})"):
            OutcomeStore(tmp_path / "store", PROTOCOL | more)
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(UserError, match="is not an outcome store"):
        OutcomeStore(tmp_path, PROTOCOL)


def test_attacks_can_be_added_to_a_store_but_not_changed(tmp_path):
    OutcomeStore(tmp_path, PROTOCOL, {"pgd-3": {"steps": 3}})
    OutcomeStore(tmp_path, PROTOCOL, {"fgsm": {"steps": 1}})
    OutcomeStore(tmp_path, PROTOCOL, {"fgsm": {"steps": 1}, "pgd-3": {"steps": 3}})
    with pytest.raises(UserError, match=r"pgd-3.steps: there 3, now 4"):
        OutcomeStore(tmp_path, PROTOCOL, {"pgd-3": {"steps": 4}})


def test_requested_adversarial_samples_are_saved(attacker, whole, tmp_path):
    def made(keep):
        pool, store = Counting(attacker), OutcomeStore(tmp_path / "store", PROTOCOL)
        list(run_schedule(schedule(), store, pool, keep=keep))
        return store, pool.num_steps

    made(lambda step: False)
    store, again = made(lambda step: step.attack == "pgd-3")
    assert again == 3, "steps without saved samples run again"
    samples, x_adv = store.load_x_adv(Step("pgd-3", 0, "pgd-3", 1))
    outcome = whole[Step("pgd-3", 0, "pgd-3", 1)]
    assert torch.equal(samples, outcome.samples)
    x = attacker.images.images[samples] / 255
    torch.testing.assert_close((x_adv - x).abs().amax((1, 2, 3)), outcome.linf)
    assert store.load_x_adv(Step("ti-dim", 0, "ti-dim", 1)) is None
    assert made(lambda step: step.attack == "pgd-3")[1] == 0


def test_an_ensemble_can_attack_all_samples_of_few_blocks(attacker):
    (ensemble,) = ensembles_of(["pgd-3"], THREAT, 5)
    plan = Schedule(23, 10, [replace(ensemble, everyone=True, most=11)])
    assert num_steps(plan) == 3 + 2
    for step, samples in plan.first():
        outcome, _ = attacker.run(step, samples)
        after = list(plan.after(step, outcome))
        assert len(after) == (step.block in (0, 1))
        assert all(torch.equal(samples, given) for _, given in after)


def test_samples_of_another_classifier_are_only_classified(attacker, images):
    step, samples = Step("pgd-3", 0, "pgd-3", 0), torch.arange(10)
    own, x_adv = attacker.run(step, samples)
    given, same = attacker.run(step, samples, x_adv)
    assert torch.equal(same, x_adv)
    assert torch.equal(own.predictions, given.predictions)
    far, _ = attacker.run(step, samples, 1 - images.images[:10] / 255)
    assert not far.broken.any(), "images outside of the threat do not count"


def test_a_store_killed_at_its_first_write_starts_again(tmp_path):
    (tmp_path / ".question.json.4711.tmp").write_text("{")
    OutcomeStore(tmp_path, PROTOCOL)
    (tmp_path / "question.json").write_text('{"model": ')
    with pytest.raises(UserError, match=r"is damaged .*of an unknown protocol"):
        OutcomeStore(tmp_path, PROTOCOL)


def test_a_second_process_cannot_lock_a_store(tmp_path):
    with OutcomeStore(tmp_path, PROTOCOL).lock():
        with pytest.raises(UserError, match="is running in another process"):
            with OutcomeStore(tmp_path, PROTOCOL).lock():
                pass
    with OutcomeStore(tmp_path, PROTOCOL).lock():
        pass


class Noisy(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x + 0.5 * torch.randn_like(x))


def test_random_networks_have_reproducible_outcomes(attacker, images):
    noisy = BlockAttacker(Noisy(attacker.model), images, ENSEMBLES, THREAT, seed=3)
    for step in (Step(CLEAN, 0, CLEAN, 1), Step("pgd-3", 0, "pgd-3", 1)):
        found = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            found.append(noisy.run(step, torch.arange(10, 20))[0].predictions)
        assert torch.equal(*found)


def test_a_file_that_cannot_be_written_is_a_storage_error(attacker, tmp_path):
    store = OutcomeStore(tmp_path / "store", PROTOCOL)
    (tmp_path / "store" / CLEAN).write_text("in the way")
    step = Step(CLEAN, 0, CLEAN, 0)
    outcome, _ = attacker.run(step, torch.arange(10))
    with pytest.raises(StorageError, match="recorded outcomes are safe"):
        store.save_outcome(step, outcome)


def test_the_export_has_a_row_for_each_sample_of_each_step(whole, tmp_path):
    store = OutcomeStore(tmp_path / "store", PROTOCOL)
    for step, outcome in whole.items():
        store.save_outcome(step, outcome)
    store.export(tmp_path / "all.parquet")
    table = pq.read_table(tmp_path / "all.parquet")
    assert table.num_rows == sum(len(outcome.samples) for outcome in whole.values())
    rows = table.to_pylist()
    assert {row["sample"] for row in rows if row["attack"] == CLEAN} == set(range(23))
    assert all(row["linf"] <= 0.1 + 1e-6 for row in rows if row["broken"])
    assert all(row["broken"] == (row["prediction"] != row["label"]) for row in rows)


def test_each_block_has_its_own_seed():
    seeds = [block_seed(seed, block) for seed in (0, 1) for block in range(100)]
    assert len(set(seeds)) == 200
    assert all(0 <= seed < 2**31 for seed in seeds)
