"""`mi.form=released` computes what the method's released code computes, to 1e-9 in float64."""

from __future__ import annotations

import pytest
import torch
from closeness import assert_close
from golden_values import NETS, TinyNet, golden

from raymi.collectives import Shard
from raymi.engine.classifier_pair import ClassifierPair, Clean
from raymi.losses.at import AT
from raymi.mi.balance import FixedWeight, Objective
from raymi.mi.estimation import EstimatorTask
from raymi.mi.estimators import LocalDIM, MIEstimators
from raymi.mi.forms.estimated import EstimatedMI
from raymi.mi.matching import match
from raymi.mi.objectives import PairMI, classifier_mi_loss, cosine_of
from raymi.mi.reference import selected_over_batch
from raymi.mi.settings import MIConfig
from raymi.models.running_statistics import running_statistics_of

SIX = Shard.alone(6)
HIDDEN = 32


def critic(kind: str) -> LocalDIM:
    """A critic with the stored weights, "n" (natural) or "a" (adversarial), in float64."""
    ours = {"block_ln.1": "norm"}
    state = {}
    for name, value in golden("estimators").items():
        side, _, rest = name.partition(".")
        if side == f"local_{kind}" and not rest.startswith(("layer0", "layer1")):
            prefix = "local." if rest.startswith("layers") else "local.head."
        elif side == f"global_{kind}":
            prefix = "global_."
        else:
            continue
        for theirs, new in ours.items():
            rest = rest.replace(theirs, new)
        state[prefix + rest] = value
    made = LocalDIM(10, 32, hidden=HIDDEN, base_width=64, depth=2, score="dot").double()
    made.load_state_dict(state)
    return made.eval()


@pytest.fixture(scope="module")
def critics() -> MIEstimators:
    return MIEstimators(critic("n"), critic("a"))


@pytest.fixture(scope="module")
def features() -> dict:
    return golden("estimators")


def test_encoders_reproduce_the_reference_features(critics, features):
    x, x_adv, z = features["x"], features["x_adv"], features["z"]
    assert_close(critics.natural.local_features(x)[:3], features["local_eval"].flatten(2))
    noise = critics.adversarial.local_features(x_adv - x)
    assert_close(noise[:3], features["local_noise_eval"].flatten(2))
    assert_close(critics.natural.global_features(z), features["global_eval"].flatten(1))
    scores = match(critics.natural.global_features(z), critics.natural.local_features(x), SIX)
    assert_close(-scores.reference_donsker_varadhan(), features["dv_eval"])


def test_encoders_reproduce_the_reference_features_in_train_mode(features):
    made = critic("n").train()
    assert_close(made.local_features(features["x"])[:3], features["local_train"].flatten(2))
    assert_close(made.global_features(features["z"]), features["global_train"].flatten(1))
    norm = made.local.layers[0][1]
    assert_close(norm.running_mean, features["local_train_bn0_running_mean_after"])
    assert_close(norm.running_var, features["local_train_bn0_running_var_after"])


@pytest.mark.parametrize(("tag", "scale"), [("unit", 1.0), ("small", 0.1), ("large", 10.0)])
def test_donsker_varadhan_has_the_positive_among_the_negatives(tag, scale):
    values = golden("critics")
    outputs = values["G"][:, :, 0].requires_grad_()
    patterns = (values["L"] * scale).requires_grad_()
    estimates = -match(outputs, patterns, SIX).reference_donsker_varadhan()
    assert_close(estimates, values[f"dv_per_sample_{tag}"])
    assert_close(estimates.mean(), values[f"dv_mean_{tag}"])
    of_outputs, of_patterns = torch.autograd.grad(estimates.sum(), (outputs, patterns))
    assert_close(of_outputs, values[f"dv_gradG_{tag}"][:, :, 0])
    assert_close(of_patterns.mean(dim=0), values[f"dv_gradL_{tag}"])


def test_both_terms_of_donsker_varadhan_equal_the_reference():
    values = golden("critics")
    matching = match(values["G"][:, :, 0], values["L"], SIX)
    assert_close(matching.positive, values["dv_Epos_unit"])
    assert_close(matching.reference_log_mean(), values["dv_Eneg_unit"])


@pytest.fixture(params=NETS)
def values(request) -> dict:
    """Losses with a tiny classifier, with BatchNorm and without."""
    return golden(request.param)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(("images", "kind"), [("x", "nat"), ("x_adv", "adv")])
def test_the_classifier_reproduces_the_stored_values(values, images, kind, mode):
    net = TinyNet(values).train(mode == "train")
    assert_close(net(values[images]), values[f"logits_{kind}_{mode}"])


def test_selection_is_a_softmax_over_the_batch(values):
    logits, logits_adv = values["logits_nat_train"], values["logits_adv_train"]
    wrong, _ = selected_over_batch(logits, logits_adv, values["y"], SIX)
    assert wrong.equal(values["selected"])
    logits, logits_adv = values["logits_nat_eval"], values["logits_adv_eval"]
    wrong, _ = selected_over_batch(logits, logits_adv, values["y_est"], SIX)
    assert wrong.equal(values["est_wrong"])


def test_estimates_and_cosines_equal_the_reference(critics, values):
    noise = values["x_adv"] - values["x"]
    for critic, pattern, kind in (
        (critics.natural, values["x"], "nat"),
        (critics.adversarial, noise, "adv"),
    ):
        features = critic.local_features(pattern)
        estimates = {}
        for output in ("nat", "adv"):
            outputs = critic.global_features(values[f"logits_{output}_train"])
            estimates[output] = match(outputs, features, SIX).reference_donsker_varadhan()
            assert_close(-estimates[output], values[f"neg_mi_{kind}_of_{output}"])
        cosine = cosine_of(estimates["adv"], estimates["nat"], values["selected"], SIX)
        assert_close(cosine, values[f"cos_{kind}"])


def classifier_loss(critics: MIEstimators, values: dict, **mi):
    """Eq. 9 of the released form for a network, and its metrics and terms."""
    config = MIConfig(form="released", hidden=HIDDEN, **mi)
    model, term = TinyNet(values).train(), EstimatedMI(critics, config)
    x, x_adv, y = values["x"], values["x_adv"], values["y"]
    logits, logits_adv = ClassifierPair(model, Clean.GRADIENT, Clean.UNUSED)(x, x_adv, SIX)
    loss_adv = AT()(logits, logits_adv, y, SIX)
    loss_mi, _ = term(x, x_adv, logits, logits_adv, y, SIX)
    objective = Objective(FixedWeight(config.weight))
    return model, loss_adv, objective(loss_adv, loss_mi, [logits, logits_adv], SIX)[0]


def test_natural_mi_alone_equals_the_reference(critics, values):
    """Weight 1, and a tenth of the natural MI of the adversarial output on top."""
    alone = MIEstimators(critics.natural, None)
    _, _, loss = classifier_loss(alone, values, weight=1.0, difference=0.1)
    assert_close(loss, values["mi_loss_nat_total"])


def test_classifier_loss_and_gradients_equal_the_reference(critics, values):
    model, loss_adv, loss = classifier_loss(critics, values)
    assert_close(loss_adv, values["ce_adv"])
    assert_close(loss, values["mi_loss_total"])
    loss.backward()
    assert_close(model.fc.weight.grad, values["mi_loss_grad_fc_weight"])
    assert_close(model.conv.weight.grad, values["mi_loss_grad_conv_weight"])


def test_paper_objective_on_reference_estimates_is_equation_9(values):
    natural = PairMI(-values["neg_mi_nat_of_adv"], -values["neg_mi_nat_of_nat"])
    adversarial = PairMI(-values["neg_mi_adv_of_adv"], -values["neg_mi_adv_of_nat"])
    mask = values["selected"]
    loss = classifier_mi_loss(natural, adversarial, mask, SIX, difference=0.1, cosine=1.0)
    assert_close(values["ce_adv"] + 5 * loss, values["eq9_total_alpha5_lambda0.1"])
    only_cosines = classifier_mi_loss(natural, adversarial, mask, SIX, difference=0.0, cosine=1.0)
    assert_close(10 * (loss - only_cosines), values["eq8_lambda_bracket"])


def test_estimator_losses_and_gradients_equal_the_reference(values):
    estimators = MIEstimators(critic("n"), critic("a")).train()
    outputs = values["logits_nat_eval"], values["logits_adv_eval"]
    batch = (values["x"], values["x_adv"], *outputs, values["y_est"], SIX)
    for natural, adversarial, expected in (
        (estimators.natural, None, values["est_loss_nat"]),
        (None, estimators.adversarial, values["est_loss_adv"]),
    ):
        mi = MIConfig(form="released", hidden=HIDDEN)
        loss, _ = EstimatorTask(MIEstimators(natural, adversarial), mi)(*batch)
        assert_close(loss, expected)
        loss.backward()
    critic_n = estimators.natural
    assert_close(
        critic_n.global_.linear_shortcut.weight.grad, values["est_loss_nat_grad_global_shortcut"]
    )
    assert_close(critic_n.local.layers[0][0].weight.grad, values["est_loss_nat_grad_local_layer0"])


def test_mim_released_is_the_reference_objective_without_contrast(values):
    outputs = values["logits_nat_eval"], values["logits_adv_eval"]
    batch = (values["x"], values["x_adv"], *outputs, values["y_est"], SIX)
    mi = MIConfig(form="released", objective="mim-released", hidden=HIDDEN)
    for kind, expected in (("n", "est_onlymax_nat"), ("a", "est_onlymax_adv")):
        pair = (critic("n").train(), None) if kind == "n" else (None, critic("a").train())
        loss, _ = EstimatorTask(MIEstimators(*pair), mi)(*batch)
        assert_close(loss, values[expected])


def test_running_statistics_equal_the_reference_of_seven_forwards():
    values = golden("losses_bn")
    model = TinyNet(values).train()
    pair = ClassifierPair(model, Clean.GRADIENT, Clean.UNUSED, "released")
    before = int(model.bn.num_batches_tracked)
    pair(values["x"], values["x_adv"], SIX)
    assert_close(model.bn.running_mean, values["bn_running_mean_after7"])
    assert_close(model.bn.running_var, values["bn_running_var_after7"])
    assert int(model.bn.num_batches_tracked) == before + 7
    assert model.bn.momentum == 0.1


def test_mixed_running_statistics_equal_two_plain_forwards():
    values = golden("losses_bn")
    model, plain = TinyNet(values).train(), TinyNet(values).train()
    ClassifierPair(model, Clean.UNUSED, Clean.UNUSED, "mix")(values["x"], values["x_adv"], SIX)
    plain(values["x"])
    plain(values["x_adv"])
    assert_close(model.bn.running_mean, plain.bn.running_mean)
    assert_close(model.bn.running_var, plain.bn.running_var)
    assert model.bn.num_batches_tracked.equal(plain.bn.num_batches_tracked)


def test_interrupted_forwards_keep_the_running_statistics():
    values = golden("losses_bn")
    model = TinyNet(values).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with running_statistics_of(model, "na") as record:
        model(values["x"])
        record("n")
        # the adversarial batch never comes
    assert all(v.equal(before[k]) for k, v in model.state_dict().items())
