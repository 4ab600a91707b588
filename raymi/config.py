"""The configuration of a run: one frozen, typed tree in which every key carries its documentation.

A leaf is set as `section.key=value` (see `raymi.overrides`); complete named trees are in
`raymi.recipes`. Everything that can be refused without looking at files or hardware is refused
here, names of data sets and models included. Images, eps and alpha are in [0, 1] pixel units.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from raymi.data import DATASETS
from raymi.errors import did_you_mean
from raymi.formatting import printable, shown
from raymi.local_paths import address_problem, local_path
from raymi.mi.forms import FORMS
from raymi.models import check_model

__all__ = [
    "AttackConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "LimitConfig",
    "LossConfig",
    "MIConfig",
    "ModelConfig",
    "OptimConfig",
    "ProbeConfig",
    "ScalingConfig",
    "TrackingConfig",
    "ValidationConfig",
]


_PART = r"\s*[+-]?[\d._]{1,30}(?:[eE][+-]?\d{1,3})?\s*"
_FRACTION = re.compile(f"{_PART}/{_PART}")
"""Fractions that take no time: exact ones with large exponents take arbitrarily long."""
_LONGEST_PATH = 4000


def _fraction(value: Any) -> Any:
    """Lets a number be written as `8/255`."""
    if isinstance(value, str) and _FRACTION.fullmatch(value):
        try:
            over, under = map(Fraction, value.split("/"))
            return float(over / under)
        except (ValueError, ZeroDivisionError, OverflowError):
            return value
    return value


def _comma_separated(value: Any) -> Any:
    """Lets a tuple be written as `0.75,0.9`."""
    if isinstance(value, str):
        return [part.strip() for part in value.strip("[]() ").split(",") if part.strip()]
    return value


def _identifier(value: str | None) -> str | None:
    if value is None:
        return value
    if not value or set(value) & set("/\\: \t\n") or value.startswith("."):
        raise ValueError(
            f"expected a plain name without spaces, slashes or colons, got {shown(value)}"
        )
    if printable(value) != value:
        raise ValueError(f"expected a name without control characters, got {shown(value)}")
    return value


def _experiment(value: str) -> str:
    if not 0 < len(value) <= 500:
        raise ValueError(f"expected a name of 1 to 500 characters, got {len(value)} of them")
    return value


def _data_set(value: str) -> str:
    if value not in DATASETS:
        raise ValueError(f"unknown data set {shown(value)}: {did_you_mean(value, DATASETS)}")
    return value


def _lower_case(value: Any) -> Any:
    """Lets `True` stand for `true`, typed or from Python."""
    return str(value).lower() if isinstance(value, (str, bool)) else value


def _workers(value: Any) -> Any:
    """Lets a range of worker counts be written as `2..8`; one of a single number is that number."""
    text = "" if isinstance(value, int) and abs(value) > 10**9 else str(value).strip()
    least, dots, most = text.partition("..")
    try:
        low, high = int(least), int(most if dots else least)
    except ValueError:
        low = high = 0
    if isinstance(value, (bool, float)) or low < 1:
        raise ValueError(f"expected {WORKERS.text}, got {shown(value)}")
    if max(low, high) > _MOST_WORKERS:
        raise ValueError(f"expected at most {_MOST_WORKERS} workers, got {shown(value)}")
    if high < low:
        raise ValueError(f"expected a range from fewer to more, such as {high}..{low}, got {text}")
    return low if low == high else f"{low}..{high}"


def _no_address(value: Any) -> Any:
    """Refuses `s3://...`, which would become a local folder."""
    if isinstance(value, (str, Path)) and (problem := address_problem(value)):
        raise ValueError(problem)
    return value


def _absolute(path: Path) -> Path:
    """Makes a path mean the same to workers, which run in another folder."""
    if len(str(path)) > _LONGEST_PATH:
        raise ValueError(
            f"expected a path of at most {_LONGEST_PATH} characters, got {shown(str(path))}"
        )
    absolute = local_path(path)
    try:
        str(absolute).encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"expected a path in UTF-8, got {shown(str(absolute))}: rename it, or give a link to it"
        ) from None
    return absolute


@dataclass(frozen=True)
class Accepts:
    """What a key accepts, in words, where its type does not say it."""

    text: str


WORKERS = Accepts("whole number >= 1, or a range such as 2..8")

_LARGEST = 1e30
"""Largest number of a setting: float32 holds it, and products with it."""
_MOST_WORKERS = 10_000

Real = Annotated[float, BeforeValidator(_fraction), Field(allow_inf_nan=False)]
_SMALLEST = 1e-30
"""Smallest number above 0 of a setting: float32 holds it, and its inverse."""
_MOST = 10**12


def at_most(largest: float) -> AfterValidator:
    """Refuses numbers that no computation with them could hold."""

    def check(value: Any) -> Any:
        if value is not None and abs(value) > largest:
            raise ValueError(f"expected at most {largest:g}, got {shown(value)}")
        if isinstance(value, float) and 0 < abs(value) < _SMALLEST:
            raise ValueError(f"expected 0 or at least {_SMALLEST:g}, got {shown(value)}")
        return value

    return AfterValidator(check)


Positive = Annotated[Real, Field(gt=0), at_most(_LARGEST)]
NonNegative = Annotated[Real, Field(ge=0), at_most(_LARGEST)]
Share = Annotated[Real, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1), at_most(_MOST)]
Whole = Annotated[int, Field(ge=0), at_most(_MOST)]
Seed = Annotated[int, Field(ge=0), at_most(2**63 - 1)]
Images = Annotated[int, Field(ge=1), at_most(2**20)]
Units = Annotated[int, Field(ge=1), at_most(2**16)]
Duration = Annotated[Real, Field(gt=0), at_most(1e6)]
Workers = Annotated[int | str, BeforeValidator(_workers), WORKERS]
Fractions = Annotated[tuple[Share, ...], BeforeValidator(_comma_separated)]
Name = Annotated[str, AfterValidator(_identifier)]
Choice = BeforeValidator(_lower_case)
Folder = Annotated[Path, BeforeValidator(_no_address), AfterValidator(_absolute)]


class Section(BaseModel):
    """A frozen group of settings; the text under each field is its documentation."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        protected_namespaces=(),
    )


class DataConfig(Section):
    """What is learned from."""

    name: Annotated[str, AfterValidator(_data_set)] = "digits"
    """Data set: digits, cifar10, cifar100, svhn, mnist, fashion-mnist, tiny-imagenet, folder or
    npz."""
    root: Folder | None = None
    """Folder (or .npz file) that holds the data; none: a cache folder, $RAYMI_DATA if set."""
    image_size: Annotated[int, Field(ge=8), at_most(4096)] | None = None
    """Side of the square images that the model sees, in pixels; none: as stored."""
    val_fraction: Annotated[Real, Field(gt=0, lt=1)] = 0.1
    """Share of the training images held out for validation, stratified by class."""
    split_seed: Seed = 0
    """Seed of the validation split; independent of `seed`."""
    download: bool = True
    """Whether missing data may be downloaded (torchvision's sets)."""
    limit: Count | None = None
    """Keep only so many training and test images, for a quick try; none: all."""
    generated: Folder | None = None
    """A .npz file of generated images for training, arrays `image` and `label`; none: real ones
    only. (Public ones come from models that saw all training images, those that are held out for
    validation here too.)"""
    generated_fraction: Share = 0.7
    """Share of each training batch that is generated images, where there are any."""
    crop_padding: Annotated[int, Field(ge=0), at_most(4096)] = 4
    """Zero padding on each side before a random crop, in pixels, below the image's side; 0: off."""
    flip: bool = True
    """Random horizontal flip."""


class ModelConfig(Section):
    """The classifier."""

    name: str = "resnet18"
    """Architecture, or your own as module:function."""
    width: Annotated[Real, Field(gt=0), at_most(256)] | None = None
    """Multiplier of the number of channels; none: the architecture's own."""
    depth: Count | None = None
    """Number of layers; none: the architecture's own."""

    @model_validator(mode="after")
    def _can_be_built(self) -> ModelConfig:
        if ":" not in self.name:  # the user's own is imported when a run begins
            check_model(self.name, image_size=32, width=self.width, depth=self.depth)
        return self


class AttackConfig(Section):
    """The threat model, and the PGD that crafts training samples."""

    norm: Literal["linf", "l2"] = "linf"
    """Norm that bounds the perturbation."""
    eps: NonNegative = 8 / 255
    """Radius of the perturbation, in [0, 1] pixel units."""
    alpha: Positive | None = None
    """Step size of the training attack; none: eps / 4."""
    steps: Whole = 10
    """Steps of the training attack; 0 with start=image: undefended training."""
    start: Literal["ball", "gaussian", "image"] = "ball"
    """Where the training attack begins: at a random point of the ball, at the image plus normal
    noise of 0.001 (as the code of TRADES, MART and NAMID), or at the image itself."""
    projection: Literal["ball-first", "box-first"] = "ball-first"
    """L2: which comes first, into the ball or into [0, 1]; box-first as in TRADES' code (with
    alpha = 2 * eps / steps), which also divides by the bare norm of the gradient."""
    objective: Literal["ce", "kl"] | None = None
    """What the attack maximises: cross-entropy, or KL from the clean output; none: as the loss
    says."""

    @model_validator(mode="after")
    def _radius_in_pixel_units(self) -> AttackConfig:
        largest = 1.0 if self.norm == "linf" else 16.0
        if self.eps > largest:
            raise ValueError(
                f"eps must be at most {largest:g} for {self.norm}, got {self.eps:g}: images are in "
                f"[0, 1], did you mean eps={self.eps:g}/255?"
            )
        if self.alpha is not None and 0 < 2 * self.eps < self.alpha:
            raise ValueError(
                f"alpha must be at most 2 * eps = {2 * self.eps:g}, got {self.alpha:g}: "
                "a longer step only bounces between the walls of the ball"
            )
        return self

    @property
    def step_size(self) -> float:
        """Step size in [0, 1] pixel units: `alpha`, or eps / 4."""
        return self.eps / 4 if self.alpha is None else self.alpha


class LossConfig(Section):
    """The adversarial loss that NAMID builds upon."""

    base: Literal["at", "trades", "mart"] = "at"
    """AT (Madry et al. 2018), TRADES (Zhang et al. 2019) or MART (Wang et al. 2020)."""
    beta: NonNegative | None = None
    """Weight of the robust term of TRADES or MART; none: 6 for TRADES, 5 for MART."""
    label_smoothing: Share = 0.0
    """Label smoothing of AT's cross-entropy."""
    batchnorm: Literal["adversarial", "mix", "released"] = "adversarial"
    """Batches that running BatchNorm statistics follow: the adversarial one, both, or the seven
    forwards of the authors' code. mix with mi.weight=0 is the control for BatchNorm effects."""

    @model_validator(mode="before")
    @classmethod
    def _customary_beta(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("beta") is None:
            usual = {"trades": 6.0, "mart": 5.0}.get(str(values.get("base", "at")))
            values = {**values, "beta": usual}
        return values

    @model_validator(mode="after")
    def _smoothing_is_for_at(self) -> LossConfig:
        if self.label_smoothing > 0 and self.base != "at":
            raise ValueError(f"label_smoothing is defined for base=at only, got base={self.base}")
        return self


class MIConfig(Section):
    """The mutual-information objective and its two estimators.

    `form` sets the defaults of the keys behind it; each can be set alone.
    """

    form: Literal["bounded", "paper", "released", "wmim", "random"] = "bounded"
    """bounded: well-posed by construction; paper: Eq. 4-9 as printed (fragile: unbounded
    objectives); released: what the authors' code computes; wmim: maximise the MI of the whole
    adversarial image (the paper's baseline); random: a random gradient at the logits instead (a
    control)."""
    schedule: Literal["joint", "staged"] = "joint"
    """joint: each step updates the estimators, then the classifier, from the same two forwards;
    staged: as in the paper, AT pretraining, then the estimators, then the classifier from scratch
    with the estimators frozen."""
    pretrained: str | None = None
    """staged: name or folder of an earlier run whose classifier is used instead of pretraining: its
    pretrained one, else its best one without averaging."""
    estimators: str | None = None
    """staged: name or folder of an earlier run whose estimators are used instead of training
    some."""
    pretrain_epochs: Count | None = None
    """staged: epochs of the AT pretraining; none: as many as the classifier's (`optim.epochs`)."""
    estimator_epochs: Count | None = None
    """staged: epochs of the estimators; none: half of `optim.epochs`."""
    weight: NonNegative | None = None
    """Fixed weight of the MI loss (the paper's alpha); 0: MI is off. Excludes `balance`."""
    balance: NonNegative | None = None
    """Sets the weight at each step so that the MI gradient at the logits has this share of the
    adversarial loss's norm. Excludes `weight`."""
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
    wasserstein are f-divergences, objectives and no MI in nats (chi2, wasserstein and others are
    unbounded: keep cosine scores). *-released: as in the authors' code, to compare with."""
    score: Literal["cosine", "dot"] = "cosine"
    """Score of a pair: cosine over `temperature`, or the plain product of LayerNormed features."""
    temperature: Positive = 0.1
    """Temperature of cosine scores."""
    objective: Literal["mim", "contrast", "mim-released", "released"] = "mim"
    """How estimators learn: maximise MI of the matching pair (Eq. 4), the contrast (Eq. 5), or as
    in the authors' code: the adversarial one maximised on misclassified samples only, or
    cosines."""
    clip_contrast: bool = True
    """Contrast: stop pushing the non-matching MI below 0 nats."""
    samples: Literal["all", "selected", "selected-released"] = "all"
    """Samples of the classifier's MI terms: all, or clean-right-adversarial-wrong ones (Eq. 6;
    released: by an argmax after a softmax over the batch)."""
    natural_pattern: Literal["clean", "adversarial"] = "clean"
    """Pattern of the natural critic: the clean image, or the whole adversarial one (WMIM)."""
    gradient: Literal["mi", "random"] = "mi"
    """What is added to the adversarial loss's gradient at the logits: that of the MI loss, or
    Gaussian noise of the same norm (the control for it)."""
    difference: NonNegative = 1.0
    """Weight of adversarial minus natural MI of the adversarial output (lambda in Eq. 8)."""
    cosine: NonNegative = 0.0
    """Weight of the two cosine terms of Eq. 8."""
    clamp: bool = True
    """Stop counting batch means of MI outside of what the bound can mean: dv in [0, log(batch -
    1)], of bounds that are capped by themselves what is minimised below the value of independent
    variables; kl, rkl, chi2, wasserstein and infonce-released are not clamped."""
    natural: bool = True
    """Use the natural-MI terms (ablation ii: false)."""
    adversarial: bool = True
    """Use the adversarial-MI terms (ablation i: false)."""
    negatives: Literal["global", "local"] = "global"
    """Negatives come from the batch of all workers, or from each worker's own share (cheaper)."""
    score_memory: Positive = 256.0
    """MiB that a tensor of scores (own patterns x global batch x locations) may take; larger ones
    are computed in parts, exactly, and held for no backward pass."""
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
        given = {k: v for k, v in form.items() if not (weighted and k in ("weight", "balance"))}
        return {**given, **{k: v for k, v in values.items() if v is not None}}

    @model_validator(mode="after")
    def _one_weight(self) -> MIConfig:
        if self.weight is not None and self.balance is not None:
            raise ValueError(
                f"give either weight or balance, got weight={self.weight:g} and "
                f"balance={self.balance:g}: set the other to none"
            )
        return self

    @model_validator(mode="after")
    def _a_term_is_left(self) -> MIConfig:
        if self.weight == 0 or self.balance == 0 or self.gradient == "random":
            return self
        if not (self.natural or self.adversarial):
            raise ValueError(
                "natural=false and adversarial=false leave no MI term: use one of them, or set "
                "weight=0 to switch MI off"
            )
        if self.difference == 0 and self.cosine == 0:
            raise ValueError(
                "difference=0 and cosine=0 leave no MI term: raise one of them, or set weight=0 "
                "to switch MI off"
            )
        return self

    @model_validator(mode="after")
    def _stages_are_there(self) -> MIConfig:
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
        """Whether there is an MI term at all; without one, training is the base method, bit for
        bit."""
        return self.weight != 0 and self.balance != 0 and (self.natural or self.adversarial)

    @property
    def has_estimators(self) -> bool:
        """Whether the MI term needs estimators: it is on, and no control."""
        return self.enabled and self.gradient == "mi"


class OptimConfig(Section):
    """How the classifier is optimised: SGD with momentum."""

    epochs: Count = 100
    """Passes over the training images."""
    batch_size: Images = 128
    """Images in a global batch, shared by all workers."""
    lr: Positive = 0.1
    """Peak learning rate."""
    momentum: Share = 0.9
    """Momentum of SGD."""
    nesterov: bool = False
    """Nesterov momentum."""
    weight_decay: NonNegative = 5e-4
    """L2 penalty."""
    schedule: Literal["multistep", "cosine", "onecycle", "constant"] = "multistep"
    """Learning rate over the run."""
    milestones: Fractions = (0.75, 0.9)
    """multistep: shares of the run after which the rate is divided by 10."""
    warmup: Share = 0.2
    """onecycle: share of the run in which the rate rises."""
    ema: Share = 0.0
    """Decay of an exponential moving average of the weights, kept beside them (0.999 is usual);
    0: off."""
    awp: NonNegative = 0.0
    """Adversarial weight perturbation: how far the weights move against the loss, relative to
    their norm (0.005 is usual); 0: off."""
    awp_warmup: Share = 0.05
    """Share of the run before weights are perturbed."""


class ScalingConfig(Section):
    """Workers and hardware. With synchronised BatchNorm none of it but `micro_batch` changes the
    mathematics of a step; `precision` changes its rounding."""

    workers: Workers = 1
    """Number of workers that share each global batch. A range such as 2..8 is elastic: as many as
    the cluster has room for, fewer when a node is lost, more when one comes. More wait for a
    checkpoint; a loss costs the work since the last one, which checkpoint.every_minutes bounds."""
    use_gpu: Annotated[Literal["auto", "true", "false"], Choice] = "auto"
    """One GPU for each worker; auto: where there are enough of them."""
    cpus_per_worker: Annotated[int, Field(ge=1), at_most(10_000)] = 1
    """CPUs for each worker."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: autocast of the classifier; MI and losses stay in fp32."""
    channels_last: bool = False
    """Memory format of images and convolutions (faster on GPUs)."""
    compile: bool = False
    """torch.compile the classifier's forward."""
    fold_batchnorm: bool = False
    """Attack a twin in which each BatchNorm after a convolution is part of it, while training:
    faster, and another rounding."""
    micro_batch: Images | None = None
    """Images of a worker that go through a network at once; none: its whole share. A smaller number
    takes less memory and one more forward. The losses, MI included, stay those of the global batch,
    but BatchNorm in train mode sees such pieces (one of each worker together), one after the
    other: with BatchNorm, results depend on the number of workers then."""
    sync_batchnorm: bool = True
    """BatchNorm statistics over the batch of all workers."""
    wait_minutes: Annotated[Real, Field(ge=0), at_most(1e6)] = 0.0
    """On a cluster that grows: how long to wait for the CPUs and GPUs that are asked for."""
    max_failures: Whole = 2
    """How often a failed worker group is started again from its last checkpoint; with a range of
    workers: how often without a new checkpoint in between, as lost nodes are failures, too."""

    @property
    def least_workers(self) -> int:
        """Workers without which the run cannot go on."""
        return int(str(self.workers).partition("..")[0])

    @property
    def most_workers(self) -> int:
        """Workers that the run uses where there is room for them."""
        return int(str(self.workers).rpartition("..")[2])

    @property
    def elastic(self) -> bool:
        """Whether the number of workers may change during the run."""
        return self.least_workers < self.most_workers


class ValidationConfig(Section):
    """Measurement on the held-out split during training; it alone picks the best epoch."""

    every: Count = 1
    """Epochs between validations; the last epoch is always validated."""
    steps: Count = 10
    """PGD steps of the validation attack (step size 2.5 * eps / steps)."""
    max_samples: Count | None = None
    """Validate on so many images; none: on all of the split."""


class ProbeConfig(Section):
    """Fresh estimators, trained with a fixed budget on the finished classifier: what the paper's
    Fig. 4 shows. The same for every method, whether it trained with MI or not."""

    steps: Whole = 300
    """Steps of the probes; 0: no probes."""
    batch: Annotated[int, Field(ge=2), at_most(2**20)] = 128
    """Images in a batch of the probes; an estimate is at most its logarithm."""
    units: Units = 128
    """Units H of the probes' feature space."""
    max_samples: Count | None = 10_000
    """Train the probes on so many training images; none: on all."""


class EvaluationConfig(Section):
    """Measurement on the test set after training, of the best and of the last epoch."""

    steps: Count = 40
    """PGD steps of the final attack."""
    alpha: Positive | None = None
    """Its step size; none: eps / 4, as in the paper."""
    block: Images = 256
    """Images that a worker attacks at once."""
    max_samples: Count | None = None
    """Evaluate on so many test images; none: on all."""


class CheckpointConfig(Section):
    """Checkpoints, from which a run continues exactly."""

    keep: Annotated[int, Field(ge=2), at_most(10**6)] = 2
    """Newest checkpoints that are kept."""
    every: Count = 1
    """Epochs between checkpoints; the last epoch always has one."""
    every_steps: Count | None = None
    """Also a checkpoint after so many steps, within epochs; none: at their ends only."""
    every_minutes: Duration | None = None
    """Also a checkpoint once so many minutes have passed since the last one."""


class LimitConfig(Section):
    """How long a run may take."""

    hours: Duration | None = None
    """Hours after which the command writes a checkpoint and ends with exit code 75; none: no
    limit. Counted anew when the run is continued."""


class TrackingConfig(Section):
    """What goes to MLflow, and what is shown."""

    enabled: bool = True
    """Log to MLflow ($MLFLOW_TRACKING_URI, or a SQLite file mlflow.db in the current folder)."""
    experiment: Annotated[str, AfterValidator(_experiment)] = "raymi"
    """MLflow experiment."""
    registered_name: Name | None = None
    """Name in the model registry under which the best model appears; none: raymi-DATASET."""
    log_every: Count = 10
    """Steps between two records of the training metrics."""
    machine_every: Duration | None = 10.0
    """Seconds between two records of how busy each machine is (CPU, memory, disk, network, GPU);
    none: no records."""


class Config(Section):
    """Everything that decides a run."""

    name: Name | None = None
    """Name of the run; none: recipe, date and time. Must be new: an old one is continued by
    resume=NAME."""
    seed: Seed = 0
    """Seed of the initial weights, the data order, the augmentation and the attacks' starts."""
    out: Folder | None = None
    """Folder of the runs; none: ./runs (under `ray job submit`: ~/raymi/runs)."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    attack: AttackConfig = AttackConfig()
    loss: LossConfig = LossConfig()
    mi: MIConfig = MIConfig()
    optim: OptimConfig = OptimConfig()
    scaling: ScalingConfig = ScalingConfig()
    validation: ValidationConfig = ValidationConfig()
    probe: ProbeConfig = ProbeConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    limit: LimitConfig = LimitConfig()
    tracking: TrackingConfig = TrackingConfig()

    @property
    def attack_objective(self) -> str:
        """What the training attack maximises, "ce" or "kl": TRADES' is KL."""
        return self.attack.objective or ("kl" if self.loss.base == "trades" else "ce")

    @model_validator(mode="after")
    def _attack_can_start(self) -> Config:
        attack = self.attack
        if self.attack_objective == "kl" and attack.steps > 0 and attack.start == "image":
            raise ValueError(
                "attack.start must be ball or gaussian for attack.objective=kl (which is TRADES'), "
                "got image: KL has no gradient at the image itself"
            )
        if attack.steps == 0 and attack.start == "gaussian":
            raise ValueError(
                "attack.start must be ball or image for attack.steps=0, got gaussian: without a "
                "step nothing brings its noise back into the ball and [0, 1]"
            )
        return self

    @model_validator(mode="after")
    def _pieces_have_statistics(self) -> Config:
        if self.scaling.micro_batch is not None and self.loss.batchnorm != "adversarial":
            raise ValueError(
                f"scaling.micro_batch needs loss.batchnorm=adversarial, got {self.loss.batchnorm}: "
                "an order of whole batches is not defined for pieces of them"
            )
        return self

    @model_validator(mode="after")
    def _workers_have_samples(self) -> Config:
        if self.optim.batch_size < self.scaling.most_workers:
            raise ValueError(
                f"optim.batch_size must be at least scaling.workers, got {self.optim.batch_size} "
                f"for {self.scaling.workers} workers: it is the global batch that they share"
            )
        if self.mi.enabled and self.optim.batch_size < 2:
            raise ValueError(
                f"optim.batch_size must be at least 2, got {self.optim.batch_size}: an MI estimate "
                "needs negatives (mi.weight=0 switches MI off)"
            )
        return self
