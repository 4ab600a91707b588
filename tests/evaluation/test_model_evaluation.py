"""Evaluations of classifiers: counts, comparisons, transfer, and reuse of saved outcomes."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from torch import nn

from raymi.attacks.catalogue import EvaluationAttack, Threat, find_attack
from raymi.attacks.execution import Batch, predicted, run_attack
from raymi.attacks.suites import Ensemble, ensembles_of
from raymi.data import ImageSet
from raymi.data.augment import to_unit
from raymi.errors import UserError
from raymi.evaluation.attack_checks import check_ensembles
from raymi.evaluation.attack_task import AttackTask
from raymi.evaluation.blocks import Step, block_seed
from raymi.evaluation.model_evaluation import ModelEvaluation, Settings
from raymi.evaluation.report import differences, transfer_matrix
from raymi.evaluation.scheduler import LocalPool
from raymi.evaluation.static_checks import run_static_checks
from raymi.evaluation.transfer import (
    surrogate_ensemble,
    transfer_ensemble,
    transfer_lookup,
    transfer_name,
)
from raymi.evaluation.worker_job import Attackers, WorkerJob

THREAT = Threat("linf", 0.06)
NUM = 50


class Net:
    """Stand-in for a `ModelSource`."""

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
    return Settings(images, "spots-test", THREAT, 5, block, "cpu", 1, folder)


def pool_of(nets, *evaluations):
    common = evaluations[0].settings
    ensembles = {one.name: () for one in evaluations}
    for one in evaluations:
        ensembles[one.name] += one.ensembles
    job = WorkerJob(nets, common.images, ensembles, THREAT, common.seed)
    return LocalPool(Attackers(job))


def run(nets, evaluation, *others, lookup=None):
    """Returns the report of an evaluation and the number of steps that ran."""
    pool = pool_of(nets, evaluation, *others)
    steps = list(evaluation.run(pool, lookup or transfer_lookup({})))
    return evaluation.report(), sum(not cached for _, _, cached in steps)


def main_of(*names):
    return ensembles_of(names, THREAT, 4)


def test_a_report_counts_the_outcomes_of_the_attacks(images, nets, tmp_path):
    checks = check_ensembles(30, 4)
    one = ModelEvaluation(settings(images, tmp_path), "a", "digest-a", main_of("pgd-5"), checks)
    report, _ = run(nets, one)
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
    assert torch.equal(report.robust["pgd-5"], expected)
    assert 0 < pgd.right == int(expected.sum()) < clean.right, "otherwise the test shows little"
    assert len(report.findings) == 4, "no static checks here"
    content = json.loads(json.dumps(report.as_json()))
    assert content["results"][1]["accuracy"] == pgd.right / NUM
    rows = pq.read_table(one.export()).to_pylist()
    assert sum(row["attack"] == "clean" for row in rows) == NUM


def test_findings_come_once_all_steps_of_the_checks_have_run(images, nets, tmp_path):
    checks = check_ensembles(30, 4)
    outputs = run_static_checks(nets["a"].load(), to_unit(images.images), images.labels).findings
    one = ModelEvaluation(
        settings(images, tmp_path), "a", "digest-a", main_of("pgd-20"), checks, outputs
    )
    assert one.check_findings() == ()
    first, steps = None, []
    for step, _, _ in one.run(pool_of(nets, one), transfer_lookup({})):
        steps.append(step)
        if first is None and one.check_findings():
            first = step
    assert first is not None
    report = one.report()
    assert report.findings == (*outputs, *one.check_findings())
    assert {step.block for step in steps if step.attack == "square-1000"} == {0, 1}
    assert {step.block for step in steps if step.attack == "pgd-20"} == {0, 1, 2}, (
        "a reported attack runs on all blocks, though its check needs fewer"
    )


def test_a_larger_suite_reuses_saved_outcomes(images, nets, tmp_path):
    common = settings(images, tmp_path)
    _, first = run(nets, ModelEvaluation(common, "a", "digest-a", main_of("pgd-2")))
    larger = ModelEvaluation(common, "a", "digest-a", main_of("pgd-2", "fgsm"))
    report, more = run(nets, larger)
    assert (first, more) == (6, 3)
    renamed = ModelEvaluation(common, "other", "digest-a", main_of("pgd-2", "fgsm"))
    again, none = run(nets, renamed)
    assert none == 0, "the same network under another name"
    assert again.folder == report.folder
    assert [r.right for r in again.results] == [r.right for r in report.results]
    _, steps = run(nets, ModelEvaluation(common, "b", "digest-b", main_of("pgd-2")))
    assert steps == 6, "another network"
    two = replace(common, seed=6)
    assert run(nets, ModelEvaluation(two, "a", "digest-a", main_of("pgd-2")))[1] == 6


def test_two_networks_are_compared_on_the_same_samples(images, nets, tmp_path):
    common = settings(images, tmp_path)
    reports = [
        run(nets, ModelEvaluation(common, name, f"digest-{name}", main_of("pgd-5")))[0]
        for name in ("a", "b")
    ]
    clean, pgd = differences(reports)
    assert (clean.attack, pgd.attack) == ("clean", "pgd-5")
    first, second = (report.robust["pgd-5"] for report in reports)
    assert pgd.pairs.only_first == int((first & ~second).sum())
    assert pgd.as_json()["difference"] == pytest.approx(
        reports[0].results[1].accuracy - reports[1].results[1].accuracy
    )


def test_targets_are_attacked_with_the_samples_of_a_surrogate(images, nets, tmp_path):
    common = settings(images, tmp_path)
    surrogate = ModelEvaluation(common, "a", "digest-a", (surrogate_ensemble("pgd-5"),))
    target = ModelEvaluation(
        common,
        "b",
        "digest-b",
        (*main_of("pgd-5"), transfer_ensemble("pgd-5", "a", surrogate.store.identity)),
        transfer={transfer_name("pgd-5", "a", surrogate.store.identity): ("pgd-5", "a")},
    )
    itself = ModelEvaluation(common, "a", "digest-a", main_of("pgd-5"))
    list(surrogate.run(pool_of(nets, surrogate, target), transfer_lookup({})))
    found = transfer_lookup(
        {transfer_name("pgd-5", "a", surrogate.store.identity): (surrogate.store, "pgd-5")}
    )
    report, _ = run(nets, target, lookup=found)
    source, model, x = nets["a"].load(), nets["b"].load(), to_unit(images.images)
    right = predicted(model, x) == images.labels
    for block, first in enumerate(range(0, NUM, 20)):
        index = torch.arange(first, min(first + 20, NUM))
        batch = Batch(x[index], images.labels[index], index, block_seed(5, block))
        x_adv = run_attack(find_attack("pgd-5"), source, batch, THREAT).x_adv
        right[index] &= predicted(model, x_adv) == images.labels[index]
    name = transfer_name("pgd-5", "a", surrogate.store.identity)
    assert torch.equal(report.robust[name], right)
    clean, white, black = report.results
    assert white.right < black.right < clean.right, "otherwise the test shows little"
    assert "transfer from a stronger than white box" in {
        finding.check for finding in report.findings
    }
    assert not report.suspicions
    own, _ = run(nets, itself)
    matrix = transfer_matrix([own, report], "pgd-5", {"a": name})
    assert matrix.clean == (own.results[0], clean)
    assert matrix.surrogates == {"a": (own.results[1], black)}
    assert matrix.white_box == (own.results[1], white)


def test_the_same_weights_with_other_outputs_are_another_network(images, nets, tmp_path):
    """Such as after a change of a file or a constant that the network reads."""
    common = settings(images, tmp_path)
    x, y = to_unit(images.images), images.labels
    known = run_static_checks(nets["a"].load(), x, y).fingerprint
    first = ModelEvaluation(common, "a", "digest-a", main_of("fgsm"), fingerprint=known)
    assert run(nets, first)[1] == 6
    others = [
        replace(known, logits=-known.logits),
        replace(known, gradients=torch.zeros_like(known.gradients)),
        replace(known, random=True),
    ]
    folders = {first.store.folder}
    for other in others:
        changed = replace(first, fingerprint=other)
        assert run(nets, changed)[1] == 6, "no outcome of the other network is reused"
        folders.add(changed.store.folder)
        assert run(nets, replace(first, fingerprint=other))[1] == 0
    assert len(folders) == 4
    rounded = replace(known, logits=known.logits + 1e-5, gradients=1.01 * known.gradients)
    assert run(nets, replace(first, fingerprint=rounded))[1] == 0
    assert len({replace(first, fingerprint=o).store.identity for o in (known, *others)}) == 4
    job = WorkerJob(nets, images, {"a": main_of("fgsm")}, THREAT, 5, fingerprint={"a": others[0]})
    with pytest.raises(UserError, match="a has other outputs in a worker"):
        Attackers(job)("a")


def test_all_attacks_support_half_precision(images, nets, tmp_path):
    class Half(Net):
        def load(self):
            model = copy.deepcopy(self.model).bfloat16()
            return nn.Sequential(ToHalf(), model)

    half = {"a": Half(1, images)}
    common = settings(images.at_most(10), tmp_path)
    one = ModelEvaluation(common, "a", "digest", main_of("apgd-ce", "square-1000", "fab-t"))
    report, _ = run(half, one)
    assert len(report.results) == 4


class ToHalf(nn.Module):
    def forward(self, x):
        return x.bfloat16()


def test_exported_samples_have_their_index_in_the_data_set(images, nets, tmp_path):
    some = images.at_most(20)
    one = ModelEvaluation(settings(some, tmp_path), "a", "digest-a", main_of("pgd-2"), keep=True)
    run(nets, one)
    rows = pq.read_table(one.export()).to_pylist()
    places = {row["selected"]: row["sample"] for row in rows if row["attack"] == "clean"}
    assert places == {k: k * NUM // 20 for k in range(20)}
    assert all(row["label"] == int(images.labels[row["sample"]]) for row in rows)
    (kept,) = tmp_path.glob("*/pgd-2/*/*.safetensors")
    tensors = safetensors.torch.load_file(kept)
    x = to_unit(images.images[tensors["sample"]])
    assert float((tensors["x_adv"] - x).abs().max()) <= THREAT.eps + 1e-6


def test_random_starts_do_not_depend_on_the_selection(images, nets, tmp_path):
    """They depend on the index in the data set."""
    some = images.at_most(20)
    found = []
    for chosen in (some, some.subset([3, 7])):
        attacker = pool_of(
            nets, ModelEvaluation(settings(chosen, tmp_path), "a", "d", main_of("pgd-1"))
        )
        which = torch.tensor([3, 7]) if chosen is some else torch.arange(2)
        task = AttackTask("a", Step("pgd-1", 0, "pgd-1", 0), which, keep=True)
        attacker.submit(task)
        found.append(attacker.next().x_adv)
    torch.testing.assert_close(found[0], found[1])


def test_the_export_includes_outcomes_of_earlier_commands(images, nets, tmp_path):
    common = settings(images, tmp_path)
    for name in ("pgd-2", "fgsm"):
        one = ModelEvaluation(common, "a", "digest-a", main_of(name))
        run(nets, one)
    attacks = {row["attack"] for row in pq.read_table(one.export()).to_pylist()}
    assert attacks == {"clean", "pgd-2", "fgsm"}


def test_an_attack_without_valid_images_is_suspicious(images, nets, tmp_path):
    broken = EvaluationAttack("broken", lambda model, batch, threat: batch.x * float("nan"))
    one = ModelEvaluation(
        settings(images, tmp_path), "a", "digest", (Ensemble("broken", (broken,)),)
    )
    report, _ = run(nets, one)
    assert [finding.check for finding in report.suspicions] == ["no images of broken"]


def test_surrogates_with_the_same_name_are_distinguished():
    names = {transfer_ensemble("pgd-5", "net", digest * 10).name for digest in ("a", "b")}
    assert len(names) == 2


def test_all_adversarial_samples_can_be_saved(images, nets, tmp_path):
    one = ModelEvaluation(settings(images, tmp_path), "a", "digest-a", main_of("pgd-2"), keep=True)
    steps = list(one.run(pool_of(nets, one), transfer_lookup({})))
    kept = [one.store.load_x_adv(step) for step, _, _ in steps if step.attack == "pgd-2"]
    assert all(x_adv.shape == (len(samples), 3, 8, 8) for samples, x_adv in kept)
    assert [cached for _, _, cached in steps] == [False] * 6
    assert not list(tmp_path.glob("*/clean/**/*.safetensors")), (
        "only attacks have adversarial samples"
    )
    assert run(nets, replace(one, keep=True))[1] == 0
