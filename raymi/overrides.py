"""Parser of `key=value` command lines into a validated `Config`.

A key may be shortened to its last part where that is unique (`lr` for `optim.lr`). One `UserError`
lists all problems.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from raymi.config import Config
from raymi.errors import UserError, close_names, did_you_mean
from raymi.fields import NEEDED, Accepts, Listed
from raymi.formatting import as_typed, shortened, shown
from raymi.losses.settings import loss_keys
from raymi.mi.forms.registry import forms
from raymi.mi.settings import foreign_keys
from raymi.models.settings import ModelConfig

Tree = dict[str, Any]
Options = TypeVar("Options", bound=BaseModel)

DEPENDENT = {
    "mi.form": {
        f"mi.{key}" for form in forms().values() for key in form.defaults if key != "hidden"
    },
    "model.name": {f"model.{key}" for key in ModelConfig.model_fields},
    "loss.base": {f"loss.{key}" for key in loss_keys()},
    "optim.name": {"optim.lr", "optim.momentum", "optim.nesterov", "optim.weight_decay"},
}
"""Keys of a recipe that are dropped when the key before them gets another value."""


def leaves(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yields every key that can be set, in the order of the tree, with its pydantic field."""
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from leaves(annotation, f"{prefix}{name}.")
        else:
            yield prefix + (field.alias or name), field


class Words(NamedTuple):
    """Parsed command line.

    Args:
        own: options of the command as text.
        settings: nested tree of unparsed settings of `Config`.
        problems: a line for each invalid word.
        others: words that the command takes as they are.
    """

    own: dict[str, str]
    settings: Tree
    problems: list[str]
    others: list[str]


def split_words(
    words: Sequence[str],
    options: type[BaseModel] = BaseModel,
    is_other: Callable[[str], bool] = lambda word: False,
) -> Words:
    """Separates `key=value`, `--key=value` and `--key value` into options and settings.

    Args:
        words: command line, such as `["recipe=quickstart", "lr=1e-3", "--dry-run"]`.
        options: section of the command's options, which are not in `Config`.
        is_other: returns whether the command takes a word that is no option as it is.

    Returns:
        Options as text, a nested tree of unparsed settings, a line for each word without a value
        and for each unknown, ambiguous or repeated key, and other words.
    """
    own_fields, fields = dict(leaves(options)), dict(leaves())
    known = {**own_fields, **fields, **own_fields}  # the command's own come first
    given: dict[str, list[str]] = {}
    problems: list[str] = []
    others: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        typed, equals, text = word.partition("=")
        dashed = word.startswith("--")
        if dashed:
            typed = typed[2:].replace("-", "_")
        matches = [typed] if typed in known else [k for k in known if k.endswith(f".{typed}")]
        follows = rest[:1] if rest and "=" not in rest[0] and not rest[0].startswith("--") else []
        if is_other(word) and not dashed:
            others.append(word)
        elif not equals and not dashed:
            remedy = _remedy_for_bare_word(word, matches, own_fields, known)
            problems.append(f"expected key=value, got {shown(word)}{remedy}")
        elif len(matches) != 1:
            problems.append(_unknown(typed, matches, known))
            del rest[: 0 if equals else len(follows)]
        else:
            (key,) = matches
            if not equals:
                is_flag = known[key].annotation is bool
                if is_flag:
                    follows = [one for one in follows if one.lower() in ("true", "false")]
                del rest[: len(follows)]
                text = follows[0] if follows else "true" if is_flag else ""
            if not text and (key in own_fields or not equals):
                if NEEDED not in known[key].metadata:  # else `read_options` says what is needed
                    problems.append(f"{key}: expected a value: {typed_as(key, known[key])}")
                continue
            given.setdefault(key, []).append(text)
    problems += [
        f"{key} is given {len(texts)} times, as {', '.join(map(shortened, texts))}: keep one"
        for key, texts in given.items()
        if len(texts) > 1 and set(texts) != {"true"}  # a flag may be given twice
    ]
    last = {key: texts[-1] for key, texts in given.items()}
    own = {key: text for key, text in last.items() if key in own_fields}
    settings = {
        key: None if text.lower() in ("none", "null", "") else text
        for key, text in last.items()
        if key not in own_fields
    }
    return Words(own, nest(settings), problems, others)


def nest(flat: Mapping[str, Any]) -> Tree:
    """Returns `{"a": {"b": 1}}` for `{"a.b": 1}`."""
    tree: Tree = {}
    for key, value in flat.items():
        *sections, leaf = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    return tree


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns `{"a.b": 1}` for `{"a": {"b": 1}}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def overlay(base: Mapping[str, Any], over: Mapping[str, Any]) -> Tree:
    """Returns the nested tree `base` with the leaves of `over` in place of its own.

    Another `mi.form` drops the keys of `base` that forms set or that it does not use, and keeps the
    rest of `mi`, such as capacity and schedule, which belong to the data. Another `model.name`
    drops the rest of `model`, another `loss.base` the weight and the smoothing of the previous
    loss, another `optim.name` the settings of the previous optimiser. `mi.weight` replaces
    `mi.balance` and vice versa, as they exclude each other.
    """
    base_flat, over_flat = flatten(base), flatten(over)
    defaults = dict(leaves())
    for choice, dependent in DEPENDENT.items():
        before = base_flat.get(choice) or defaults[choice].default
        if over_flat.get(choice) not in (None, before):
            if choice == "mi.form":
                dependent = dependent | {f"mi.{k}" for k in foreign_keys(str(over_flat[choice]))}
            base_flat = {k: v for k, v in base_flat.items() if k not in dependent}
    for one, other in (("mi.weight", "mi.balance"), ("mi.balance", "mi.weight")):
        if over_flat.get(one) is not None and over_flat.get(other) is None:
            base_flat.pop(other, None)
    return nest({**base_flat, **over_flat})


def validate(tree: Mapping[str, Any], problems: Sequence[str] = ()) -> Config:
    """Returns the configuration of a nested tree; missing keys have their defaults.

    Args:
        tree: nested settings.
        problems: earlier problems, to be reported together with those of the tree.

    Raises:
        UserError: Lists every invalid value, with what was expected and what came.
    """
    config, more = examine(tree)
    if problems or more:
        raise UserError("\n".join([*problems, *more]))
    return config


def examine(tree: Mapping[str, Any]) -> tuple[Config, list[str]]:
    """Validates a nested tree without raising.

    Returns:
        The configuration, with defaults in invalid sections so that callers can check the rest, and
        a line for each problem.
    """
    broken: set[str] = set()
    problems: list[str] = []
    while True:
        sound = {key: value for key, value in tree.items() if key not in broken}
        try:
            return Config.model_validate(sound), problems
        except ValidationError as error:
            within = [one for one in error.errors() if one["loc"]]
            between = [one for one in error.errors() if not one["loc"]]
            problems += map(_explain, within)
            if not broken & _COMPARED:  # else defaults were compared, not given values
                problems += map(_explain, between)
            worse = broken | ({str(one["loc"][0]) for one in within} or _COMPARED | _ATTACKS)
            if worse == broken:  # a comparison of other sections: no further checks are possible
                return Config(), problems
            broken = worse


_COMPARED = {"optim", "scaling", "mi"}
_ATTACKS = {"attack", "loss"}
"""Sections that `Config` compares with each other."""


def read_options(model: type[Options], given: Mapping[str, str]) -> tuple[Options, list[str]]:
    """Parses the options of a command, which are no settings of a run.

    Args:
        model: section that declares the options.
        given: texts by option, from `split_words`.

    Returns:
        The options, with defaults in place of wrong values, and a line for each wrong value and
        each missing one.
    """
    fields = dict(leaves(model))
    values: dict[str, Any] = {
        key: fields[key].default if text.lower() in ("none", "null") and _is_empty(fields[key])
        else text
        for key, text in given.items()
    }  # fmt: skip
    problems = []
    for key, field in fields.items():
        if NEEDED in field.metadata and key not in given:
            text = " ".join((field.description or "").split()).rstrip(".")
            problems.append(f"{typed_as(key, field)} is needed: {text[:1].lower()}{text[1:]}")
    while True:
        try:
            return model.model_validate(nest(values)), problems
        except ValidationError as error:
            problems += [_explain(one, fields) for one in error.errors()]
            wrong = {_key_of(one) for one in error.errors()} & set(values)
            if not wrong:
                return model.model_construct(), problems
            values = {key: value for key, value in values.items() if key not in wrong}


def resolved_lines(config: Config) -> list[str]:
    """Returns the configuration as `key=value` words that reproduce it on any recipe."""
    return [f"{key}={as_typed(value)}" for key, value in flatten(config.model_dump()).items()]


def expected(field: FieldInfo) -> str:
    """Describes the values that a key accepts: `linf | l2`, `number >= 0`, `true | false`..."""
    return _expected(field.annotation, field.metadata)


def _expected(annotation: Any, limits: Sequence[Any] = ()) -> str:
    for limit in limits:
        if isinstance(limit, Accepts):
            return limit.text
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    if get_origin(annotation) is tuple:
        return f"comma-separated, each a {_expected(get_args(annotation)[0])}"
    kinds = [a for a in get_args(annotation) if a is not type(None)]
    if kinds and type(None) in get_args(annotation):
        return f"{_expected(kinds[0], limits)} | none"
    if kinds:  # Annotated
        return _expected(kinds[0], [*limits, *annotation.__metadata__])
    kind = {float: "number", int: "whole number", bool: "true | false"}.get(annotation, "text")
    return " ".join([kind, " and ".join(_bounds(limits))]).strip()


def _bounds(limits: Sequence[Any]) -> Iterator[str]:
    for limit in limits:
        if isinstance(limit, FieldInfo):
            yield from _bounds(limit.metadata)
        for name, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
            if (bound := getattr(limit, name, None)) is not None:
                yield f"{sign} {bound:g}"


def default_text(field: FieldInfo) -> str:
    """Returns a key's default as it would be typed."""
    default = field.get_default(call_default_factory=True)
    if isinstance(default, Path) and default.is_relative_to(Path.cwd()):
        default = default.relative_to(Path.cwd())
    return "none" if _is_empty(field) else as_typed(default)


def _is_empty(field: FieldInfo) -> bool:
    return field.default is None or field.default == ()


def typed_as(key: str, field: FieldInfo) -> str:
    """Returns how an option is typed, for a usage line: `samples=N`, `split=test|val`."""
    if field.annotation is bool:
        return f"--{key.replace('_', '-')}"
    for one in _metadata(field):
        if isinstance(one, Accepts):
            return f"{key}={one.word}"
    choices = expected(field).removesuffix(" | none")
    if " | " in choices:
        return f"{key}={choices.replace(' | ', '|')}"
    return f"{key}={'NAME' if choices == 'text' else 'N'}"


def _unknown(key: str, matches: Sequence[str], known: Mapping[str, FieldInfo]) -> str:
    if matches:
        return f"key {shown(key)} is ambiguous: expected one of {', '.join(matches)}"
    return f"unknown key {shown(key)}{_suggest(key, known)}"


def _remedy_for_bare_word(
    word: str,
    matches: Sequence[str],
    options: Mapping[str, FieldInfo],
    known: Mapping[str, FieldInfo],
) -> str:
    if matches:
        return f": write {' or '.join(f'{key}=VALUE' for key in matches)}"
    for key, field in options.items():
        for listed in listings(field):
            if word in listed.others or word in listed.lines():
                return f": did you mean {key}={word}?"
    return _suggest(word, known)


def listings(field: FieldInfo) -> list[Listed]:
    """Returns the lists of names in a key's documentation."""
    return [one for one in _metadata(field) if isinstance(one, Listed)]


def _metadata(field: FieldInfo) -> list[Any]:
    """Returns the metadata of a field and of its type, if that may be None."""
    inner = get_args(field.annotation)[:1]
    return [*field.metadata, *(one for kind in inner for one in getattr(kind, "__metadata__", ()))]


def _suggest(word: str, known: Mapping[str, FieldInfo]) -> str:
    """Returns a remedy: similar keys, whole or by their last parts, or the keys of the section."""
    by_leaf: dict[str, str] = {}
    for key in known:
        by_leaf.setdefault(key.rpartition(".")[2], key)
    leaf = word.rpartition(".")[2]
    section = word.rpartition(".")[0]
    inside = [key.rpartition(".")[2] for key in known if section and key.startswith(section + ".")]
    if inside:  # its name, common to all, would make any of them similar
        close = [f"{section}.{name}" for name in close_names(leaf, inside, 2, cutoff=0.6)]
    else:
        close = close_names(word, known, 2, cutoff=0.6)
    close += [by_leaf[name] for name in close_names(leaf, by_leaf, 2, cutoff=0.6)]
    names = [
        f"--{name.replace('_', '-')}"
        if "." not in name and known[name].annotation is bool
        else name
        for name in list(dict.fromkeys(close))[:2]
    ]
    if names:
        return f": did you mean {' or '.join(names)}?"
    return f": {section} has {', '.join(inside)}" if inside else " (--help all lists every key)"


def _key_of(error: Any) -> str:
    return ".".join(str(part) for part in error["loc"] if isinstance(part, str))


def _explain(error: Any, fields: Mapping[str, FieldInfo] | None = None) -> str:
    """Returns one line for an error of pydantic; raymi's validators have complete messages."""
    key = _key_of(error)
    if error["type"] == "value_error":
        message = error["msg"].removeprefix("Value error, ")
        return f"{key}: {message}" if key else message
    fields = dict(leaves()) if fields is None else fields
    if key not in fields:
        return _unknown(key, (), fields)
    accepted, got = expected(fields[key]), error["input"]
    names = [choice for choice in accepted.split(" | ") if " " not in choice]
    typed = got if isinstance(got, str) else shown(got)
    hint = did_you_mean(typed, names, otherwise="") if len(names) > 1 else ""
    text = f"{key}: expected {accepted}, got {'none' if got is None else shown(got)}"
    return f"{text}: {hint}" if hint else text
