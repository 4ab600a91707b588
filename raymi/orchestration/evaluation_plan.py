"""Everything that an evaluation needs, found, loaded and checked before any attack begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from raymi.attacks.catalogue import Threat
from raymi.attacks.suites import Ensemble
from raymi.config import Config, ScalingConfig
from raymi.data import ImageSet
from raymi.data.augment import to_unit
from raymi.errors import UserError
from raymi.evaluation.assessment import Assessment, Settings
from raymi.evaluation.checks import Examination, check_ensembles, examine_network
from raymi.evaluation.outputs import NUM, difference
from raymi.evaluation.question import block_size
from raymi.evaluation.run import Lookup
from raymi.evaluation.subject import Subject, check_classifier
from raymi.evaluation.transfer import crafting, lookup, transfer_name, transferred
from raymi.evaluation.work import Work
from raymi.orchestration.evaluation_request import (
    Request,
    attacks_of,
    configured,
    images_of,
    requested,
    scaling_of,
)
from raymi.orchestration.subjects import Found, find_subject, needs_data
from raymi.overrides import examine, nest


@dataclass(frozen=True)
class Judged:
    """A classifier that is attacked: as it was named, where it was found, how it is built again,
    and what was seen of it without an attack."""

    name: str
    found: Found
    subject: Subject
    seen: Examination


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

    @property
    def work(self) -> Work:
        """All that a worker needs."""
        makers, targets = self.assessments("cpu")
        everyone = (*self.surrogates, *self.targets)
        ensembles: dict[str, tuple[Ensemble, ...]] = {}
        for assessment in (*makers, *targets):  # a surrogate may be a target, too
            name = assessment.name
            ensembles[name] = (*ensembles.get(name, ()), *assessment.ensembles)
        return Work(
            subjects={one.subject.name: one.subject for one in everyone},
            images=self.images,
            ensembles=ensembles,
            threat=self.threat,
            seed=self.config.seed,
            logits={one.subject.name: one.seen.logits for one in everyone},
        )

    def assessments(self, device: str) -> tuple[list[Assessment], list[Assessment]]:
        """Those in which surrogates make samples, and those of the targets, in their order.

        Args: device, "cpu" or "cuda".
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
            Assessment(
                common,
                one.subject.name,
                one.subject.digest,
                main=tuple(crafting(ensemble.name) for ensemble in self.main),
                logits=one.seen.logits,
            )
            for one in self.surrogates
        ]
        targets = [
            Assessment(
                common,
                one.subject.name,
                one.subject.digest,
                main=(*self.main, *self._transferred(one)),
                checks=self._checks(one),
                outputs=one.seen.findings,
                logits=one.seen.logits,
                transfer=self._transfer(one),
                keep=self.request.keep,
            )
            for one in self.targets
        ]
        return makers, targets

    def made_before(self, makers: Sequence[Assessment]) -> Lookup:
        """Finds what surrogates made, for the targets."""
        return lookup(
            {
                transfer_name(ensemble.name, maker.name, maker.digest): (
                    maker.ledger,
                    ensemble.name,
                )
                for maker in makers
                for ensemble in self.main
            }
        )

    def made_on(self, attack: str) -> dict[str, str]:
        """By the name of each surrogate under which what an attack made on it is reported."""
        return {
            one.subject.name: transfer_name(attack, one.subject.name, one.subject.digest)
            for one in self.surrogates
        }

    def _others(self, target: Judged) -> list[Subject]:
        """The surrogates that are not the target itself."""
        return [one.subject for one in self.surrogates if one.subject is not target.subject]

    def _transferred(self, target: Judged) -> list[Ensemble]:
        return [
            transferred(ensemble.name, other.name, other.digest)
            for ensemble in self.main
            for other in self._others(target)
        ]

    def _transfer(self, target: Judged) -> dict[str, tuple[str, str]]:
        return {
            transfer_name(ensemble.name, other.name, other.digest): (ensemble.name, other.name)
            for ensemble in self.main
            for other in self._others(target)
        }

    def _checks(self, target: Judged) -> tuple[Ensemble, ...]:
        if not self.request.checks:
            return ()
        return check_ensembles(self.request.checks, differentiable=target.seen.differentiable)


def planned(words: Sequence[str]) -> EvaluationPlan:
    """The evaluation that a command line asks for, with everything checked that can be.

    Raises: UserError with a line for each thing that is wrong.
    """
    request = requested(words)
    given, _ = examine(nest(request.settings))  # where runs are, and how bare weights are built
    names = (*request.surrogates, *request.models)
    found: dict[str, Found] = {
        name: find_subject(name, given, which=request.which)
        for name in dict.fromkeys(names)
        if not needs_data(name, given)
    }
    config = configured(request, [one.config for one in found.values()])
    scaling = scaling_of(request, config)
    images, data = images_of(request, config)
    num_classes, image_size = len(images.class_names), images.images.shape[-1]
    main = attacks_of(request, config, num_classes)
    for name in dict.fromkeys(names):
        if name not in found:
            found[name] = find_subject(
                name, given, which=request.which, num_classes=num_classes, image_size=image_size
            )
    judged = _distinct([_judged(name, found[name], images) for name in dict.fromkeys(names)])
    by_name = dict(zip(dict.fromkeys(names), judged, strict=True))
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


def _judged(name: str, found: Found, images: ImageSet) -> Judged:
    """Loads a classifier and looks at its outputs.

    Raises: UserError where it cannot be built, or does not fit the images.
    """
    model = found.subject.load()
    check_classifier(name, model, len(images.class_names), images.images.shape[-1])
    some = images.at_most(NUM)
    seen = examine_network(model, to_unit(some.images), some.labels)
    return Judged(name, found, found.subject, seen)


def _refuse_gradients(plan: EvaluationPlan) -> None:
    """Raises: UserError where an attack by gradients could not begin."""
    blind = [one.name for one in (*plan.targets, *plan.surrogates) if not one.seen.differentiable]
    attacks = {a.name for ensemble in plan.main for a in ensemble.attacks if a.by_gradient}
    if blind and attacks:
        raise UserError(
            f"the outputs of {', '.join(blind)} do not depend on the images as autograd sees it, "
            f"and {', '.join(sorted(attacks))} need gradients: let the network compute in torch "
            "without detach() or no_grad(), or give attacks=square"
        )


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
        name, number = one.subject.name, 2
        while name in kept:
            name, number = f"{one.subject.name}-{number}", number + 1
        kept[name] = replace(one, subject=replace(one.subject, name=name))
    return tuple(kept.values())


def _are_the_same(one: Judged, other: Judged) -> bool:
    if one.subject.digest != other.subject.digest:
        return False
    logits, others = one.seen.logits, other.seen.logits
    return logits is None or others is None or difference(logits, others) == 0
