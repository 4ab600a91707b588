"""Settings of the mutual-information term, and the named forms that set many of them.

Measured warning: the contrast of Eq. 5 is unbounded, and scores of two LayerNormed vectors reach
+-H. On digits (recipe quickstart-paper, ten seeds) the estimates of I_N(h(x)) fell as low as -240
nats, in the classifier's first epoch the MI gradient at the logits was 4 to 36 times the
adversarial one, and accuracy stayed at chance in all ten runs. `released` trains, and lost 6 points
of robust accuracy against AT there.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from raymi.fields import (
    Count,
    NonNegative,
    Positive,
    Section,
    Temperature,
    Units,
    Weight,
    at_most,
)
from raymi.formatting import as_typed

FORMS: dict[str, dict[str, Any]] = {
    "bounded": {
        "balance": 0.2,
        "bound": "infonce",
        "score": "cosine",
        "objective": "mim",
        "samples": "all",
        "difference": 1.0,
        "cosine": 0.0,
        "clamp": True,
        "clip_contrast": True,
    },
    "paper": {
        "weight": 5.0,
        "bound": "dv",
        "score": "dot",
        "objective": "contrast",
        "samples": "selected",
        "difference": 0.1,
        "cosine": 1.0,
        "clamp": False,
        "clip_contrast": False,
        "hidden": 2048,
    },
    "released": {
        "weight": 5.0,
        "bound": "dv-released",
        "score": "dot",
        "objective": "released",
        "samples": "selected-released",
        "difference": 0.0,
        "cosine": 1.0,
        "clamp": False,
        "clip_contrast": False,
        "hidden": 2048,
    },
    "wmim": {
        "balance": 0.2,
        "bound": "infonce",
        "score": "cosine",
        "objective": "mim",
        "samples": "all",
        "natural_pattern": "adversarial",
        "difference": 1.0,
        "cosine": 0.0,
        "clamp": True,
        "clip_contrast": True,
        "adversarial": False,
    },
    "random": {
        "balance": 0.2,
        "gradient": "random",
    },
}
"""Defaults that each `mi.form` sets."""


class MIConfig(Section):
    """Mutual-information term and its two estimators.

    `form` sets the defaults of other keys; each can be set on its own.
    """

    form: Literal["bounded", "paper", "released", "wmim", "random"] = "bounded"
    """bounded: well-posed by construction; paper: Eq. 4-9 as printed (fragile: unbounded
    objectives); released: the authors' code; wmim: maximise the MI of the whole adversarial
    image (the paper's baseline); random: a random gradient at the logits instead (a control)."""
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
    """Fixed weight of the MI loss (the paper's alpha); 0: MI is off. Excludes `balance`."""
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
    gradient: Literal["mi", "random"] = "mi"
    """Gradient added to the adversarial loss's at the logits: the MI loss's, or Gaussian noise of
    the same norm (a control)."""
    difference: NonNegative = 1.0
    """Weight of adversarial minus natural MI of the adversarial output (lambda in Eq. 8)."""
    cosine: NonNegative = 0.0
    """Weight of the two cosine terms of Eq. 8."""
    clamp: bool = True
    """Clamp batch means of MI to the range in which the bound is meaningful: dv to [0, log(batch -
    1)]; minimised means of bounds with a cap to at least their value for independent variables.
    kl, rkl, chi2, wasserstein and infonce-released are not clamped."""
    natural: bool = True
    """Use the natural-MI terms (ablation ii: false)."""
    adversarial: bool = True
    """Use the adversarial-MI terms (ablation i: false)."""
    negatives: Literal["global", "local"] = "global"
    """Negatives: from the batch of all workers, or from each worker's own share (cheaper)."""
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

    @model_validator(mode="before")
    @classmethod
    def _fill_from_form(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        form = FORMS.get(str(values.get("form", "bounded")), {})
        if values.get("pretrained") is not None or values.get("estimators") is not None:
            form = {**form, "schedule": "staged"}
        weighted = values.get("weight") is not None or values.get("balance") is not None
        defaults = {k: v for k, v in form.items() if not (weighted and k in ("weight", "balance"))}
        return {**defaults, **{k: v for k, v in values.items() if v is not None}}

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
        if self.weight == 0 or self.balance == 0 or self.gradient == "random":
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
        """True if the MI term needs estimators: it is on, and not the random control."""
        return self.enabled and self.gradient == "mi"
