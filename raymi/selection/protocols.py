"""Numbers are compared only if they answer one question, and under one attack."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from statistics import fmean

from raymi.errors import UserError, did_you_mean
from raymi.selection.candidate import CLEAN, Candidate, Protocol
from raymi.selection.constraints import Constraint

_OTHER_RADIUS = re.compile(r"_([\d.]+eps|any)(-|$)|-from-")
"""In the names of attacks that are no measure of robustness under the threat itself: of another
radius, or with samples made on another model."""


def by_protocol(
    candidates: Sequence[Candidate], metric: str | None, data: str | None, threat: str | None
) -> list[Candidate]:
    """The candidates whose numbers may be compared.

    Numbers of `raymi.evaluate` go before those of the end of a training.

    Args: candidates, at least one; metric, name of an attack, data and threat as a user names them,
        None: any.
    Raises: UserError with what there is, where nothing fits or more than one question is left.
    """
    found = list(candidates)
    names = _names(one.protocol for one in found)
    known = sorted({name for one in found for name in one.attacks})
    if metric == CLEAN or (metric is not None and metric not in known):
        raise UserError(
            f"metric={metric}: expected an attack that the models were measured with: "
            f"{did_you_mean(metric, known)}"
        )
    if metric is not None:
        found = [one for one in found if metric in one.numbers]
    for key, wanted, names_of in (
        ("data", data, lambda q: {q.data, names[_images(q)]}),
        ("threat", threat, lambda q: {q.threat}),
    ):
        if wanted is None:
            continue
        there = sorted({name for one in found for name in names_of(one.protocol)})
        if wanted not in there:
            remedy = did_you_mean(wanted, there)
            raise UserError(f"{key}={wanted}: no model was measured so: {remedy}")
        found = [one for one in found if wanted in names_of(one.protocol)]
    if metric is None and any(not one.protocol.of_training for one in found):
        found = [one for one in found if not one.protocol.of_training]
    protocols = list(dict.fromkeys(one.protocol for one in found))
    if len(protocols) > 1:
        lines = [_choice(one, names[_images(one)], found) for one in protocols]
        raise UserError(
            "accuracies on different images or under different threats cannot be compared; "
            "say which:\n" + "\n".join(sorted(lines))
        )
    return found


def check_names(candidates: Sequence[Candidate], constraints: Iterable[Constraint]) -> None:
    """Refuses constraints on what was measured of none of the candidates.

    Raises: UserError with what there is.
    """
    known = sorted({name for one in candidates for name in one.numbers})
    for constraint in constraints:
        if constraint.name not in known:
            raise UserError(
                f"{constraint}: no model was measured with {constraint.name}: "
                f"{did_you_mean(constraint.name, known)}"
            )


def strongest(candidates: Sequence[Candidate]) -> str:
    """What to rank by where nobody says: AutoAttack, or the attack that leaves least accuracy in
    the mean.

    Raises: UserError where there is none of the radius of the threat.
    """
    names = {name for one in candidates for name in one.attacks if not _OTHER_RADIUS.search(name)}
    if not names:
        there = ", ".join(sorted({name for one in candidates for name in one.attacks}))
        raise UserError(f"metric=NAME is needed, as there is none of the threat itself: {there}")
    if "autoattack" in names:
        return "autoattack"

    def left(name: str) -> float:
        return fmean(one.numbers[name].accuracy for one in candidates if name in one.numbers)

    return min(sorted(names), key=left)


def _names(protocols: Iterable[Protocol]) -> dict[Protocol, str]:
    """What each question's images are called, so that no two sets have one name: of evaluations,
    and of trainings, which no metric shares with them."""
    names: dict[Protocol, str] = {}
    everything = dict.fromkeys(map(_images, protocols))
    for protocol in everything:
        alike = [one for one in everything if one.of_training == protocol.of_training]
        same_name = [one for one in alike if one.data == protocol.data]
        same_images = [one for one in same_name if one.digest == protocol.digest]
        name = protocol.data
        if len(same_name) > 1:
            name += f"@{protocol.digest[:8]}"
        if len(same_images) > 1:
            name += f"-{protocol.num}"
        names[protocol] = name
    return names


def _images(protocol: Protocol) -> Protocol:
    """The question, whatever the threat."""
    return protocol._replace(threat="")


def _choice(protocol: Protocol, name: str, found: Sequence[Candidate]) -> str:
    those = [one for one in found if one.protocol == protocol]
    attacks = ", ".join(sorted({attack for one in those for attack in one.attacks}))
    models = f"{len(those)} model{'s' if len(those) > 1 else ''}"
    return f"  data={name} threat={protocol.threat}  ({models}, {protocol.num} images: {attacks})"
