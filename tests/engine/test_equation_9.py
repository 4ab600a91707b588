"""A step of training equals the slow, obvious form of Eq. 9 and of its optimiser."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from tiny_runs import tiny_config, tiny_state

from raymi import counter_rng
from raymi.counter_rng import random_key
from raymi.mi.bounds import donsker_varadhan, infonce

TRADES, MART = {"loss.base": "trades"}, {"loss.base": "mart"}
PAPER = {"mi.form": "paper", "mi.hidden": 16}
NO_ESTIMATORS = {"mi.hidden": None, "mi.base_width": None, "mi.depth": None}
JS = {"mi.form": "js", "mi.weight": 3.0} | NO_ESTIMATORS
TEACHER = {"mi.form": "teacher", "mi.teacher_temperature": 1.5} | NO_ESTIMATORS
SETTINGS = {
    "AT": {"mi.weight": 0},
    "label smoothing": {"mi.weight": 0, "loss.label_smoothing": 0.2},
    "TRADES": {"mi.weight": 0} | TRADES,
    "MART": {"mi.weight": 0} | MART,
    "bounded": {},
    "fixed weight": {"mi.weight": 3.0},
    "NAMID_T": TRADES,
    "NAMID_M": MART,
    "cosine and DV on MART": {"mi.cosine": 1.0, "mi.bound": "dv", "mi.clamp": False} | MART,
    "paper": PAPER,
    "paper, all samples": PAPER | {"mi.samples": "all"},
    "WMIM": {"mi.form": "wmim"},
    "random": {"mi.form": "random"},
    "random on TRADES": {"mi.form": "random"} | TRADES,
    "natural alone": {"mi.adversarial": False},
    "natural MI capped, other classes": {"mi.natural_cap": True, "mi.negative_classes": "other"},
    "JS": JS,
    "JS on TRADES": JS | TRADES,
    "JS on MART": JS | MART | {"mi.weight": None, "mi.balance": 0.3},
    "teacher": TEACHER,
    "teacher on TRADES": {"mi.natural": False} | TEACHER | TRADES,
    "teacher on MART": {"mi.adversarial": False} | TEACHER | MART,
    "ADR": {"mi.form": "adr"} | NO_ESTIMATORS,
    "adversarial alone": {"mi.natural": False, "mi.weight": 2.0, "mi.clamp": False},
}


def teacher(model, mi, x):
    """r: of the classifier itself in eval mode, in the first step."""
    temperature = {"teacher": 1.5, "adr": 2.5}[mi.form]
    return (copy.deepcopy(model).eval()(x) / temperature).softmax(dim=1).detach()


def refined(r, y):
    """ADR's target, whose trust begins at 0.7."""
    share = (0.7 - (r.amax(dim=1) - r[torch.arange(len(y)), y])).clamp(0, 1)[:, None]
    return share * r + (1 - share) * F.one_hot(y, r.shape[1])


def kl(p, q):
    """Mean KL(p || q)."""
    return (p * (p / q).log()).sum(dim=1).mean()


def adversarial_loss(loss, z, z_adv, y):
    """L_adv, the mean over the batch; y are labels or ADR's target."""
    if loss.base == "at":
        return F.cross_entropy(z_adv, y, label_smoothing=loss.label_smoothing)
    p, p_adv = z.softmax(dim=1), z_adv.softmax(dim=1)
    kl = (p * (p.log() - p_adv.log())).sum(dim=1)
    if loss.base == "trades":
        return F.cross_entropy(z, y) + loss.beta * kl.mean()
    rows = torch.arange(len(y))
    others = p_adv.masked_fill(F.one_hot(y, p.shape[1]).bool(), 0.0)
    boosted = -p_adv[rows, y].log() - (1.0001 - others.amax(dim=1)).log()
    return (boosted + loss.beta * kl * (1.0000001 - p[rows, y])).mean()


def mutual_information(estimator, u, z, y, mi):
    """(B,) nats, from all scores T[i, j, p]."""
    scores = torch.einsum("ih,jhp->ijp", estimator.global_features(z), estimator.local_features(u))
    if mi.negative_classes == "other":
        others = y[:, None] != y
        candidates = (others | torch.eye(len(y)).bool())[..., None]
        log_sum = scores.masked_fill(~candidates, -torch.inf).logsumexp(dim=1)
        positive = scores.diagonal(dim1=0, dim2=1).T
        return (positive - log_sum).mean(dim=1) + (others.sum(dim=1) + 1).log()
    return {"infonce": infonce, "dv": donsker_varadhan}[mi.bound](scores)


def mi_loss(mi, estimators, x, x_adv, z, z_adv, y, model):
    """L_mi of Eq. 8, or of a form without estimators."""
    p, p_adv = z.softmax(dim=1), z_adv.softmax(dim=1)
    if mi.form == "js":
        middle = (p + p_adv) / 2
        return (kl(p, middle) + kl(p_adv, middle)) / 2
    if mi.form == "teacher":
        r = teacher(model, mi, x)
        return mi.natural * kl(r, p_adv) + mi.adversarial * kl(p_adv, r)
    chosen = torch.ones_like(y, dtype=torch.bool)
    if mi.samples == "selected":
        chosen = (z.argmax(dim=1) == y) & (z_adv.argmax(dim=1) != y)
    if not chosen.any():
        return 0 * z_adv.sum()
    total = torch.zeros((), dtype=z.dtype)
    u_natural = x_adv if mi.natural_pattern == "adversarial" else x
    for sign, estimator, u in (
        (-1, estimators.natural, u_natural),
        (1, estimators.adversarial, x_adv - x),
    ):
        if estimator is None:
            continue
        of_adv, of_nat = (
            mutual_information(estimator, u, out, y, mi)[chosen] for out in (z_adv, z)
        )
        mean = of_adv.mean()
        if mi.clamp and sign > 0:
            mean = mean.clamp(min=0)
        total = total + sign * mi.difference * mean
        total = total + mi.cosine * (1 - F.cosine_similarity(of_adv, of_nat, dim=0)).abs()
    return total


def slow_step(state, before, batch, x_adv):
    """Weights and buffers after a step of SGD on Eq. 9, by one graph over both outputs."""
    config, (x, y, shard) = state.config, batch
    mi, optim = config.mi, config.optim
    untouched = copy.deepcopy(before)
    clean, model = copy.deepcopy(before), before  # the clean batch leaves the statistics alone
    z = torch.func.functional_call(clean, dict(model.named_parameters()), x)
    z_adv = model(x_adv)
    target = refined(teacher(untouched, mi, x), y) if mi.form == "adr" else y
    loss_adv = adversarial_loss(config.loss, z, z_adv, target)
    total = loss_adv
    if mi.enabled and not mi.mix:
        if mi.form == "random":
            noise = counter_rng.normal(
                random_key("random gradient", shard.key), shard.index, (z.shape[1],)
            )
            loss_mi = (noise.double() * z_adv).sum() / len(y)
        else:
            estimators = state.estimators and copy.deepcopy(state.estimators).eval()
            loss_mi = mi_loss(mi, estimators, x, x_adv, z, z_adv, y, untouched)
        alpha = mi.weight
        if mi.balance is not None:
            norms = [
                torch.cat(
                    torch.autograd.grad(
                        loss, [z, z_adv], retain_graph=True, materialize_grads=True,
                        allow_unused=True,
                    )
                ).norm()
                for loss in (loss_adv, loss_mi)
            ]  # fmt: skip
            alpha = (mi.balance * norms[0] / norms[1]).detach()
        total = loss_adv + alpha * loss_mi
    sgd = torch.optim.SGD(
        model.parameters(), lr=optim.lr / 10, momentum=optim.momentum,
        weight_decay=optim.weight_decay,
    )  # fmt: skip
    total.backward()
    sgd.step()
    return total.detach(), model.state_dict()


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_a_step_equals_the_slow_form_of_equation_9(settings):
    torch.set_default_dtype(torch.float64)
    try:
        state, loader = tiny_state(tiny_config(settings))
        batch = next(loader.epoch(0))
        batch = batch._replace(x=batch.x.double())
        before = copy.deepcopy(state.model)
        x_adv = state.attack(batch.x, state.mi.target(*batch), batch.shard)
        metrics = state.step(batch)  # updates the estimators first
        loss, expected = slow_step(state, before, batch, x_adv)
    finally:
        torch.set_default_dtype(torch.float32)
    mi = state.config.mi
    if mi.enabled and not mi.mix and settings != PAPER:  # a fresh network selects no sample
        assert metrics["loss_mi"] != 0
    torch.testing.assert_close(metrics["loss"], loss, rtol=1e-12, atol=1e-12)
    for name, value in state.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-12, msg=name)
