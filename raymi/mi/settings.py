"""Settings of the mutual-information term, and the named forms that set many of them.

Measured warning: the contrast of Eq. 5 is unbounded, and scores of two LayerNormed vectors reach
+-H. On digits (recipe quickstart-paper, ten seeds) the estimates of I_N(h(x)) fell as low as -240
nats, in the classifier's first epoch the MI gradient at the logits was 4 to 36 times the
adversarial one, and accuracy stayed at chance in all ten runs. `released` trains, and lost 6 points
of robust accuracy against AT there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from raymi.errors import did_you_mean
from raymi.fields import (
    Accepts,
    Count,
    NonNegative,
    Positive,
    Section,
    Share,
    Temperature,
    Units,
    Weight,
    at_most,
)
from raymi.formatting import as_typed, shown
from raymi.mi.forms.registry import forms, term_class

_SHARED_KEYS = {"form", "weight", "balance", "alpha_max"}
_TEACHER_KEYS = {"teacher_temperature", "teacher_ema", "mix"}
_OWN_DEFAULTS = {"weight": 1.0}
"""Defaults that a user's own term sets."""


def form_defaults(form: str) -> Mapping[str, Any]:
    """Returns the defaults that a form sets."""
    return forms()[form].defaults if form in forms() else _OWN_DEFAULTS


def foreign_keys(form: str) -> set[str]:
    """Returns the keys of `mi` that a form does not use; a user's own term may use all."""
    if form not in forms():
        return set()
    keys = forms()[form].keys
    return _TEACHER_KEYS if keys is None else set(MIConfig.model_fields) - _SHARED_KEYS - keys


def _known(value: str) -> str:
    if value not in forms() and ":" not in value:
        raise ValueError(
            f"unknown form {shown(value)}: {did_you_mean(value, forms())} (your own is named "
            "module:name)"
        )
    return value


Form = Annotated[str, AfterValidator(_known), Accepts(" | ".join((*forms(), "module:name")))]


class MIConfig(Section):
    """Mutual-information term and its two estimators.

    `form` sets the defaults of other keys; each can be set on its own.
    """

    form: Form = "bounded"
    """MI term. bounded: well-posed by construction; paper: Eq. 4-9 as printed (fragile: unbounded
    objectives); released: the authors' code; wmim: maximise the MI of the whole adversarial
    image (the paper's baseline); random: a random gradient at the logits instead (a control).
    Without estimators: teacher: KL divergences from the output of an averaged classifier; adr: AT
    on labels refined by it; js: Jensen-Shannon divergence of natural and adversarial output.
    Or your own term (docs/extending.md)."""
    schedule: Literal["joint", "staged"] = "joint"
    """joint: each step updates the estimators, then the classifier, from the same two forwards;
    staged: AT pretraining, then the estimators, then the classifier from scratch with frozen
    estimators, as in the paper."""
    pretrained: str | None = None
    """staged: name or folder of an earlier run whose classifier replaces pretraining: its
    pretrained one, else its best one without averaging."""
    estimators: str | None = None
    """staged: name or folder of an earlier run whose estimators replace the estimator phase."""
    pretrain_epochs: Count | None = None
    """staged: epochs of the AT pretraining; none: `optim.epochs`."""
    estimator_epochs: Count | None = None
    """staged: epochs of the estimators; none: half of `optim.epochs`."""
    weight: Weight | None = None
    """Fixed weight of the MI loss (the paper's alpha), or with `mix` the largest share of the
    teacher; 0: MI is off. Excludes `balance`."""
    balance: Weight | None = None
    """Ratio of the norms of the MI and the adversarial gradient at the logits: sets the weight at
    each step. Excludes `weight`."""
    alpha_max: Positive = 1000.0
    """Largest weight that `balance` may choose."""
    bound: Literal[
        "infonce",
        "dv",
        "jsd",
        "gan",
        "kl",
        "rkl",
        "chi2",
        "hellinger",
        "wasserstein",
        "infonce-released",
        "dv-released",
    ] = "infonce"
    """Bound on mutual information: InfoNCE (at most log batch) or Donsker-Varadhan. jsd to
    wasserstein are f-divergences: objectives, not MI in nats (chi2, wasserstein and others are
    unbounded: keep cosine scores). *-released: the authors' code, for comparison."""
    score: Literal["cosine", "dot"] = "cosine"
    """Score of a pair: cosine over `temperature`, or the plain product of LayerNormed features."""
    temperature: Temperature = 0.1
    """Temperature of cosine scores."""
    objective: Literal["mim", "contrast", "mim-released", "released"] = "mim"
    """Objective of the estimators: MI of the matching pair (Eq. 4), the contrast (Eq. 5), or the
    authors' code: mim-released, which trains the adversarial one on misclassified samples only,
    or released, with cosines."""
    clip_contrast: bool = True
    """contrast: do not push the non-matching MI below 0 nats."""
    samples: Literal["all", "selected", "selected-released"] = "all"
    """Samples of the classifier's MI terms: all, or those classified right as clean and wrong as
    adversarial images (Eq. 6; selected-released: by an argmax after a softmax over the batch)."""
    natural_pattern: Literal["clean", "adversarial"] = "clean"
    """Pattern of the natural estimator: the clean image, or the whole adversarial one (WMIM)."""
    difference: NonNegative = 1.0
    """Weight of adversarial minus natural MI of the adversarial output (lambda in Eq. 8)."""
    cosine: NonNegative = 0.0
    """Weight of the two cosine terms of Eq. 8."""
    clamp: bool = True
    """Clamp batch means of MI to the range in which the bound is meaningful: dv to [0, log(batch -
    1)]; minimised means of bounds with a cap to at least their value for independent variables.
    kl, rkl, chi2, wasserstein and infonce-released are not clamped."""
    natural_cap: bool = False
    """Do not raise the batch mean of natural MI above log(classes), all that a label can hold (for
    bounds in nats: infonce, dv)."""
    natural: bool = True
    """Use the natural-MI terms (ablation ii: false)."""
    adversarial: bool = True
    """Use the adversarial-MI terms (ablation i: false)."""
    negatives: Literal["global", "local"] = "global"
    """Negatives: from the batch of all workers, or from each worker's own share (cheaper)."""
    negative_classes: Literal["all", "other"] = "all"
    """Negatives: samples of all classes, or of other classes than the sample's. With other, infonce
    and dv are objectives, not MI."""
    score_memory: Positive = 256.0
    """Largest tensor of scores (own patterns x global batch x locations), in MiB; larger ones are
    computed in parts, exactly, and not stored for the backward pass."""
    hidden: Units = 512
    """Units H of the estimators' feature space (capacity)."""
    base_width: Annotated[int, Field(ge=1), at_most(4096)] = 64
    """Channels of the local encoder's first convolution (capacity)."""
    depth: Annotated[int, Field(ge=1, le=5)] = 2
    """Stride-2 convolutions of the local encoder (capacity)."""
    estimator_lr: Positive = 1e-3
    """Learning rate of the estimators (Adam)."""
    teacher_temperature: Temperature = 1.0
    """Temperature of the teacher's output."""
    teacher_ema: Share = 0.995
    """Decay of the teacher's moving average of the weights; `optim.ema` is another average."""
    mix: bool = False
    """Mix the teacher's output into the labels of AT's loss and attack, in place of KL divergences:
    its share is `weight` minus the probability by which it prefers another class, at least 0."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_form(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        form = form_defaults(str(values.get("form", "bounded")))
        if values.get("pretrained") is not None or values.get("estimators") is not None:
            form = {**form, "schedule": "staged"}
        weighted = values.get("weight") is not None or values.get("balance") is not None
        defaults = {k: v for k, v in form.items() if not (weighted and k in ("weight", "balance"))}
        # None means the default of a key that the form sets or does not use; else it is validated
        unset = {*form, *foreign_keys(str(values.get("form", "bounded")))}
        given = {k: v for k, v in values.items() if v is not None or k not in unset}
        return {**defaults, **given}

    @model_validator(mode="after")
    def _one_weight(self) -> MIConfig:
        if self.weight is not None and self.balance is not None:
            raise ValueError(
                f"give either weight or balance, got weight={as_typed(self.weight)} and "
                f"balance={as_typed(self.balance)}: set the other to none"
            )
        return self

    @model_validator(mode="after")
    def _has_a_term(self) -> MIConfig:
        if self.weight == 0 or self.balance == 0 or self.form == "random":
            return self
        if not (self.natural or self.adversarial):
            raise ValueError(
                "natural=false and adversarial=false leave no MI term: set one to true, or "
                "weight=0 to switch MI off"
            )
        if self.difference == 0 and self.cosine == 0:
            raise ValueError(
                "difference=0 and cosine=0 leave no MI term: raise one, or set weight=0 to switch "
                "MI off"
            )
        return self

    @model_validator(mode="after")
    def _keys_are_of_the_form(self) -> MIConfig:
        foreign = foreign_keys(self.form)
        for key, field in type(self).model_fields.items():
            value = getattr(self, key)
            if key in foreign and value != field.default:
                raise ValueError(
                    f"form={self.form} does not use {key}, got {key}={as_typed(value)}: remove it, "
                    "or choose another form"
                )
        return self

    @model_validator(mode="after")
    def _mixing_has_no_other_term(self) -> MIConfig:
        for key, needed in (("balance", None), ("natural", True), ("adversarial", True)):
            value = getattr(self, key)
            if self.mix and value != needed:
                raise ValueError(
                    f"mix=true adds no MI term to the loss, got {key}={as_typed(value)}: "
                    "remove it, or set mix=false"
                )
        return self

    @model_validator(mode="after")
    def _bound_is_in_nats(self) -> MIConfig:
        for key, default in (("natural_cap", False), ("negative_classes", "all")):
            value = getattr(self, key)
            if value != default and self.bound not in ("infonce", "dv"):
                raise ValueError(
                    f"{key}={as_typed(value)} needs a bound in nats, got bound={self.bound}: set "
                    "bound=infonce or bound=dv"
                )
        return self

    @model_validator(mode="after")
    def _reuse_needs_staged(self) -> MIConfig:
        if self.pretrained is not None and self.estimators is not None:
            raise ValueError(
                "give either pretrained or estimators: estimators of an earlier run need no "
                "pretrained classifier"
            )
        reused = self.pretrained or self.estimators
        if reused is not None and self.schedule == "joint":
            raise ValueError(
                f"schedule=joint trains its own estimators, got {reused!r} to reuse: "
                "set schedule=staged"
            )
        return self

    @property
    def enabled(self) -> bool:
        """True if an MI term is trained; otherwise training equals the base method bit for bit."""
        return self.weight != 0 and self.balance != 0 and (self.natural or self.adversarial)

    @property
    def has_estimators(self) -> bool:
        """True if the MI term is on and built with estimators; a user's own term is without."""
        return self.enabled and self.form in forms() and forms()[self.form].uses_estimators

    @property
    def needs_clean_gradient(self) -> bool:
        """True if the MI term has a gradient at h(x); imports a user's own term."""
        return self.cosine > 0 or term_class(self.form).needs_clean_gradient

    @property
    def averages_model(self) -> bool:
        """True if the MI term keeps an average of the classifier; imports a user's own term."""
        return self.enabled and term_class(self.form).averages_model
