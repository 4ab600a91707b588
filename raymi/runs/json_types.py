"""Types of the JSON files in the folders of runs, sweeps and evaluations."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, RootModel

from raymi.runs.events import Count, Evaluation, Finite, Fraction, Number, Which, Whole

_STRICT = ConfigDict(strict=True, frozen=True, extra="ignore", protected_namespaces=())
_EVALUATION_FIELDS = {
    "which",
    "of_epoch",
    "attack",
    "chosen",
    "clean",
    "robust",
    "num",
    "time",
    "epoch",
}
_ATTACK_FIELDS = {"norm", "eps", "steps"}


def _complete(event: Evaluation) -> Evaluation:
    """Refuses an evaluation that lacks a field."""
    missing = sorted(_EVALUATION_FIELDS - set(event)) or sorted(
        _ATTACK_FIELDS - set(event["attack"])
    )
    if missing:
        raise ValueError(f"expected {', '.join(missing)} in an evaluation")
    return event


class About(RootModel[dict[str, str | int | float | bool | None]]):
    """`run.json`: recipe, command, versions, and the id that identifies the run in MLflow."""

    model_config = ConfigDict(strict=True, frozen=True)


class Failure(BaseModel):
    """`failure.json`: the error of a worker that the user can fix."""

    model_config = _STRICT
    message: str


class TrackingState(BaseModel):
    """`tracking.json` of a run: its place in MLflow, and how much was delivered.

    `offset` counts bytes of the journal; `machines` bytes and records of each machine's log.
    """

    model_config = _STRICT
    uri: str
    run_id: str | None = None
    described: bool = False
    offset: Whole = 0
    step: Whole = 0
    epoch_step: Whole = 0
    latest: Whole = 0
    best_robust: Finite | None = None
    evaluations: dict[Which, Annotated[Evaluation, AfterValidator(_complete)]] = {}
    probed: bool = False
    model_ids: dict[Which, str] = {}
    models: dict[Which, str] = {}
    parent: str | None = None
    ended: str | None = None
    machines: dict[str, Annotated[list[Whole], Field(min_length=2, max_length=2)]] = {}
    config_due: bool = False
    starts: Whole = 0


class SweepTracking(BaseModel):
    """`tracking.json` of a sweep: the address of its MLflow store, without a password."""

    model_config = _STRICT
    uri: str


class SavedProbe(BaseModel):
    """`probe-MODEL.json`: estimates of `raymi.probe` in nats, and the settings behind them."""

    model_config = _STRICT
    model: Which
    probe: dict[str, Any]
    attack: str
    validation: dict[str, Any] = {}
    estimates: dict[str, Number]


class ReportThreat(BaseModel):
    """Threat of an evaluation; eps in [0, 1] pixel units."""

    model_config = _STRICT
    norm: Literal["linf", "l2"]
    eps: Annotated[Finite, Field(ge=0)]


class ReportProtocol(BaseModel):
    """Protocol of an evaluation: sha256 of the model and of the images, and the threat."""

    model_config = _STRICT
    model: str
    images: str
    threat: ReportThreat


class ReportResult(BaseModel):
    """Accuracy under one attack, a fraction with its 95% interval."""

    model_config = _STRICT
    name: str
    accuracy: Fraction
    low95: Finite
    high95: Finite
    detail: bool = False


class ReportFinding(BaseModel):
    """Result of a check for signs of false robustness."""

    model_config = _STRICT
    check: str
    suspicious: bool


class SavedReport(BaseModel):
    """`report.json` of an evaluation."""

    model_config = _STRICT
    protocol: ReportProtocol = Field(alias="question")
    data: str
    num: Count
    results: list[ReportResult]
    false_robustness: list[ReportFinding]
