"""Everything that an evaluation needs, found, loaded and checked before any attack begins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from raymi.attacks.catalogue import Threat
from raymi.attacks.suites import Ensemble
from raymi.commands.evaluate.options import (
    Request,
    attacks_of,
    configured,
    images_of,
    requested,
    scaling_of,
)
from raymi.commands.find_model import Found, find_model_source, needs_data
from raymi.config import Config, ScalingConfig
from raymi.data import ImageSet
from raymi.data.augment import to_unit
from raymi.errors import UserError, what_happened
from raymi.evaluation.attack_checks import check_ensembles
from raymi.evaluation.fingerprint import NUM
from raymi.evaluation.model_evaluation import ModelEvaluation, Settings
from raymi.evaluation.model_source import ModelSource, check_classifier
from raymi.evaluation.protocol import block_size
from raymi.evaluation.scheduler import Lookup
from raymi.evaluation.static_checks import StaticChecks, run_static_checks
from raymi.evaluation.transfer import crafting, lookup, transfer_name, transferred
from raymi.evaluation.worker_job import WorkerJob
from raymi.overrides import examine, nest


@dataclass(frozen=True)
class Judged:
    """A classifier that is attacked: as it was named, what was found under that name, and what was
    seen of it without an attack."""

    name: str
    found: Found
    seen: StaticChecks

    @property
    def source(self) -> ModelSource:
        """How it is built again."""
        return self.found.source


@dataclass(frozen=True)
class EvaluationPlan:
    """A checked evaluation.

    `main`, what is reported of each target; `targets` and `surrogates`, classifiers in the order in
    which they were named.
    """

    request: Request
    config: Config
    scaling: ScalingConfig
    images: ImageSet
    data: str
    main: tuple[Ensemble, ...]
    targets: tuple[Judged, ...]
    surrogates: tuple[Judged, ...]

    @property
    def threat(self) -> Threat:
        """What the adversary may do."""
        return Threat(self.config.attack.norm, self.config.attack.eps)

    def work(self, assessments: Iterable[ModelEvaluation]) -> WorkerJob:
        """All that a worker needs.

        Args: assessments, all that are to be made.
        """
        everyone = (*self.surrogates, *self.targets)
        ensembles: dict[str, tuple[Ensemble, ...]] = {}
        for evaluation in assessments:  # a surrogate may be a target, too
            name = evaluation.name
            ensembles[name] = (*ensembles.get(name, ()), *evaluation.ensembles)
        return WorkerJob(
            sources={one.source.name: one.source for one in everyone},
            images=self.images,
            ensembles=ensembles,
            threat=self.threat,
            seed=self.config.seed,
            fingerprint={one.source.name: one.seen.outputs for one in everyone},
        )

    def assessments(self, device: str) -> tuple[list[ModelEvaluation], list[ModelEvaluation]]:
        """Those in which surrogates make samples, and those of the targets, in their order.

        Args: device, "cpu" or "cuda".
        Raises: UserError, StorageError, as `OutcomeStore` does.
        """
        given = self.request.settings.get("evaluation.block")
        common = Settings(
            self.images,
            self.data,
            self.threat,
            seed=self.config.seed,
            block=block_size(len(self.images)) if given is None else self.config.evaluation.block,
            device=device,
            threads=self.scaling.cpus_per_worker,
            results=self.request.results,
        )
        makers = [
            ModelEvaluation(
                common,
                one.source.name,
                one.source.digest,
                main=tuple(crafting(ensemble.name) for ensemble in self.main),
                fingerprint=one.seen.outputs,
            )
            for one in self.surrogates
        ]
        targets = [
            self._of_target(common, one, [m for m in makers if m.name != one.source.name])
            for one in self.targets
        ]
        return makers, targets

    def _of_target(
        self, common: Settings, target: Judged, makers: Sequence[ModelEvaluation]
    ) -> ModelEvaluation:
        """Args: makers, the surrogates that are not the target itself."""
        own = [e for e in self.main if target.seen.differentiable or not _by_gradient(e)]
        made = [
            (transferred(e.name, maker.name, maker.store.identity), e.name, maker.name)
            for e in self.main
            for maker in makers
        ]
        itself = {ensemble.name for ensemble in own}
        return ModelEvaluation(
            common,
            target.source.name,
            target.source.digest,
            main=(*own, *(ensemble for ensemble, _, _ in made)),
            checks=self._checks(target),
            seen=target.seen.findings,
            fingerprint=target.seen.outputs,
            transfer={e.name: (attack, maker) for e, attack, maker in made if attack in itself},
            keep=self.request.keep,
        )

    def made_before(self, makers: Sequence[ModelEvaluation]) -> Lookup:
        """Finds what surrogates made, for the targets."""
        return lookup(
            {
                transfer_name(ensemble.name, maker.name, maker.store.identity): (
                    maker.store,
                    ensemble.name,
                )
                for maker in makers
                for ensemble in self.main
            }
        )

    def made_on(self, attack: str, makers: Sequence[ModelEvaluation]) -> dict[str, str]:
        """By the name of each surrogate under which what an attack made on it is reported."""
        return {
            maker.name: transfer_name(attack, maker.name, maker.store.identity) for maker in makers
        }

    def _checks(self, target: Judged) -> tuple[Ensemble, ...]:
        if not self.request.checks:
            return ()
        return check_ensembles(
            self.request.checks,
            len(self.images.class_names),
            differentiable=target.seen.differentiable,
        )


def planned(words: Sequence[str], tell: Callable[[str], None] = print) -> EvaluationPlan:
    """The evaluation that a command line asks for, with everything checked that can be.

    Args: words; tell, takes a line about what takes a while.
    Raises: UserError with a line for each thing that is wrong.
    """
    request = requested(words)
    given, _ = examine(nest(request.settings))  # where runs are, and how bare weights are built
    names = tuple(dict.fromkeys((*request.surrogates, *request.models)))
    found: dict[str, Found] = {
        name: find_model_source(name, given, which=request.which)
        for name in names
        if not needs_data(name, given)
    }
    config = configured(request, [one.config for one in found.values()])
    scaling = scaling_of(request, config)
    images, data = images_of(request, config, lambda text: tell(f"warning: {text}"))
    num_classes, image_size = len(images.class_names), images.images.shape[-1]
    main = attacks_of(request, config, num_classes)
    for name in names:
        if name not in found:
            found[name] = find_model_source(
                name, given, which=request.which, num_classes=num_classes, image_size=image_size
            )
    tell(f"looking at the outputs of {', '.join(names)}")
    cuda = config.scaling.use_gpu != "false" and torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    judged = _distinct([_judged(name, found[name], images, device) for name in names])
    by_name = dict(zip(names, judged, strict=True))
    plan = EvaluationPlan(
        request,
        config,
        scaling,
        images,
        data,
        main,
        targets=tuple(by_name[name] for name in request.models),
        surrogates=tuple(by_name[name] for name in request.surrogates),
    )
    _refuse_gradients(plan)
    return plan


def _judged(name: str, found: Found, images: ImageSet, device: torch.device) -> Judged:
    """Loads a classifier and looks at its outputs, on a device.

    Raises: UserError where it cannot be built, does not fit the images, or changes as it answers.
    """
    model = found.source.load().to(device)
    check_classifier(name, model, len(images.class_names), images.images.shape[-1])
    some = images.at_most(NUM).to(device)
    try:
        seen = run_static_checks(model, to_unit(some.images), some.labels)
    except Exception as error:
        raise UserError(f"{name} cannot be attacked: {what_happened(error)}") from error
    if (refusal := seen.changes.refusal()) is not None:
        raise UserError(f"{name} cannot be evaluated: {refusal}")
    return Judged(name, found, seen)


def _refuse_gradients(plan: EvaluationPlan) -> None:
    """Raises: UserError where an attack by gradients could not begin."""
    attacked = plan.surrogates or plan.targets  # of a target a surrogate's samples may be all
    blind = [one.name for one in attacked if not one.seen.differentiable]
    attacks = {a.name for ensemble in plan.main for a in ensemble.attacks if a.by_gradient}
    if blind and attacks:
        raise UserError(
            f"the outputs of {', '.join(blind)} do not depend on the images as autograd sees it, "
            f"and {', '.join(sorted(attacks))} need gradients: let the network compute in torch "
            "without detach() or no_grad(), give attacks=square, or a surrogate=... that has them"
        )


def _by_gradient(ensemble: Ensemble) -> bool:
    return any(attack.by_gradient for attack in ensemble.attacks)


def _distinct(found: Sequence[Judged]) -> tuple[Judged, ...]:
    """With names of their own: of two that are called alike the second gets a number.

    Raises: UserError where two are the same network.
    """
    kept: dict[str, Judged] = {}
    for one in found:
        twin = next((o for o in kept.values() if _are_the_same(o, one)), None)
        if twin is not None:
            raise UserError(
                f"{twin.name} and {one.name} are the same network: give one of the two names"
            )
        name, number = one.source.name, 2
        while name in kept:
            name, number = f"{one.source.name}-{number}", number + 1
        source = replace(one.source, name=name)
        kept[name] = replace(one, found=replace(one.found, source=source))
    return tuple(kept.values())


def _are_the_same(one: Judged, other: Judged) -> bool:
    same = one.source.digest == other.source.digest
    return same and one.seen.outputs.are_those_of(other.seen.outputs)
