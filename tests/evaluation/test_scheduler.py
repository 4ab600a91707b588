"""An evaluation can be cut off anywhere, goes on where it was, and ends with the same numbers."""

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
from raymi.evaluation.attack_task import make
from raymi.evaluation.blocks import CLEAN, BlockAttacker, Outcome, Schedule, Step, block_seed
from raymi.evaluation.outcome_store import OutcomeStore
from raymi.evaluation.scheduler import LocalPool, run

THREAT = Threat("linf", 0.1)
ENSEMBLES = (
    *ensembles_of(["pgd-3", "ti-dim"], THREAT, 5),
    Ensemble("pair", (find_attack("fgsm"), find_attack("pgd-2x2"))),
)
QUESTION = {"model": "abc", "threat": {"norm": "linf", "eps": 0.1}}


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
    """Ends the evaluation, as a kill does, before the step of a number."""

    def __init__(self, attacker, die_at=None):
        super().__init__(lambda source: attacker)
        self.made, self.die_at = 0, die_at

    def next(self):
        if self.made == self.die_at:
            raise KeyboardInterrupt
        self.made += 1
        return super().next()


def evaluate(attacker, folder, die_at=None):
    """All outcomes by step, and how many steps were made."""
    pool = Counting(attacker, die_at)
    found = {
        step: outcome for step, outcome, _ in run(schedule(), OutcomeStore(folder, QUESTION), pool)
    }
    return found, pool.made


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
    return evaluate(attacker, tmp_path_factory.mktemp("whole") / "ledger")[0]


def test_each_attack_gets_those_that_withstood_the_ones_before(whole):
    assert len(whole) == num_steps(schedule()) == 3 * (1 + 1 + 2 + 1)
    for step, outcome in whole.items():
        if step.attack == CLEAN:
            expected = torch.arange(10 * step.block, min(23, 10 * step.block + 10))
        elif step.position == 0:
            expected = whole[Step(CLEAN, 0, CLEAN, step.block)].left
        else:
            before = Step(step.ensemble, 0, "fgsm", step.block)
            expected = whole[before].left
        assert torch.equal(outcome.samples, expected)
    broken = {step.attack: int(outcome.broken.sum()) for step, outcome in whole.items()}
    assert max(broken.values()) > 0


@pytest.mark.parametrize("die_at", [0, 1, 4, 9, 14])
def test_cut_off_anywhere_it_goes_on_with_what_is_missing(die_at, attacker, whole, tmp_path):
    folder = tmp_path / "ledger"
    with pytest.raises(KeyboardInterrupt):
        evaluate(attacker, folder, die_at)
    found, made = evaluate(attacker, folder)
    assert made == len(whole) - die_at, "what was recorded is not made again"
    expect_equal(found, whole)
    again, made = evaluate(attacker, folder)
    assert made == 0
    expect_equal(again, whole)


def test_the_order_of_steps_does_not_matter(attacker, whole, tmp_path):
    class LastFirst:
        """A pool that makes the step that was submitted last."""

        workers = 1

        def __init__(self):
            self.waiting = []

        def submit(self, task):
            self.waiting.append(task)

        def next(self):
            return make(self.waiting.pop(), lambda source: attacker)

    found = run(schedule(), OutcomeStore(tmp_path / "ledger", QUESTION), LastFirst())
    expect_equal({step: outcome for step, outcome, _ in found}, whole)


def test_a_damaged_record_is_made_again(attacker, whole, tmp_path):
    folder = tmp_path / "ledger"
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


def test_a_record_of_other_samples_is_not_used(attacker, whole, tmp_path):
    """As after a damaged record before it, when another machine rounds otherwise."""
    store = OutcomeStore(tmp_path / "ledger", QUESTION)
    step = Step("pgd-3", 0, "pgd-3", 1)
    store.record(step, attacker.perform(step, torch.tensor([10, 11]))[0])
    expect_equal(evaluate(attacker, tmp_path / "ledger")[0], whole)


def test_two_questions_never_share_a_ledger(tmp_path):
    OutcomeStore(tmp_path / "ledger", QUESTION)
    OutcomeStore(tmp_path / "ledger", json.loads(json.dumps(QUESTION)))
    other = {"model": "abd", "threat": {"norm": "linf", "eps": 0.1}}
    with pytest.raises(UserError, match=r'model: there "abc", now "abd"'):
        OutcomeStore(tmp_path / "ledger", other)
    with pytest.raises(UserError, match=r"threat.eps: there 0.1, now nothing"):
        OutcomeStore(tmp_path / "ledger", {"model": "abc", "threat": {"norm": "linf"}})
    for more in ({"extra": None}, {"extra": {}}):
        with pytest.raises(UserError, match=r"extra: there nothing, now (null|\{\})"):
            OutcomeStore(tmp_path / "ledger", QUESTION | more)
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(UserError, match="is no ledger"):
        OutcomeStore(tmp_path, QUESTION)


def test_attacks_may_be_added_to_a_ledger_and_never_changed(tmp_path):
    OutcomeStore(tmp_path, QUESTION, {"pgd-3": {"steps": 3}})
    OutcomeStore(tmp_path, QUESTION, {"fgsm": {"steps": 1}})
    OutcomeStore(tmp_path, QUESTION, {"fgsm": {"steps": 1}, "pgd-3": {"steps": 3}})
    with pytest.raises(UserError, match=r"pgd-3.steps: there 3, now 4"):
        OutcomeStore(tmp_path, QUESTION, {"pgd-3": {"steps": 4}})


def test_adversarial_samples_are_kept_where_they_are_asked_for(attacker, whole, tmp_path):
    def made(keep):
        pool, store = Counting(attacker), OutcomeStore(tmp_path / "ledger", QUESTION)
        list(run(schedule(), store, pool, keep=keep))
        return store, pool.made

    made(lambda step: False)
    store, again = made(lambda step: step.attack == "pgd-3")
    assert again == 3, "what was not kept is made again"
    samples, x_adv = store.adversarial(Step("pgd-3", 0, "pgd-3", 1))
    outcome = whole[Step("pgd-3", 0, "pgd-3", 1)]
    assert torch.equal(samples, outcome.samples)
    x = attacker.images.images[samples] / 255
    torch.testing.assert_close((x_adv - x).abs().amax((1, 2, 3)), outcome.linf)
    assert store.adversarial(Step("ti-dim", 0, "ti-dim", 1)) is None
    assert made(lambda step: step.attack == "pgd-3")[1] == 0


def test_an_ensemble_can_take_everyone_and_few_blocks(attacker):
    (ensemble,) = ensembles_of(["pgd-3"], THREAT, 5)
    plan = Schedule(23, 10, [replace(ensemble, everyone=True, most=11)])
    assert num_steps(plan) == 3 + 2
    for step, samples in plan.first():
        outcome, _ = attacker.perform(step, samples)
        after = list(plan.after(step, outcome))
        assert len(after) == (step.block in (0, 1))
        assert all(torch.equal(samples, given) for _, given in after)


def test_samples_made_on_another_classifier_are_only_judged(attacker, images):
    step, samples = Step("pgd-3", 0, "pgd-3", 0), torch.arange(10)
    own, x_adv = attacker.perform(step, samples)
    given, same = attacker.perform(step, samples, x_adv)
    assert torch.equal(same, x_adv)
    assert torch.equal(own.predictions, given.predictions)
    far, _ = attacker.perform(step, samples, 1 - images.images[:10] / 255)
    assert not far.broken.any(), "what is outside of the threat does not count"


def test_a_ledger_that_was_killed_at_its_first_write_is_begun(tmp_path):
    (tmp_path / ".question.json.4711.tmp").write_text("{")
    OutcomeStore(tmp_path, QUESTION)
    (tmp_path / "question.json").write_text('{"model": ')
    with pytest.raises(UserError, match="is damaged, so nobody knows"):
        OutcomeStore(tmp_path, QUESTION)


def test_one_process_at_a_time_has_a_ledger(tmp_path):
    with OutcomeStore(tmp_path, QUESTION).lock():
        with pytest.raises(UserError, match="is running in another process"):
            with OutcomeStore(tmp_path, QUESTION).lock():
                pass
    with OutcomeStore(tmp_path, QUESTION).lock():
        pass


class Noisy(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x + 0.5 * torch.randn_like(x))


def test_a_network_that_draws_random_numbers_has_results_of_its_own_too(attacker, images):
    noisy = BlockAttacker(Noisy(attacker.model), images, ENSEMBLES, THREAT, seed=3)
    for step in (Step(CLEAN, 0, CLEAN, 1), Step("pgd-3", 0, "pgd-3", 1)):
        found = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            found.append(noisy.perform(step, torch.arange(10, 20))[0].predictions)
        assert torch.equal(*found)


def test_storage_that_refuses_is_one_error(attacker, tmp_path):
    store = OutcomeStore(tmp_path / "ledger", QUESTION)
    (tmp_path / "ledger" / CLEAN).write_text("in the way")
    step = Step(CLEAN, 0, CLEAN, 0)
    outcome, _ = attacker.perform(step, torch.arange(10))
    with pytest.raises(StorageError, match="what was recorded is kept"):
        store.record(step, outcome)


def test_the_export_has_a_row_for_each_sample_of_each_step(whole, tmp_path):
    store = OutcomeStore(tmp_path / "ledger", QUESTION)
    for step, outcome in whole.items():
        store.record(step, outcome)
    store.export(tmp_path / "all.parquet")
    table = pq.read_table(tmp_path / "all.parquet")
    assert table.num_rows == sum(len(outcome.samples) for outcome in whole.values())
    rows = table.to_pylist()
    assert {row["sample"] for row in rows if row["attack"] == CLEAN} == set(range(23))
    assert all(row["linf"] <= 0.1 + 1e-6 for row in rows if row["broken"])
    assert all(row["broken"] == (row["prediction"] != row["label"]) for row in rows)


def test_seeds_of_blocks_are_their_own():
    seeds = [block_seed(seed, block) for seed in (0, 1) for block in range(100)]
    assert len(set(seeds)) == 200
    assert all(0 <= seed < 2**31 for seed in seeds)
