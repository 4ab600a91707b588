"""Settings of the adversarial loss, composed of each registered loss's settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, create_model, model_validator

from raymi.errors import did_you_mean
from raymi.fields import Accepts, Section
from raymi.formatting import as_typed, shown
from raymi.losses.registry import losses


def _known(value: str) -> str:
    if value not in losses() and ":" not in value:
        raise ValueError(
            f"unknown loss {shown(value)}: {did_you_mean(value, losses())} (your own is named "
            "module:name)"
        )
    return value


_NAMES = " | ".join((*losses(), "module:name"))
Base = Annotated[str, AfterValidator(_known), Accepts(_NAMES)]


class _LossConfig(Section):
    """Adversarial loss, to which the MI term is added."""

    base: Base = Field(
        "at",
        description="Loss: "
        + "".join(f"{name} ({one.title}), " for name, one in losses().items())
        + "or your own (docs/extending.md).",
    )
    batchnorm: Literal["adversarial", "mix", "released"] = "adversarial"
    """Batches that update the running BatchNorm statistics: the adversarial one, both (mix), or
    the seven forwards of the authors' code. mix with mi.weight=0 is the control for this effect."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_loss(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        given = {key: value for key, value in values.items() if value is not None}
        chosen = losses().get(str(values.get("base", "at")))
        return values if chosen is None else chosen.Settings().model_dump() | given

    @model_validator(mode="after")
    def _settings_are_of_the_loss(self) -> _LossConfig:
        if self.base not in losses():
            return self  # its module is imported when a run begins
        chosen = losses()[self.base].Settings.model_fields
        for key in loss_keys():
            value = getattr(self, key)
            if value is not None and key not in chosen:
                users = [name for name, one in losses().items() if key in one.Settings.model_fields]
                raise ValueError(
                    f"{key} is a setting of base={' | '.join(users)}, got {key}={as_typed(value)} "
                    f"with base={self.base}: remove it"
                )
        return self

    def settings(self, base: str | None = None) -> dict[str, Any]:
        """Returns the given settings that a loss has; None: the chosen one."""
        loss = losses().get(base or self.base)
        keys = loss_keys() if loss is None else loss.Settings.model_fields
        return {key: value for key in keys if (value := getattr(self, key)) is not None}


def loss_keys() -> list[str]:
    """Returns the keys of `loss` that depend on `loss.base`."""
    return list(dict.fromkeys(k for one in losses().values() for k in one.Settings.model_fields))


def _composed(key: str) -> Any:
    """Returns type and field of a key; none: the default of the chosen loss."""
    users = {
        name: one.Settings.model_fields[key]
        for name, one in losses().items()
        if key in one.Settings.model_fields
    }
    first = next(iter(users.values()))
    texts = {field.description or "": [] for field in users.values()}  # type: dict[str, list[str]]
    for name, field in users.items():
        texts[field.description or ""].append(f"{name}: {as_typed(field.default)}")
    text = " ".join(f"{text} Default of {', '.join(values)}." for text, values in texts.items())
    return first.rebuild_annotation() | None, Field(None, description=text)


if TYPE_CHECKING:

    class LossConfig(_LossConfig):
        """Adversarial loss, to which the MI term is added."""
else:
    LossConfig = create_model(
        "LossConfig",
        __base__=_LossConfig,
        __module__=__name__,
        __doc__=_LossConfig.__doc__,
        **{key: _composed(key) for key in loss_keys()},
    )
