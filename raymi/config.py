"""Configuration of a run: one frozen, typed tree whose fields carry their documentation.

Sections of data, model, attack, loss and MI live with their code. A leaf is set as
`section.key=value` (see `raymi.overrides`); complete named trees are in `raymi.recipes`.
Validation needs no files and no hardware. Images, eps and alpha are in [0, 1] pixel units.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from raymi.attacks.settings import AttackConfig, start_problem
from raymi.data.settings import DataConfig
from raymi.errors import did_you_mean
from raymi.fields import (
    Accepts,
    Choice,
    Count,
    Duration,
    Folder,
    Fractions,
    Images,
    Name,
    NonNegative,
    Positive,
    Real,
    Section,
    Seed,
    Share,
    Units,
    Whole,
    Workers,
    at_most,
)
from raymi.formatting import shown
from raymi.losses.registry import build_loss, losses
from raymi.losses.settings import LossConfig
from raymi.mi.settings import MIConfig
from raymi.models.settings import ModelConfig


def _experiment(value: str) -> str:
    if not 0 < len(value) <= 500:
        raise ValueError(f"expected a name of 1 to 500 characters, got {len(value)}")
    return value


def _optimizer(value: str) -> str:
    if value not in OPTIMIZERS and ":" not in value:
        raise ValueError(
            f"unknown optimiser {shown(value)}: {did_you_mean(value, OPTIMIZERS)} (your own is "
            "named module:function)"
        )
    return value


OPTIMIZERS = {"sgd": (0.1, 5e-4), "adamw": (1e-3, 0.01)}
"""Names of optimisers with their defaults of `optim.lr` and `optim.weight_decay`."""


class OptimConfig(Section):
    """Optimiser of the classifier, and its schedule."""

    name: Annotated[
        str, AfterValidator(_optimizer), Accepts(f"{' | '.join(OPTIMIZERS)} | module:function")
    ] = "sgd"
    """Optimiser: SGD with momentum, AdamW, or your own: a function or class that takes parameters,
    lr= and weight_decay= (docs/extending.md)."""
    epochs: Count = 100
    """Passes over the training images."""
    batch_size: Images = 128
    """Images in a global batch, shared by all workers."""
    lr: Positive = 0.1
    """Peak learning rate; by default 0.1 for sgd, 0.001 for others."""
    momentum: Share = 0.9
    """Momentum of SGD."""
    nesterov: bool = False
    """Nesterov momentum."""
    weight_decay: NonNegative = 5e-4
    """L2 penalty of sgd, decoupled weight decay of adamw; by default 0.01 for others than sgd."""
    clip_norm: Positive | None = None
    """Largest norm of the gradient of all weights over the global batch; longer ones are scaled
    down to it. none: no clipping."""
    schedule: Literal["multistep", "cosine", "onecycle", "constant"] = "multistep"
    """Schedule of the learning rate."""
    milestones: Fractions = (0.75, 0.9)
    """multistep: shares of the run after which the rate is divided by 10."""
    warmup: Share | None = None
    """Share of the run in which the rate rises linearly; none: 0.2 for onecycle, else 0. cosine
    falls over the rest of the run; milestones stay shares of the whole run."""
    ema: Share = 0.0
    """Decay of an exponential moving average of the weights, saved beside them (0.999 is usual);
    0: off."""
    awp: NonNegative = 0.0
    """Adversarial weight perturbation: radius relative to the norm of the weights (0.005 is
    usual); 0: off."""
    awp_warmup: Share = 0.05
    """Share of the run before weights are perturbed."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_optimizer(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("name") is not None:
            lr, weight_decay = OPTIMIZERS.get(str(values["name"]), OPTIMIZERS["adamw"])
            values = {"lr": lr, "weight_decay": weight_decay, **values}
        return values

    @property
    def warmup_share(self) -> float:
        """Share of the run in which the rate rises."""
        default = 0.2 if self.schedule == "onecycle" else 0.0
        return default if self.warmup is None else self.warmup


class ScalingConfig(Section):
    """Workers and hardware.

    With synchronised BatchNorm only `micro_batch` changes the mathematics of a step; `precision`
    changes its rounding.
    """

    workers: Workers = 1
    """Number of workers that share each global batch. A range such as 2..8 is elastic: the run
    shrinks when a node is lost and grows at a checkpoint when nodes join. A lost node costs the
    work since the last checkpoint, which checkpoint.every_minutes limits."""
    use_gpu: Annotated[Literal["auto", "true", "false"], Choice] = "auto"
    """Give each worker one GPU; auto: if the cluster has enough GPUs."""
    cpus_per_worker: Annotated[int, Field(ge=1), at_most(10_000)] = 1
    """CPUs for each worker."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: autocast of the classifier; MI and losses stay in fp32."""
    channels_last: bool = False
    """Memory format of images and convolutions (faster on GPUs)."""
    compile: bool = False
    """torch.compile the classifier's forward."""
    fold_batchnorm: bool = False
    """Train against attacks on a copy whose BatchNorms are folded into the convolutions before
    them: faster, with different rounding."""
    micro_batch: Images | None = None
    """Images of a worker in one forward; none: its whole share. Smaller numbers take less memory
    and one more forward. Losses, MI included, stay those of the global batch, but BatchNorm in
    train mode sees one micro-batch of each worker at a time, so that with BatchNorm results depend
    on the number of workers."""
    sync_batchnorm: bool = True
    """BatchNorm statistics over the batch of all workers."""
    wait_minutes: Annotated[Real, Field(ge=0), at_most(1e6)] = 0.0
    """Minutes to wait for the requested CPUs and GPUs on a cluster that grows."""
    max_failures: Whole = 2
    """Restarts of a failed worker group from its last checkpoint; with a range of workers, where
    lost nodes also count as failures: restarts without a new checkpoint in between."""

    @property
    def least_workers(self) -> int:
        """Minimum number of workers."""
        return int(str(self.workers).partition("..")[0])

    @property
    def most_workers(self) -> int:
        """Maximum number of workers."""
        return int(str(self.workers).rpartition("..")[2])

    @property
    def elastic(self) -> bool:
        """True if the number of workers may change during the run."""
        return self.least_workers < self.most_workers


class ValidationConfig(Section):
    """Evaluation on the held-out split during training, which selects the best epoch."""

    every: Count = 1
    """Epochs between validations; the last epoch is always validated."""
    steps: Count = 10
    """PGD steps of the validation attack (step size 2.5 * eps / steps)."""
    max_samples: Count | None = None
    """Number of validation images; none: all."""


class ProbeConfig(Section):
    """New estimators trained with a fixed budget on the finished classifier.

    Follows the paper's Fig. 4; the same for every method, with or without MI. Each of the four
    estimates and each of their baselines has an estimator of its own.
    """

    steps: Whole = 400
    """Most steps of each estimator; 0: no probes."""
    batch: Annotated[int, Field(ge=2), at_most(2**20)] = 128
    """Images in a batch of the probes, and at least as many candidates in an estimate, which is at
    most the logarithm of their number."""
    units: Units = 128
    """Units H of the probes' feature space."""
    max_samples: Count | None = 10_000
    """Number of training images for the probes; none: all."""


class EvaluationConfig(Section):
    """Evaluation of the best and the last epoch on the test set after training."""

    steps: Count = 40
    """PGD steps of the final attack."""
    alpha: Positive | None = None
    """Step size of the final attack; none: eps / 4, as in the paper."""
    block: Images = 256
    """Images that a worker attacks in one batch."""
    max_samples: Count | None = None
    """Number of test images; none: all."""


class CheckpointConfig(Section):
    """Checkpoints, from which a run resumes exactly."""

    keep: Annotated[int, Field(ge=2), at_most(10**6)] = 2
    """Number of newest checkpoints to keep."""
    every: Count = 1
    """Epochs between checkpoints; the last epoch always has one."""
    every_steps: Count | None = None
    """Steps between additional checkpoints within an epoch; none: at ends of epochs only."""
    every_minutes: Duration | None = None
    """Minutes between additional checkpoints; none: off."""


class LimitConfig(Section):
    """Time limit of a run."""

    hours: Duration | None = None
    """Hours after which the command writes a checkpoint and exits with code 75; none: no limit.
    Restarts from 0 when the run is resumed."""


class TrackingConfig(Section):
    """Logging to MLflow."""

    enabled: bool = True
    """Log to MLflow ($MLFLOW_TRACKING_URI, or a SQLite file mlflow.db in the current folder)."""
    experiment: Annotated[str, AfterValidator(_experiment)] = "raymi"
    """MLflow experiment."""
    registered_name: Name | None = None
    """Name of the best model in the model registry; none: raymi-DATASET."""
    log_every: Count = 10
    """Steps between records of the training metrics."""
    machine_every: Duration | None = 10.0
    """Seconds between records of system metrics (CPU, memory, disk, network, GPU) of each machine;
    none: no records."""


class Config(Section):
    """All settings of a run."""

    name: Name | None = None
    """Name of the run; none: recipe, date and time. Must be new; resume=NAME resumes a run."""
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
        """Objective of the training attack, "ce" or "kl"; by default the one of the loss.

        Imports the user's own loss.
        """
        loss = self.loss
        return self.attack.objective or build_loss(loss.base, loss.settings()).attack_objective

    @model_validator(mode="after")
    def _attack_can_start(self) -> Config:
        attack, own = self.attack, self.loss.base not in losses()
        objective = attack.objective if own else self.attack_objective  # imports no own loss
        if (problem := start_problem(objective, attack)) is not None:
            raise ValueError(problem)
        if attack.steps == 0 and attack.start == "gaussian":
            raise ValueError(
                "attack.start must be ball or image for attack.steps=0, got gaussian: only a step "
                "projects its noise into the ball and [0, 1]"
            )
        return self

    @property
    def soft_targets(self) -> str:
        """Setting that makes targets of the loss soft, as `key=value`; empty: labels."""
        if self.data.mix_images is not None:
            return f"data.mix_images={self.data.mix_images}"
        return "mi.mix=true" if self.mi.mix and self.mi.enabled else ""

    @model_validator(mode="after")
    def _soft_targets_fit(self) -> Config:
        loss = losses().get(self.loss.base)  # the user's own is checked when a run begins
        selects = self.data.mix_images is not None and self.mi.has_estimators
        labelled = {
            f"loss.base={self.loss.base}": loss is not None and not loss.takes_soft_targets,
            f"attack.name={self.attack.name}": self.attack.name != "pgd",
            f"mi.objective={self.mi.objective}": selects and self.mi.objective != "mim",
            f"mi.samples={self.mi.samples}": selects and self.mi.samples != "all",
            "mi.negative_classes=other": selects and self.mi.negative_classes == "other",
            "mi.mix=true": self.data.mix_images is not None and self.mi.mix and self.mi.enabled,
        }
        hard = [key for key, is_on in labelled.items() if is_on]
        if self.soft_targets and hard:
            raise ValueError(
                f"{self.soft_targets} trains on soft targets, but labels are needed by "
                f"{', '.join(hard)}: remove one or the other"
            )
        return self

    @model_validator(mode="after")
    def _micro_batches_have_statistics(self) -> Config:
        if self.scaling.micro_batch is not None and self.loss.batchnorm != "adversarial":
            raise ValueError(
                f"scaling.micro_batch needs loss.batchnorm=adversarial, got {self.loss.batchnorm}: "
                "an order of whole batches is not defined for micro-batches"
            )
        return self

    @model_validator(mode="after")
    def _workers_have_samples(self) -> Config:
        if self.optim.batch_size < self.scaling.most_workers:
            raise ValueError(
                f"optim.batch_size must be at least scaling.workers, got {self.optim.batch_size} "
                f"for {self.scaling.workers} workers: they share the global batch"
            )
        if self.mi.has_estimators and self.optim.batch_size < 2:
            raise ValueError(
                f"optim.batch_size must be at least 2, got {self.optim.batch_size}: an MI estimate "
                "needs negatives (mi.weight=0 switches MI off)"
            )
        return self
