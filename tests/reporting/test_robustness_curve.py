"""Accuracy by radius, its pictures, and the saved outcomes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_runs import norm_free_net

from raymi.attacks.catalogue import Threat
from raymi.collectives import Collectives
from raymi.data import load_splits
from raymi.engine.pgd_evaluation import PGDAttack, evaluate_pgd
from raymi.reporting import outcomes
from raymi.reporting.outcomes import EXAMPLES, Outcomes, attack_images
from raymi.reporting.robustness_curve import measure_curve
from raymi.reporting.robustness_pictures import class_picture, radius_picture
from raymi.reporting.sample_pictures import samples_picture
from raymi.statistics import Number, wilson_interval

EPS = 0.06
THREAT = Threat("linf", EPS)
DIGEST = "0" * 64


@pytest.fixture(scope="module")
def images():
    return load_splits("digits", image_size=8, limit=150).test


@pytest.fixture(scope="module")
def model(images):
    """Network trained for a second."""
    torch.manual_seed(0)
    net = norm_free_net(10, 8)
    splits = load_splits("digits", image_size=8)
    x, y = splits.train.images / 255, splits.train.labels
    adam = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(100):
        adam.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        adam.step()
    return net.eval()


@pytest.fixture
def measure(model, images, tmp_path):
    """Function that measures a curve, with changed arguments."""

    def measured(**changed):
        arguments = {
            "model": model, "digest": DIGEST, "images": images, "data": "digits-test",
            "threat": THREAT, "radii": (0.03, 0.12), "steps": 3, "block": 64, "micro_batch": None,
            "folder": tmp_path, "heartbeat": lambda done, of: None, "log": pytest.fail,
        }  # fmt: skip
        return measure_curve(**{**arguments, **changed})

    return measured


@pytest.fixture
def attacks(monkeypatch):
    """Radii of the attacks so far."""
    made = []

    def counted(*args, **kwargs):
        made.append(args[2].eps)
        return evaluate_pgd(*args, **kwargs)

    monkeypatch.setattr(outcomes, "evaluate_pgd", counted)
    return made


def test_accuracies_equal_those_of_evaluate_pgd(measure, model, images):
    curve = measure().accuracies()
    assert list(curve) == [0.0, 0.03, EPS, 0.12]
    for eps in (0.03, EPS, 0.12):
        attack = PGDAttack("linf", eps, eps / 4, 3)
        accuracy = evaluate_pgd(model, images, attack, Collectives(), block=64)
        assert curve[eps].accuracy == pytest.approx(accuracy.robust, abs=1e-12)
        assert curve[0.0].accuracy == pytest.approx(accuracy.clean, abs=1e-12)
    assert curve[0.0].accuracy > curve[0.03].accuracy > curve[0.12].accuracy
    right = round(curve[EPS].accuracy * len(images))
    assert curve[EPS] == Number(right / len(images), *wilson_interval(right, len(images)))


def test_robust_samples_are_correct_without_and_under_attack():
    y = torch.zeros(4, dtype=torch.int64)
    predicted, predicted_adv = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    none = torch.zeros(4)
    seen = Outcomes(y, predicted, predicted_adv, none, none, none, none, none)
    assert seen.clean.tolist() == [True, True, False, False]
    assert seen.robust.tolist() == [True, False, False, False]


def test_accuracies_of_classes_average_to_the_whole(measure, images):
    found = measure()
    sizes = torch.bincount(images.labels, minlength=10).tolist()
    for which, whole in ((0, found.accuracies()[0.0]), (1, found.accuracies()[EPS])):
        right = sum(sizes[k] * numbers[which].accuracy for k, numbers in found.by_class().items())
        assert right == pytest.approx(whole.accuracy * len(images))
    for clean, robust in found.by_class().values():
        assert robust.accuracy <= clean.accuracy


def test_examples_are_in_the_ball_and_in_order(measure, model, images):
    for norm, eps in (("linf", EPS), ("l2", 0.4)):
        seen = measure(threat=Threat(norm, eps), block=7).at_threat
        delta = (seen.x_adv - seen.x).flatten(1)
        size = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
        assert len(seen.examples) == 2 * EXAMPLES
        assert float(size.max()) <= eps + 1e-6
        assert float(size.min()) > eps / 2
        assert float(seen.x_adv.min()) >= 0
        assert float(seen.x_adv.max()) <= 1
        torch.testing.assert_close(seen.x, images.images[seen.examples] / 255)
        with torch.no_grad():
            predicted = model(seen.x_adv).argmax(1)
        assert torch.equal(predicted, seen.predicted_adv[seen.examples])
        assert bool(seen.clean[seen.examples].all())
        robust = seen.robust[seen.examples].tolist()
        assert robust == [False] * EXAMPLES + [True] * EXAMPLES
        broken = (seen.clean & ~seen.robust).nonzero()[:EXAMPLES, 0]
        assert torch.equal(seen.examples[:EXAMPLES], broken), "the first ones"


def test_accuracy_that_does_not_fall_gives_a_warning(measure):
    found = measure(radii=(0.03, 4 * EPS), steps=5)
    assert found.accuracies()[4 * EPS].accuracy < 0.1
    assert found.warnings() == []
    easy, hard = found.by_radius[0.03], found.by_radius[4 * EPS]
    masked = replace(found, by_radius={0.03: hard, EPS: found.at_threat, 4 * EPS: easy})
    rises, stays = masked.warnings()[0], masked.warnings()[-1]
    assert "rises from" in rises
    assert "withstand PGD-5 at radius 0.24, more than chance" in stays
    near = replace(found, by_radius={EPS: found.at_threat, 2 * EPS: found.at_threat})
    assert near.warnings() == [], "robustness at twice the radius is possible"


def test_a_second_report_does_not_attack(measure, attacks):
    first = measure()
    assert attacks == [0.03, EPS, 0.12]
    second = measure()
    assert attacks == [0.03, EPS, 0.12]
    assert first.accuracies() == second.accuracies()
    for name, value in vars(first.at_threat).items():
        assert torch.equal(value, getattr(second.at_threat, name)), name
    measure(radii=(0.03, 0.12, 0.2))
    assert attacks[3:] == [0.2], "only what is new"


def test_changed_weights_images_or_settings_are_attacked(measure, attacks, images):
    measure(radii=())
    for change in (
        {"digest": "1" * 64},
        {"images": images.at_most(100)},
        {"steps": 4},
        {"threat": Threat("l2", EPS)},
    ):
        before = len(attacks)
        measure(radii=(), **change)
        assert len(attacks) == before + 1, change


def test_a_damaged_file_is_measured_again(measure, attacks, tmp_path):
    first = measure(radii=())
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    assert measure(radii=()).accuracies() == first.accuracies()
    assert attacks == [EPS, EPS]


def test_a_file_of_another_protocol_is_not_read(measure, attacks, tmp_path):
    measure(radii=())
    (mine,) = tmp_path.iterdir()
    content = mine.read_bytes()
    mine.unlink()
    measure(radii=(), digest="1" * 64)
    (other,) = tmp_path.iterdir()
    other.write_bytes(content)
    measure(radii=(), digest="1" * 64)
    assert attacks == [EPS] * 3


def test_a_failed_save_is_logged(measure, tmp_path):
    place = tmp_path / "file"
    place.write_text("")
    lines = []
    found = measure(radii=(), folder=place, log=lines.append)
    assert found.num == len(found.at_threat.y)
    assert "attacks again" in lines[0]


def test_progress_reaches_its_end(measure, images):
    beats = []
    measure(heartbeat=lambda done, of: beats.append((done, of)))
    assert beats == sorted(beats)
    assert beats[-1] == (3 * len(images), 3 * len(images))


def test_a_classifier_without_correct_images_has_no_examples(images):
    def wrong(x):
        return torch.nn.functional.one_hot((labels[: len(x)] + 1) % 10, 10).float() + 0 * x.sum()

    class Wrong(torch.nn.Module):
        def forward(self, x):
            return wrong(x)

    labels = images.labels[:20]
    some = images.subset(range(20))
    seen = attack_images(Wrong(), some, PGDAttack("linf", EPS, EPS / 4, 1))
    assert int(seen.clean.sum()) == 0
    assert len(seen.examples) == 0


def test_pictures_show_the_curve_and_the_classes(measure):
    found = measure()
    axes = radius_picture({"mine": found}).figure.axes[0]
    line = axes.containers[0].lines[0]
    curve = found.accuracies()
    assert list(line.get_xdata()) == list(curve)
    assert list(line.get_ydata()) == [number.accuracy for number in curve.values()]
    assert [text.get_text() for text in axes.texts] == ["threat L_inf eps 0.06"]

    panels = class_picture({"mine": found}).figure.axes
    assert [label.get_text() for label in panels[0].get_yticklabels()] == list(found.class_names)
    for which, axes in enumerate(panels):
        shown = list(axes.containers[0].lines[0].get_xdata())
        assert shown == [numbers[which].accuracy for numbers in found.by_class().values()]


def test_labels_of_close_threats_do_not_overlap(measure):
    found = measure(radii=())
    near = replace(
        found, threat=Threat("linf", EPS + 0.001), by_radius={EPS + 0.001: found.at_threat}
    )
    figure = radius_picture({"mine": found, "other": near}).figure
    figure.draw_without_rendering()
    first, second = (text.get_window_extent() for text in figure.axes[0].texts)
    assert not first.overlaps(second)


def test_classes_without_images_are_counted(measure):
    found = measure(radii=())
    assert "Classes without an image" not in class_picture({"mine": found}).caption
    y = torch.where(found.at_threat.y == 3, 4, found.at_threat.y)
    picture = class_picture(
        {"mine": replace(found, by_radius={EPS: replace(found.at_threat, y=y)})}
    )
    assert "Classes without an image among these: 1." in picture.caption
    shown = [label.get_text() for label in picture.figure.axes[0].get_yticklabels()]
    assert shown == [name for k, name in enumerate(found.class_names) if k != 3]


def test_of_many_classes_the_least_robust_are_shown(measure):
    found = measure(radii=())
    names = tuple(map(str, range(30)))
    y = torch.arange(len(found.at_threat.y)) % 30
    robust = y >= 25
    seen = replace(found.at_threat, y=y, predicted=y, predicted_adv=torch.where(robust, y, -1))
    many = replace(found, class_names=names, by_radius={EPS: seen})
    picture = class_picture({"mine": many})
    shown = [label.get_text() for label in picture.figure.axes[0].get_yticklabels()]
    assert shown == list(map(str, range(20)))
    assert "the 20 of 30 classes in which mine is least robust" in picture.caption


def test_the_grid_has_a_column_for_each_example(measure):
    found = measure()
    picture = samples_picture("mine", found)
    assert len(picture.figure.axes) == 3 * 2 * EXAMPLES
    seen = found.at_threat
    titles = [axes.get_title() for axes in picture.figure.axes[-2 * EXAMPLES :]]
    for title, place in zip(titles, seen.examples.tolist(), strict=True):
        predicted = found.class_names[int(seen.predicted_adv[place])]
        assert title == f"{predicted}\n{100 * float(seen.confidence_adv[place]):.0f}%"
    factor = 0.5 / float((seen.x_adv - seen.x).abs().max())
    assert f"amplified by {factor:.3g}" in picture.caption
