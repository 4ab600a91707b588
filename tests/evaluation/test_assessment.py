"""From a classifier to its report: what is counted, compared, transferred and used again."""

from __future__ import annotations

import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from raymi.attacks.catalogue import Batch, Threat, find_attack, predicted, run_attack
from raymi.attacks.suites import ensembles_of
from raymi.data import ImageSet
from raymi.data.augment import to_unit
from raymi.evaluation.assessment import Assessment, Settings
from raymi.evaluation.blocks import block_seed
from raymi.evaluation.checks import check_ensembles, examine_outputs
from raymi.evaluation.report import differences, transfer_matrix
from raymi.evaluation.run import InThisProcess
from raymi.evaluation.transfer import crafting, lookup, transfer_name, transferred
from raymi.evaluation.work import Attackers, Work

THREAT = Threat("linf", 0.06)
NUM = 50


class Net:
    """What a `Subject` is to a worker: loads a network."""

    def __init__(self, seed, images):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4))
        optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        for _ in range(40):
            optimizer.zero_grad()
            logits = self.model(to_unit(images.images))
            nn.functional.cross_entropy(logits, images.labels).backward()
            optimizer.step()

    def load(self):
        return self.model


@pytest.fixture(scope="module")
def images():
    """Four kinds of blurred spots, and noise."""
    torch.manual_seed(0)
    labels = torch.arange(NUM) % 4
    pixels = torch.randint(0, 200, (NUM, 3, 8, 8))
    for sample, label in enumerate(labels.tolist()):
        row, column = divmod(label, 2)
        pixels[sample, :, 4 * row : 4 * row + 3, 4 * column : 4 * column + 3] += 50
    return ImageSet(pixels.to(torch.uint8), labels, tuple("abcd"))


@pytest.fixture(scope="module")
def nets(images):
    return {"a": Net(1, images), "b": Net(2, images)}


def settings(images, folder, block=20):
    return Settings(images, "spots-test", THREAT, 5, block, "cpu", folder)


def pool_of(nets, *assessments):
    common = assessments[0].settings
    ensembles = {one.name: () for one in assessments}
    for one in assessments:
        ensembles[one.name] += one.ensembles
    work = Work(nets, common.images, ensembles, THREAT, common.seed)
    return InThisProcess(Attackers(work))


def made(nets, assessment, *others, made_before=None):
    """The report of an assessment, and how many steps had to be made."""
    pool = pool_of(nets, assessment, *others)
    steps = list(assessment.run(pool, made_before or lookup({})))
    return assessment.report(), sum(not known for _, _, known in steps)


def main_of(*names):
    return ensembles_of(names, THREAT, 4)


def test_a_report_counts_what_the_attacks_did(images, nets, tmp_path):
    checks = check_ensembles(30)
    one = Assessment(settings(images, tmp_path), "a", "digest-a", main_of("pgd-5"), checks)
    report, _ = made(nets, one)
    clean, pgd = report.results
    model, x = nets["a"].load(), to_unit(images.images)
    right = predicted(model, x) == images.labels
    assert (clean.right, clean.num) == (int(right.sum()), NUM)
    expected = right.clone()
    for block, first in enumerate(range(0, NUM, 20)):
        index = torch.arange(first, min(first + 20, NUM))[right[first : first + 20]]
        batch = Batch(x[index], images.labels[index], index, block_seed(5, block))
        found = run_attack(find_attack("pgd-5"), model, batch, THREAT)
        expected[index] = ~found.broken
    assert torch.equal(report.withstand["pgd-5"], expected)
    assert 0 < pgd.right == int(expected.sum()) < clean.right, "or this shows little"
    assert len(report.findings) == 3, "outputs were not examined here"
    content = json.loads(json.dumps(report.as_json()))
    assert content["results"][1]["accuracy"] == pgd.right / NUM
    rows = pq.read_table(one.export()).to_pylist()
    assert sum(row["attack"] == "clean" for row in rows) == NUM


def test_checks_are_judged_once_they_are_complete(images, nets, tmp_path):
    checks = check_ensembles(30)
    outputs = tuple(examine_outputs(nets["a"].load(), to_unit(images.images), images.labels))
    one = Assessment(
        settings(images, tmp_path), "a", "digest-a", main_of("pgd-20"), checks, outputs
    )
    assert one.check_findings() == ()
    first = None
    for step, _, _ in one.run(pool_of(nets, one), lookup({})):
        if first is None and one.check_findings():
            first = step
    assert first is not None
    report = one.report()
    assert [f.check for f in report.findings[:3]] == [f.check for f in outputs]
    assert report.findings[3:] == one.check_findings()
    assert all(step.block < 2 for step in one._outcomes if step.attack == "square-1000")
    assert {step.block for step in one._outcomes if step.attack == "pgd-20"} == {0, 1, 2}, (
        "what is reported is made on all blocks, though a check needs fewer"
    )


def test_a_suite_that_grows_goes_on_with_what_is_there(images, nets, tmp_path):
    common = settings(images, tmp_path)
    _, first = made(nets, Assessment(common, "a", "digest-a", main_of("pgd-2")))
    larger = Assessment(common, "a", "digest-a", main_of("pgd-2", "fgsm"))
    report, more = made(nets, larger)
    assert (first, more) == (6, 3)
    renamed = Assessment(common, "other", "digest-a", main_of("pgd-2", "fgsm"))
    again, none = made(nets, renamed)
    assert none == 0, "the same network under another name"
    assert again.folder == report.folder
    assert again.results == report.results
    _, all_of_them = made(nets, Assessment(common, "b", "digest-b", main_of("pgd-2")))
    assert all_of_them == 6, "another network"
    two = replace(common, seed=6)
    assert made(nets, Assessment(two, "a", "digest-a", main_of("pgd-2")))[1] == 6


def test_two_networks_are_compared_on_the_same_samples(images, nets, tmp_path):
    common = settings(images, tmp_path)
    reports = [
        made(nets, Assessment(common, name, f"digest-{name}", main_of("pgd-5")))[0]
        for name in ("a", "b")
    ]
    clean, pgd = differences(reports)
    assert (clean.attack, pgd.attack) == ("clean", "pgd-5")
    first, second = (report.withstand["pgd-5"] for report in reports)
    assert pgd.found.only_first == int((first & ~second).sum())
    assert pgd.as_json()["difference"] == pytest.approx(
        reports[0].results[1].accuracy - reports[1].results[1].accuracy
    )


def test_targets_are_judged_by_the_samples_of_a_surrogate(images, nets, tmp_path):
    common = settings(images, tmp_path)
    maker = Assessment(common, "a", "digest-a", (crafting("pgd-5"),))
    target = Assessment(
        common,
        "b",
        "digest-b",
        (*main_of("pgd-5"), transferred("pgd-5", "a", "digest-a")),
        surrogates=("a",),
    )
    itself = Assessment(common, "a", "digest-a", main_of("pgd-5"))
    list(maker.run(pool_of(nets, maker, target), lookup({})))
    found = lookup({transfer_name("pgd-5", "a"): (maker.ledger, "pgd-5")})
    report, _ = made(nets, target, made_before=found)
    source, model, x = nets["a"].load(), nets["b"].load(), to_unit(images.images)
    right = predicted(model, x) == images.labels
    for block, first in enumerate(range(0, NUM, 20)):
        index = torch.arange(first, min(first + 20, NUM))
        batch = Batch(x[index], images.labels[index], index, block_seed(5, block))
        x_adv = run_attack(find_attack("pgd-5"), source, batch, THREAT).x_adv
        right[index] &= predicted(model, x_adv) == images.labels[index]
    name = transfer_name("pgd-5", "a")
    assert torch.equal(report.withstand[name], right)
    clean, white, black = report.results
    assert white.right < black.right < clean.right, "or this shows little"
    assert "transfer stronger than white box" in {finding.check for finding in report.findings}
    assert not report.suspicions
    own, _ = made(nets, itself)
    rows = dict(transfer_matrix([own, report], "pgd-5", ["a"]))
    assert rows["a"] == [own.results[1], black]
    assert rows["itself (white box)"] == [own.results[1], white]


def test_all_adversarial_samples_can_be_kept(images, nets, tmp_path):
    one = Assessment(settings(images, tmp_path), "a", "digest-a", main_of("pgd-2"), keep=True)
    _, steps = made(nets, one)
    kept = [one.ledger.adversarial(step) for step in one._outcomes if step.attack == "pgd-2"]
    assert all(x_adv.shape == (len(samples), 3, 8, 8) for samples, x_adv in kept)
    assert steps == 6
    assert made(nets, replace(one, keep=True))[1] == 0
