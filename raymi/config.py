"""The configuration of a run: one frozen, typed tree in which every key carries its documentation.

A leaf is set as `section.key=value` (see `raymi.overrides`); complete named trees are in
`raymi.recipes`. Everything that can be refused without looking at files or hardware is refused
here, names of data sets and models included. Images, eps and alpha are in [0, 1] pixel units.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from raymi.attacks.settings import AttackConfig
from raymi.data.settings import DataConfig
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
from raymi.losses.settings import LossConfig
from raymi.mi.settings import MIConfig
from raymi.models.settings import ModelConfig

__all__ = [
    "Accepts",
    "AttackConfig",
    "CheckpointConfig",
    "Config",
    "Count",
    "DataConfig",
    "EvaluationConfig",
    "LimitConfig",
    "LossConfig",
    "MIConfig",
    "ModelConfig",
    "OptimConfig",
    "Positive",
    "ProbeConfig",
    "ScalingConfig",
    "Section",
    "TrackingConfig",
    "ValidationConfig",
    "Whole",
    "at_most",
]


def _experiment(value: str) -> str:
    if not 0 < len(value) <= 500:
        raise ValueError(f"expected a name of 1 to 500 characters, got {len(value)} of them")
    return value


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
