"""Bounded objectives stay within their bounds; literal ones end cleanly where they run away."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_runs import tiny_config, tiny_state

from raymi.engine.context import LocalContext
from raymi.engine.loop import train
from raymi.runs.run_folder import RunFolder

BATCH, STEPS_PER_EPOCH = 44, 5
SHORT, LONG = 20, 60  # epochs
STRONG = {"optim.lr": 0.1, "attack.eps": 0.1}
WEIGHTS = [{"mi.weight": weight} for weight in (0.1, 1.0, 5.0, 20.0)]
SHARES = [{"mi.balance": rho} for rho in (0.05, 0.2, 0.5)]
OTHERS = [{"mi.weight": 5.0, "mi.bound": "dv"}, {"mi.balance": 0.5, "mi.bound": "dv"}]
EXTREMES = (WEIGHTS[3], SHARES[2], OTHERS[1])
LOWEST = -2 / 0.1  # nats: of cosines over a temperature of 0.1


def steps_of(settings, epochs):
    """Metrics of all steps, and the state after them."""
    state, loader = tiny_state(tiny_config({**STRONG, "optim.epochs": epochs, **settings}))
    history = []
    for epoch in range(epochs):
        state.position.epoch = epoch
        steps = (state.step(batch) for batch in loader.epoch(epoch))
        history += [{k: float(v) for k, v in metrics.items()} for metrics in steps]
    return history, state


@pytest.mark.slow
@pytest.mark.parametrize(
    ("epochs", "settings"),
    [
        *((SHORT, settings) for settings in EXTREMES),
        *(
            pytest.param(LONG, settings, marks=pytest.mark.exhaustive)
            for settings in (*WEIGHTS, *SHARES, *OTHERS)
        ),
    ],
    ids=str,
)
def test_bounded_objectives_stay_finite_and_within_their_bounds(epochs, settings):
    history, state = steps_of(settings, epochs)
    assert len(history) == epochs * STEPS_PER_EPOCH
    for metrics in history:
        assert all(map(math.isfinite, metrics.values()))
        assert metrics["loss_mi"] <= -LOWEST + math.log(BATCH)
        assert metrics["loss_mi"] >= -math.log(BATCH)  # nothing is left to win there
        for name in ("mi/natural", "mi/adversarial", "mi/natural_of_adversarial"):
            assert metrics[name] <= math.log(BATCH) or settings.get("mi.bound") == "dv"
            assert metrics[name] >= LOWEST
        if "mi.balance" in settings:
            share = metrics["mi/grad_norm"] / metrics["grad_norm_adv"]
            assert share <= settings["mi.balance"] * (1 + 1e-4)
    assert all(value.isfinite().all() for value in state.state_dict()["model"].values())
    if "mi.balance" in settings or settings["mi.weight"] <= 1:  # the classifier learns as well
        late = history[-len(history) // 5 :]
        accuracy = sum(m["clean_acc"] for m in late) / len(late)
        assert accuracy > (0.9 if epochs == LONG else 0.3), "chance is 0.1"


@pytest.mark.parametrize("form", ["paper", "released"])
def test_a_literal_form_that_runs_away_ends_with_the_terms_and_the_step(form, tmp_path):
    settings = {
        "mi.form": form, "mi.hidden": 16, "mi.weight": 1e12, "optim.lr": 1e3,
        "optim.momentum": 0.99, "optim.schedule": "constant", "data.limit": 400,
        "optim.epochs": 20, "mi.estimator_lr": 0.1,
    }  # fmt: skip
    with pytest.raises(FloatingPointError, match=r"got .* = (nan|-?inf).* at step \d+ .*bounded"):
        train(tiny_config(settings), LocalContext("cpu"), RunFolder(tmp_path))


def test_the_stop_names_the_first_broken_step_and_the_checkpoint_before_it(tmp_path, monkeypatch):
    """Though the metrics of several steps are looked at together."""
    from raymi.engine.train_state import TrainState

    step = TrainState.step

    def breaking(self, batch):
        metrics = step(self, batch)
        if self.position.global_step >= 7:
            metrics["loss_mi"] = torch.tensor(float("nan"))
        return metrics

    monkeypatch.setattr(TrainState, "step", breaking)
    settings = {"optim.epochs": 3, "tracking.log_every": 100}
    with pytest.raises(FloatingPointError) as raised:
        train(tiny_config(settings), LocalContext("cpu"), RunFolder(tmp_path))
    text = str(raised.value)
    assert "got loss_mi = nan at step 8 (phase classifier, epoch 2)" in text
    (checkpoint,) = RunFolder(tmp_path).checkpoints.iterdir()
    assert checkpoint.name.startswith("step-00000005")
    assert f"go back to {checkpoint}" in text
