"""CutMix and MixUp: mixtures of a global batch, the same on any number of workers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny_runs import tiny_config, tiny_splits, tiny_state

from raymi.collectives import Collectives
from raymi.counter_rng import random_key, uniform
from raymi.data.mix_images import labels_of, mix_images, mixed_targets
from raymi.engine.train_loader import TrainLoader
from raymi.errors import UserError
from raymi.losses import AdversarialLoss
from raymi.overrides import validate

X, OTHER = torch.rand(2, 40, 3, 12, 16, generator=torch.Generator().manual_seed(0))
INDEX = torch.arange(40) * 7
KEYS = {"seed": 3, "epoch": 2, "index": INDEX}


def test_mixup_is_a_weighted_mean():
    mixed, share = mix_images("mixup", X, OTHER, **KEYS)
    assert torch.equal(share, uniform(random_key(3, "mix", 2), INDEX))
    for i in range(len(X)):
        torch.testing.assert_close(mixed[i], (1 - share[i]) * X[i] + share[i] * OTHER[i])


def test_cutmix_pastes_one_rectangle_and_counts_its_pixels():
    mixed, share = mix_images("cutmix", X, OTHER, **KEYS)
    wanted = uniform(random_key(3, "mix", 2), INDEX)
    for i in range(len(X)):
        pasted = (mixed[i] == OTHER[i]).all(0)
        assert torch.equal(mixed[i][:, ~pasted], X[i][:, ~pasted])
        assert share[i] == pytest.approx(pasted.float().mean().item())
        assert share[i] <= wanted[i]  # cut off at the border
        rows, columns = pasted.any(1), pasted.any(0)
        assert torch.equal(pasted, rows[:, None] & columns)
        for used in (rows, columns):  # without gaps
            assert used.diff().sum() <= 2
    assert (share > 0.8 * wanted).any()


def test_targets_are_mixed_as_the_images_are():
    y, other, share = torch.tensor([0, 1, 2]), torch.tensor([2, 1, 0]), torch.tensor([0.25, 0.5, 0])
    target = mixed_targets(y, other, share, 3)
    assert target.tolist() == [[0.75, 0, 0.25], [0, 1, 0], [0, 0, 1]]
    assert labels_of(target).tolist() == [0, 1, 2]
    assert labels_of(y) is y


def test_mixtures_follow_seed_epoch_and_sample_alone():
    whole, _ = mix_images("cutmix", X, OTHER, **KEYS)
    part, _ = mix_images("cutmix", X[5:9], OTHER[5:9], **{**KEYS, "index": INDEX[5:9]})
    assert torch.equal(part, whole[5:9])
    for other in ({"seed": 4}, {"epoch": 3}):
        assert not torch.equal(mix_images("cutmix", X, OTHER, **{**KEYS, **other})[0], whole)


@pytest.mark.parametrize("kind", ["cutmix", "mixup"])
def test_workers_have_the_parts_of_one_batch(kind):
    config = tiny_config({"data.mix_images": kind, "data.augment": "randaugment"})
    images = tiny_splits(config).train

    def batches(rank: int, world_size: int) -> list:
        group = Collectives()
        group.rank, group.world_size = rank, world_size
        return list(TrainLoader(images, config, group).epoch(1))

    plain = tiny_config({"data.augment": "randaugment"})
    unmixed = list(TrainLoader(images, plain, Collectives()).epoch(1))
    shares = [batches(rank, 3) for rank in range(3)]
    for step, whole in enumerate(batches(0, 1)):
        assert torch.equal(whole.x, torch.cat([one[step].x for one in shares]))
        assert torch.equal(whole.y, torch.cat([one[step].y for one in shares]))
        assert whole.y.shape == (len(whole.x), 10)
        torch.testing.assert_close(whole.y.sum(1), torch.ones(len(whole.x)))
        own = F.one_hot(unmixed[step].y, 10)
        partner = own.roll(1, 0)
        assert (whole.y[(own + partner) == 0] == 0).all()
        if kind == "mixup":
            share = uniform(random_key(config.seed, "mix", 1), whole.shard.index)
            x = unmixed[step].x
            torch.testing.assert_close(whole.x, x.lerp(x.roll(1, 0), share[:, None, None, None]))


REFUSED = {
    "data": {"mix_images": "mixup"},
    "loss": {"base": "trades"},
    "attack": {"name": "my.attacks:momentum"},
    "mi": {"objective": "contrast", "samples": "selected"},
}


def test_everything_that_needs_labels_is_refused_in_one_message():
    with pytest.raises(UserError) as refusal:
        validate(REFUSED)
    (line,) = str(refusal.value).splitlines()
    assert (
        "data.mix_images=mixup trains on soft targets, but labels are needed by loss.base=trades, "
        "attack.name=my.attacks:momentum, mi.objective=contrast, mi.samples=selected: remove"
    ) in line
    without = {**REFUSED, "data": {}}
    assert validate(without).soft_targets == ""
    for mi in ({"form": "adr"}, {"negative_classes": "other"}):
        with pytest.raises(UserError, match=r"labels are needed by mi\.(mix|negative_classes)"):
            validate({"data": {"mix_images": "cutmix"}, "mi": mi})
    validate({"data": {"mix_images": "cutmix"}, "mi": {"objective": "contrast", "weight": 0}})


class Hard(AdversarialLoss):
    title = "Hard"

    def __call__(self, logits, logits_adv, y, shard):
        return shard.mean(F.cross_entropy(logits_adv, y, reduction="none"))


class Soft(Hard):
    takes_soft_targets = True


class Wrong(Soft):
    def __call__(self, logits, logits_adv, y, shard):
        return super().__call__(logits, logits_adv.gather(1, y[:, None]), y * 0, shard)


def test_own_losses_take_soft_targets_if_they_say_so():
    def step(name: str) -> float:
        settings = {"data.mix_images": "mixup", "mi.weight": 0, "loss.base": name}
        state, loader = tiny_state(tiny_config(settings))
        return state.step(next(loader.epoch(0)))["loss"].item()

    assert step(f"{__name__}:Soft") == pytest.approx(step("at"))
    with pytest.raises(UserError, match=r"takes labels, but data\.mix_images=mixup trains on soft"):
        step(f"{__name__}:Hard")
    with pytest.raises(UserError, match=r"loss '.*:Wrong' must map logits"):
        step(f"{__name__}:Wrong")
