"""Restriction of candidates to one protocol: the same images, threat and attack."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from statistics import fmean

from raymi.errors import UserError, did_you_mean
from raymi.selection.candidate import CLEAN, Candidate, Protocol
from raymi.selection.constraints import Constraint

_OTHER_THREAT = re.compile(r"_([\d.]+eps|any)(-|$)|-from-|^corruption")
"""Attacks that do not measure white-box robustness at the radius of the threat: other radii,
transfer from another model, and corruptions."""


def by_protocol(
    candidates: Sequence[Candidate], metric: str | None, data: str | None, threat: str | None
) -> list[Candidate]:
    """Returns the candidates of the one protocol that was requested.

    Accuracies of `raymi.evaluate` take precedence over accuracies from the end of a training.

    Args:
        candidates: at least one.
        metric: name of an attack; None: any.
        data: name of the images; None: any.
        threat: such as `linf_8_255`; None: any.

    Raises:
        UserError: where nothing matches or several protocols remain, with the choices.
    """
    matching = list(candidates)
    names = _image_set_names(one.protocol for one in matching)
    known = sorted({name for one in matching for name in one.attacks})
    if metric == CLEAN or (metric is not None and metric not in known):
        raise UserError(
            f"metric={metric}: expected an attack that the models were measured with: "
            f"{did_you_mean(metric, known)}"
        )
    if metric is not None:
        matching = [one for one in matching if metric in one.numbers]
    for key, requested, names_of in (
        ("data", data, lambda protocol: {protocol.data, names[_without_threat(protocol)]}),
        ("threat", threat, lambda protocol: {protocol.threat}),
    ):
        if requested is None:
            continue
        available = sorted({name for one in matching for name in names_of(one.protocol)})
        if requested not in available:
            remedy = did_you_mean(requested, available)
            raise UserError(f"{key}={requested}: no model was measured so: {remedy}")
        matching = [one for one in matching if requested in names_of(one.protocol)]
    if metric is None and any(not one.protocol.of_training for one in matching):
        matching = [one for one in matching if not one.protocol.of_training]
    protocols = list(dict.fromkeys(one.protocol for one in matching))
    if len(protocols) > 1:
        choices = [_choice(one, names[_without_threat(one)], matching) for one in protocols]
        raise UserError(
            "accuracies on different images or under different threats cannot be compared; "
            "choose one:\n" + "\n".join(sorted(choices))
        )
    return matching


def check_names(candidates: Sequence[Candidate], constraints: Iterable[Constraint]) -> None:
    """Checks that each constraint names an accuracy of at least one candidate.

    Raises:
        UserError: with the names that candidates have.
    """
    known = sorted({name for one in candidates for name in one.numbers})
    for constraint in constraints:
        if constraint.name not in known:
            raise UserError(
                f"{constraint}: no model was measured with {constraint.name}: "
                f"{did_you_mean(constraint.name, known)}"
            )


def strongest(candidates: Sequence[Candidate]) -> str:
    """Returns the default attack: AutoAttack, or the one with the lowest mean accuracy.

    Raises:
        UserError: where no attack has the radius of the threat.
    """
    every = {name for one in candidates for name in one.attacks}
    names = sorted(name for name in every if not _OTHER_THREAT.search(name))
    if not names:
        raise UserError(
            "metric=NAME is needed, as no attack has the radius of the threat: "
            + ", ".join(sorted(every))
        )
    if "autoattack" in names:
        return "autoattack"

    def mean_accuracy(name: str) -> float:
        return fmean(one.numbers[name].accuracy for one in candidates if name in one.numbers)

    return min(names, key=mean_accuracy)


def _image_set_names(protocols: Iterable[Protocol]) -> dict[Protocol, str]:
    """Returns a unique name for the image set of each protocol.

    Image sets of evaluations and of trainings may share a name: no attack is in both.
    """
    names: dict[Protocol, str] = {}
    distinct = dict.fromkeys(map(_without_threat, protocols))
    for protocol in distinct:
        same_origin = [one for one in distinct if one.of_training == protocol.of_training]
        same_name = [one for one in same_origin if one.data == protocol.data]
        same_images = [one for one in same_name if one.digest == protocol.digest]
        name = protocol.data
        if len(same_name) > 1:
            name += f"@{protocol.digest[:8]}"
        if len(same_images) > 1:
            name += f"-{protocol.num}"
        names[protocol] = name
    return names


def _without_threat(protocol: Protocol) -> Protocol:
    return protocol._replace(threat="")


def _choice(protocol: Protocol, name: str, candidates: Sequence[Candidate]) -> str:
    """Returns the line of a message that describes a protocol and its models."""
    models = [one for one in candidates if one.protocol == protocol]
    attacks = ", ".join(sorted({attack for one in models for attack in one.attacks}))
    count = f"{len(models)} model{'s' if len(models) > 1 else ''}"
    return f"  data={name} threat={protocol.threat}  ({count}, {protocol.num} images: {attacks})"
