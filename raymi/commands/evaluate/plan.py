"""Plan of an evaluation: classifiers, images and attacks, loaded and checked before any attack."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from raymi.attacks.catalogue import Threat, find_attack
from raymi.attacks.execution import Batch, run_attack
from raymi.attacks.suites import CORRUPTIONS, FEW_CLASSES, Ensemble, ensembles_of
from raymi.commands.evaluate.options import Request, evaluation_config
from raymi.commands.find_model import LocatedModel, find_model_source, needs_data
from raymi.config import Config, ScalingConfig
from raymi.data import ImageSet
from raymi.data.augment import to_unit
from raymi.engine.validation import load_data
from raymi.errors import UserError, what_happened
from raymi.evaluation.attack_checks import check_ensembles
from raymi.evaluation.fingerprint import NUM_IMAGES
from raymi.evaluation.model_evaluation import ModelEvaluation, Settings
from raymi.evaluation.model_source import ModelSource, check_classifier
from raymi.evaluation.protocol import block_size
from raymi.evaluation.scheduler import Lookup
from raymi.evaluation.static_checks import StaticChecks, run_static_checks
from raymi.evaluation.transfer import (
    surrogate_ensemble,
    transfer_ensemble,
    transfer_lookup,
    transfer_name,
)
from raymi.evaluation.worker_job import WorkerJob
from raymi.given import given_in
from raymi.overrides import examine
from raymi.ray_backend.session import check_this_machine, scale_to_fit

_TRIED = 4


@dataclass(frozen=True)
class CheckedModel:
    """Classifier with its static checks.

    Args:
        name: as the user gave it.
        model: model source and origin.
        checks: results of the static checks.
    """

    name: str
    model: LocatedModel
    checks: StaticChecks

    @property
    def source(self) -> ModelSource:
        """Description from which a worker builds the classifier."""
        return self.model.source


@dataclass(frozen=True)
class EvaluationPlan:
    """Checked evaluation.

    Args:
        request: parsed command line.
        config: data, threat and seed.
        scaling: workers.
        images: images to attack.
        data: name of the images.
        main: ensembles to report.
        targets: classifiers to evaluate, in the order of the request.
        surrogates: classifiers that make samples for the targets, likewise.
    """

    request: Request
    config: Config
    scaling: ScalingConfig
    images: ImageSet
    data: str
    main: tuple[Ensemble, ...]
    targets: tuple[CheckedModel, ...]
    surrogates: tuple[CheckedModel, ...]

    @property
    def threat(self) -> Threat:
        """Norm and radius of all attacks."""
        return Threat(self.config.attack.norm, self.config.attack.eps)

    def worker_job(self, evaluations: Iterable[ModelEvaluation]) -> WorkerJob:
        """Returns the job that is sent to workers.

        Args:
            evaluations: all evaluations to run.
        """
        models = (*self.surrogates, *self.targets)
        ensembles: dict[str, tuple[Ensemble, ...]] = {}
        for evaluation in evaluations:  # a surrogate may be a target, too
            name = evaluation.name
            ensembles[name] = (*ensembles.get(name, ()), *evaluation.ensembles)
        return WorkerJob(
            sources={one.source.name: one.source for one in models},
            images=self.images,
            ensembles=ensembles,
            threat=self.threat,
            seed=self.config.seed,
            fingerprint={one.source.name: one.checks.fingerprint for one in models},
            objects=given_in(one.source.build.get("name") for one in models),
        )

    def evaluations(self, device: str) -> tuple[list[ModelEvaluation], list[ModelEvaluation]]:
        """Returns the evaluations of surrogates and of targets, in the order of the request.

        Args:
            device: "cpu" or "cuda".

        Raises:
            UserError: as `OutcomeStore`.
            StorageError: as `OutcomeStore`.
        """
        block = self.request.settings.get("evaluation.block")
        settings = Settings(
            self.images,
            self.data,
            self.threat,
            seed=self.config.seed,
            block=block_size(len(self.images)) if block is None else self.config.evaluation.block,
            device=device,
            threads=self.scaling.cpus_per_worker,
            results=self.request.options.results,
        )
        surrogates = [
            ModelEvaluation(
                settings,
                one.source.name,
                one.source.digest,
                main=tuple(surrogate_ensemble(ensemble.name) for ensemble in self.main),
                fingerprint=one.checks.fingerprint,
            )
            for one in self.surrogates
        ]
        targets = [
            self._of_target(settings, one, [s for s in surrogates if s.name != one.source.name])
            for one in self.targets
        ]
        return surrogates, targets

    def _of_target(
        self, settings: Settings, target: CheckedModel, surrogates: Sequence[ModelEvaluation]
    ) -> ModelEvaluation:
        """Returns the evaluation of a target on itself and on the samples of other surrogates."""
        white_box = [e for e in self.main if target.checks.differentiable or not _needs_gradient(e)]
        transferred = [
            (transfer_ensemble(e.name, one.name, one.store.identity), e.name, one.name)
            for e in self.main
            for one in surrogates
        ]
        names = {ensemble.name for ensemble in white_box}
        return ModelEvaluation(
            settings,
            target.source.name,
            target.source.digest,
            main=(*white_box, *(ensemble for ensemble, _, _ in transferred)),
            checks=self._checks(target),
            static_findings=target.checks.findings,
            fingerprint=target.checks.fingerprint,
            transfer={e.name: (attack, one) for e, attack, one in transferred if attack in names},
            keep=self.request.options.keep,
        )

    def lookup(self, surrogates: Sequence[ModelEvaluation]) -> Lookup:
        """Returns a function that finds the surrogates' samples for the targets."""
        return transfer_lookup(
            {
                name: (one.store, ensemble.name)
                for ensemble in self.main
                for one in surrogates
                for name in self.transfer_names(ensemble.name, [one]).values()
            }
        )

    def transfer_names(self, attack: str, surrogates: Sequence[ModelEvaluation]) -> dict[str, str]:
        """Returns the name of the transfer accuracy under an attack, by surrogate."""
        return {one.name: transfer_name(attack, one.name, one.store.identity) for one in surrogates}

    def _checks(self, target: CheckedModel) -> tuple[Ensemble, ...]:
        if not self.request.options.checks:
            return ()
        return check_ensembles(
            self.request.options.checks,
            len(self.images.class_names),
            differentiable=target.checks.differentiable,
        )


def plan_evaluation(
    request: Request, log: Callable[[str], None] = lambda line: None
) -> EvaluationPlan:
    """Plans and checks the evaluation of a command line.

    Args:
        request: parsed command line.
        log: receives lines about slow parts, and warnings.

    Raises:
        UserError: with a line for each problem.
    """
    options = request.options
    given, _ = examine(request.tree)  # folder of runs, architecture of bare weights
    names = tuple(dict.fromkeys((*options.surrogate, *options.model)))
    models: dict[str, LocatedModel] = {
        name: find_model_source(name, given, which=options.which)
        for name in names
        if not needs_data(name, given)
    }
    config = evaluation_config(request, [one.config for one in models.values()])
    scaling = resolve_scaling(request, config)
    images, data = load_images(request, config, lambda text: log(f"warning: {text}"))
    num_classes, image_size = len(images.class_names), images.images.shape[-1]
    main = select_attacks(request, config, images)
    for name in names:
        if name not in models:
            models[name] = find_model_source(
                name, given, which=options.which, num_classes=num_classes, image_size=image_size
            )
    log(f"checking the outputs of {', '.join(names)}")
    return plan_of_models(request, config, scaling, images, data, main, models)


def plan_of_models(
    request: Request,
    config: Config,
    scaling: ScalingConfig,
    images: ImageSet,
    data: str,
    main: tuple[Ensemble, ...],
    models: Mapping[str, LocatedModel],
) -> EvaluationPlan:
    """Checks classifiers and plans their evaluation.

    Args:
        request: parsed command line.
        config: data, threat and seed.
        scaling: workers.
        images: images to attack.
        data: name of the images.
        main: ensembles to report.
        models: classifiers by the names in the request.

    Raises:
        UserError: a classifier cannot be attacked, or does not suit the images.
    """
    options = request.options
    names = tuple(dict.fromkeys((*options.surrogate, *options.model)))
    cuda = config.scaling.use_gpu != "false" and torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    checked = _distinct([_check_model(name, models[name], images, device) for name in names])
    by_name = dict(zip(names, checked, strict=True))
    plan = EvaluationPlan(
        request,
        config,
        scaling,
        images,
        data,
        main,
        targets=tuple(by_name[name] for name in options.model),
        surrogates=tuple(by_name[name] for name in options.surrogate),
    )
    _refuse_without_gradients(plan)
    _try_attacks(plan, device)
    return plan


def resolve_scaling(request: Request, config: Config) -> ScalingConfig:
    """Returns the requested workers, or as many as fit on this machine or the cluster.

    Raises:
        UserError: this machine has too few cores or GPUs.
    """
    scaling = config.scaling
    if "scaling.workers" not in request.settings:
        scaling = scale_to_fit(scaling)
    check_this_machine(scaling)
    return scaling


def load_images(
    request: Request, config: Config, warn: Callable[[str], None] = warnings.warn
) -> tuple[ImageSet, str]:
    """Loads the images to attack.

    Args:
        request: parsed command line.
        config: of the evaluation.
        warn: receives a warning about images that splits share.

    Returns:
        The images, and the name of the set.

    Raises:
        UserError: settings or files cannot work.
    """
    splits = load_data(config)
    if splits.warning:
        warn(splits.warning)
    split = splits.test if request.options.split == "test" else splits.val
    if not len(split):
        raise UserError(
            f"{config.data.name} has no {request.options.split} images: give another split"
        )
    images, name = (
        split.at_most(request.options.samples),
        f"{config.data.plain_name}-{request.options.split}",
    )
    # A selection has a name of its own, so that its numbers never stand for all images.
    return images, name if len(images) == len(split) else f"{name}-{len(images)}"


def select_attacks(request: Request, config: Config, images: ImageSet) -> tuple[Ensemble, ...]:
    """Returns the ensembles to report, without clean accuracy.

    Raises:
        UserError: with a line for each attack that does not support the threat or the data, and
            for each file of corrupted images that does not fit.
    """
    num_classes = len(images.class_names)
    threat = Threat(config.attack.norm, config.attack.eps)
    if threat.eps == 0:
        usual = "8/255" if threat.norm == "linf" else "0.5"
        raise UserError(f"attack.eps is 0, which allows no perturbation: give eps={usual}, say")
    options = request.options
    names = [name for name in options.reported if name != CORRUPTIONS]
    try:
        ensembles = ensembles_of(names, threat, num_classes)
    except UserError as error:
        few = f"suite={FEW_CLASSES}, " if num_classes < find_attack("apgd-t").least_classes else ""
        remedy = f"choose others ({few}suite=NAME or attacks=A,B), or another threat (attack.norm)"
        raise UserError(f"{error}\n{remedy}") from None
    if CORRUPTIONS not in options.reported:
        return ensembles
    from raymi.attacks.corruptions import corruption_ensembles

    assert options.corruptions is not None
    return (*ensembles, *corruption_ensembles(options.corruptions, images))


def _check_model(
    name: str, located: LocatedModel, images: ImageSet, device: torch.device
) -> CheckedModel:
    """Loads a classifier and runs the static checks.

    Raises:
        UserError: it cannot be built, does not fit the images, or changes in forward passes.
    """
    model = located.source.load().to(device)
    check_classifier(name, model, len(images.class_names), images.images.shape[-1])
    some = images.at_most(NUM_IMAGES).to(device)
    try:
        checks = run_static_checks(model, to_unit(some.images), some.labels)
    except Exception as error:
        raise UserError(f"{name} cannot be attacked: {what_happened(error)}") from error
    if (refusal := checks.changes.refusal()) is not None:
        raise UserError(f"{name} cannot be evaluated: {refusal}")
    return CheckedModel(name, located, checks)


def _refuse_without_gradients(plan: EvaluationPlan) -> None:
    """Refuses attacks by gradients on a network without them.

    Raises:
        UserError: an attack needs gradients that a network does not have.
    """
    attacked = plan.surrogates or plan.targets  # surrogates' samples may be all that targets get
    blind = [one.name for one in attacked if not one.checks.differentiable]
    attacks = {a.name for ensemble in plan.main for a in ensemble.attacks if a.by_gradient}
    if blind and attacks:
        raise UserError(
            f"the outputs of {', '.join(blind)} do not depend on the images as autograd sees it, "
            f"and {', '.join(sorted(attacks))} need gradients: let the network compute in torch "
            "without detach() or no_grad(), give attacks=square, or a surrogate=... that has them"
        )


def _try_attacks(plan: EvaluationPlan, device: torch.device) -> None:
    """Runs attacks with code or images of the user on a few images, before any long work.

    Raises:
        UserError: an attack fails, or returns other samples than it should.
    """
    attacks = [a for ensemble in plan.main for a in ensemble.attacks if a.inputs]
    if not attacks:
        return
    first = (plan.surrogates or plan.targets)[0]
    model, some = first.source.load().to(device), plan.images.at_most(_TRIED).to(device)
    batch = Batch(to_unit(some.images), some.labels, some.places, plan.config.seed)
    for attack in attacks:
        try:
            run_attack(attack, model, batch, plan.threat)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"attack {attack.name!r} failed on {len(some)} images: {what_happened(error)}"
            ) from error


def _needs_gradient(ensemble: Ensemble) -> bool:
    return any(attack.by_gradient for attack in ensemble.attacks)


def _distinct(models: Sequence[CheckedModel]) -> tuple[CheckedModel, ...]:
    """Numbers classifiers that have the same name.

    Raises:
        UserError: two are the same network.
    """
    distinct: dict[str, CheckedModel] = {}
    for one in models:
        twin = next((other for other in distinct.values() if _is_same(other, one)), None)
        if twin is not None:
            raise UserError(
                f"{twin.name} and {one.name} are the same network: give one of the two names"
            )
        name, number = one.source.name, 2
        while name in distinct:
            name, number = f"{one.source.name}-{number}", number + 1
        source = replace(one.source, name=name)
        distinct[name] = replace(one, model=replace(one.model, source=source))
    return tuple(distinct.values())


def _is_same(one: CheckedModel, other: CheckedModel) -> bool:
    same_weights = one.source.digest == other.source.digest
    return same_weights and one.checks.fingerprint.matches(other.checks.fingerprint)
