"""What a report measures itself."""

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
from raymi.reporting.measured import measure
from raymi.reporting.outcomes import EXAMPLES, Outcomes, attacked
from raymi.reporting.robustness import class_picture, radius_picture
from raymi.reporting.samples import samples_picture
from raymi.statistics import wilson_interval

EPS = 0.06
THREAT = Threat("linf", EPS)
DIGEST = "0" * 64


@pytest.fixture(scope="module")
def images():
    return load_splits("digits", image_size=8, limit=150).test


@pytest.fixture(scope="module")
def model(images):
    """A network that has learnt something in a second."""
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
def ask(model, images, tmp_path):
    """Measures with some things changed; `attacks` counts the passes that it took."""

    def asked(**changed):
        told = {
            "model": model, "digest": DIGEST, "images": images, "data": "digits-test",
            "threat": THREAT, "radii": (0.03, 0.12), "steps": 3, "block": 64, "micro_batch": None,
            "folder": tmp_path, "heartbeat": lambda done, of: None, "tell": pytest.fail,
        }  # fmt: skip
        return measure(**{**told, **changed})

    return asked


@pytest.fixture
def attacks(monkeypatch):
    made = []

    def counted(*args, **kwargs):
        made.append(args[2].eps)
        return evaluate_pgd(*args, **kwargs)

    monkeypatch.setattr(outcomes, "evaluate_pgd", counted)
    return made


def test_accuracies_are_those_of_evaluate_pgd(ask, model, images):
    curve = ask().curve()
    assert list(curve) == [0.0, 0.03, EPS, 0.12]
    for eps in (0.03, EPS, 0.12):
        attack = PGDAttack("linf", eps, eps / 4, 3)
        accuracy = evaluate_pgd(model, images, attack, Collectives(), block=64)
        assert curve[eps].accuracy == pytest.approx(accuracy.robust, abs=1e-12)
        assert curve[0.0].accuracy == pytest.approx(accuracy.clean, abs=1e-12)
    assert curve[0.0].accuracy > curve[0.03].accuracy > curve[0.12].accuracy
    right = curve[EPS].right
    assert curve[EPS].interval == wilson_interval(right, len(images))


def test_robust_is_right_before_and_after_the_attack():
    y = torch.zeros(4, dtype=torch.int64)
    predicted, predicted_adv = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    none = torch.zeros(4)
    seen = Outcomes(y, predicted, predicted_adv, none, none, none, none, none)
    assert seen.clean.tolist() == [True, True, False, False]
    assert seen.robust.tolist() == [True, False, False, False]


def test_classes_make_up_the_whole(ask, images):
    found = ask()
    rates = found.by_class().values()
    for which, whole in ((0, found.curve()[0.0]), (1, found.curve()[EPS])):
        assert sum(one[which].num for one in rates) == whole.num == len(images)
        assert sum(one[which].right for one in rates) == whole.right
    for label, (clean, robust) in found.by_class().items():
        assert clean.num == int((images.labels == label).sum())
        assert robust.right <= clean.right


def test_examples_are_within_the_ball_and_what_they_are_said_to_be(ask, model, images):
    for norm, eps in (("linf", EPS), ("l2", 0.4)):
        seen = ask(threat=Threat(norm, eps), block=7).at_threat
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
        assert torch.equal(seen.examples[:EXAMPLES], broken), "the first ones, not picked"


def test_accuracy_that_does_not_fall_is_suspicious(ask):
    found = ask(radii=(0.03, 4 * EPS), steps=5)
    assert found.curve()[4 * EPS].accuracy < 0.1
    assert found.suspicions() == []
    easy, hard = found.by_radius[0.03], found.by_radius[4 * EPS]
    masked = replace(found, by_radius={0.03: hard, EPS: found.at_threat, 4 * EPS: easy})
    rises, stays = masked.suspicions()[0], masked.suspicions()[-1]
    assert "rises from" in rises
    assert "withstand PGD-5 at radius 0.24, more than chance" in stays
    near = replace(found, by_radius={EPS: found.at_threat, 2 * EPS: found.at_threat})
    assert near.suspicions() == [], "at twice the radius a network may still be robust"


def test_a_second_report_does_not_attack(ask, attacks):
    first = ask()
    assert attacks == [0.03, EPS, 0.12]
    second = ask()
    assert attacks == [0.03, EPS, 0.12]
    assert first.curve() == second.curve()
    for name, value in vars(first.at_threat).items():
        assert torch.equal(value, getattr(second.at_threat, name)), name
    ask(radii=(0.03, 0.12, 0.2))
    assert attacks[3:] == [0.2], "only what is new"


def test_other_weights_images_or_settings_are_attacked(ask, attacks, images):
    ask(radii=())
    for change in (
        {"digest": "1" * 64},
        {"images": images.at_most(100)},
        {"steps": 4},
        {"threat": Threat("l2", EPS)},
    ):
        before = len(attacks)
        ask(radii=(), **change)
        assert len(attacks) == before + 1, change


def test_a_damaged_file_is_measured_again(ask, attacks, tmp_path):
    first = ask(radii=())
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    assert ask(radii=()).curve() == first.curve()
    assert attacks == [EPS, EPS]


def test_a_file_of_another_question_is_not_taken(ask, attacks, tmp_path):
    ask(radii=())
    (mine,) = tmp_path.iterdir()
    content = mine.read_bytes()
    mine.unlink()
    ask(radii=(), digest="1" * 64)
    (other,) = tmp_path.iterdir()
    other.write_bytes(content)
    ask(radii=(), digest="1" * 64)
    assert attacks == [EPS] * 3


def test_where_nothing_can_be_kept_it_is_said(ask, tmp_path):
    place = tmp_path / "file"
    place.write_text("")
    lines = []
    found = ask(radii=(), folder=place, tell=lines.append)
    assert found.curve()[0.0].num == found.num
    assert "attacks again" in lines[0]


def test_progress_comes_to_its_end(ask, images):
    beats = []
    ask(heartbeat=lambda done, of: beats.append((done, of)))
    assert beats == sorted(beats)
    assert beats[-1] == (3 * len(images), 3 * len(images))


def test_a_classifier_that_is_never_right_has_no_examples(images):
    def wrong(x):
        return torch.nn.functional.one_hot((labels[: len(x)] + 1) % 10, 10).float() + 0 * x.sum()

    class Wrong(torch.nn.Module):
        def forward(self, x):
            return wrong(x)

    labels = images.labels[:20]
    some = images.subset(range(20))
    seen = attacked(Wrong(), some, PGDAttack("linf", EPS, EPS / 4, 1))
    assert int(seen.clean.sum()) == 0
    assert len(seen.examples) == 0


def test_pictures_show_the_curve_and_the_classes(ask):
    found = ask()
    axes = radius_picture({"mine": found}).figure.axes[0]
    line = axes.containers[0].lines[0]
    curve = found.curve()
    assert list(line.get_xdata()) == list(curve)
    assert list(line.get_ydata()) == [rate.accuracy for rate in curve.values()]
    assert [text.get_text() for text in axes.texts] == ["threat L_inf 0.06"]

    panels = class_picture({"mine": found}).figure.axes
    assert [label.get_text() for label in panels[0].get_yticklabels()] == list(found.class_names)
    for which, axes in enumerate(panels):
        shown = list(axes.containers[0].lines[0].get_xdata())
        assert shown == [rates[which].accuracy for rates in found.by_class().values()]


def test_names_of_threats_that_are_close_do_not_cover_each_other(ask):
    found = ask(radii=())
    near = replace(
        found, threat=Threat("linf", EPS + 0.001), by_radius={EPS + 0.001: found.at_threat}
    )
    figure = radius_picture({"mine": found, "other": near}).figure
    figure.draw_without_rendering()
    first, second = (text.get_window_extent() for text in figure.axes[0].texts)
    assert not first.overlaps(second)


def test_classes_without_images_are_told(ask):
    found = ask(radii=())
    assert "no image" not in class_picture({"mine": found}).caption
    y = torch.where(found.at_threat.y == 3, 4, found.at_threat.y)
    picture = class_picture(
        {"mine": replace(found, by_radius={EPS: replace(found.at_threat, y=y)})}
    )
    assert "1 of the classes has no image" in picture.caption
    shown = [label.get_text() for label in picture.figure.axes[0].get_yticklabels()]
    assert shown == [name for k, name in enumerate(found.class_names) if k != 3]


def test_of_many_classes_the_least_robust_are_shown_and_it_is_said(ask):
    found = ask(radii=())
    names = tuple(map(str, range(30)))
    y = torch.arange(len(found.at_threat.y)) % 30
    robust = y >= 25
    seen = replace(found.at_threat, y=y, predicted=y, predicted_adv=torch.where(robust, y, -1))
    many = replace(found, class_names=names, by_radius={EPS: seen})
    picture = class_picture({"mine": many})
    shown = [label.get_text() for label in picture.figure.axes[0].get_yticklabels()]
    assert shown == list(map(str, range(20)))
    assert "Of 30 classes those 20 in which mine is least robust" in picture.caption


def test_the_grid_has_a_column_for_each_example(ask):
    found = ask()
    picture = samples_picture("mine", found)
    assert len(picture.figure.axes) == 3 * 2 * EXAMPLES
    seen = found.at_threat
    titles = [axes.get_title() for axes in picture.figure.axes[-2 * EXAMPLES :]]
    for title, place in zip(titles, seen.examples.tolist(), strict=True):
        predicted = found.class_names[int(seen.predicted_adv[place])]
        assert title == f"{predicted}\n{100 * float(seen.confidence_adv[place]):.0f}%"
    factor = 0.5 / float((seen.x_adv - seen.x).abs().max())
    assert f"{factor:.3g} times as strong" in picture.caption
