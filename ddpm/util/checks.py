"""Checks of a user's input; each error names the value that was got and the expected ones."""

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from numbers import Integral
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ddpm.util.errors import ConfigError


def is_whole(value: Any) -> bool:
    """Return whether a value is a whole number; True and False are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Return whether a value is a number of at least 0 that a float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max


def check_whole(least: int = 1, **numbers: Any) -> None:
    """Raise ConfigError if a setting is not a whole number of at least `least`."""
    for name, number in numbers.items():
        if not is_whole(number) or number < least:
            raise ConfigError(f"{name} must be a whole number of at least {least}, got {shown(number)}")


def check_most(most: int, **numbers: Any) -> None:
    """Raise ConfigError if a whole number is larger than `most`."""
    for name, number in numbers.items():
        if number > most:
            raise ConfigError(f"{name} must be at most {most}, got {shown(number)}")


def check_positive(**factors: Any) -> None:
    """Raise ConfigError if a setting is not a finite number above 0."""
    for name, factor in factors.items():
        if not is_number(factor) or factor == 0:
            raise ConfigError(f"{name} must be a number above 0, got {shown(factor)}")


def check_one_of(known: Iterable[Any], **values: Any) -> None:
    """Raise ConfigError if a setting is not one of the known values."""
    known = list(known)
    for name, value in values.items():
        if value not in known:
            raise ConfigError(f"{name} must be one of {', '.join(map(str, known))}, got {shown(value)}")


# The largest whole number that programs in C take.
LARGEST = 2**63 - 1
# The largest factor of an enlargement.
MOST_TIMES = 64


def check_types(config: Any) -> None:
    """Check each field of a dataclass against its type: numbers, words, `Literal`, sequences, mappings, or None.

    The members of a sequence are checked as well; a field of any other type passes.

    Raises:
        ConfigError: a value is of another type, or a number is not finite or too large.
    """
    hints = get_type_hints(type(config))
    for each in fields(config):
        check_type(each.name, getattr(config, each.name), hints[each.name])


def check_type(name: str, value: Any, hint: Any) -> None:
    """Raise ConfigError if a setting is not of the type of a hint, as `check_types` does for each field."""
    if not _fits(value, hint):
        raise ConfigError(f"{name} must be {_described(hint)}, got {shown(value)}")
    if is_whole(value) and abs(value) > LARGEST:
        raise ConfigError(f"{name} must be at most {LARGEST}, got {shown(value)}")


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    kind = get_origin(hint) or hint
    if kind is UnionType:
        return any(_fits(value, part) for part in get_args(hint))
    if kind is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if kind is int:
        return is_whole(value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf
    if kind is Sequence or kind is tuple:
        members = [part for part in get_args(hint) if part is not Ellipsis] or [Any]
        return isinstance(value, list | tuple) and all(any(_fits(v, m) for m in members) for v in value)
    if kind in (Mapping, dict):
        return isinstance(value, Mapping)
    return not isinstance(kind, type) or isinstance(value, kind)


def _described(hint: Any) -> str:
    kind = get_origin(hint) or hint
    if kind is UnionType:
        return " or ".join(_described(part) for part in get_args(hint) if get_origin(part) is not Callable)
    if kind is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if kind is Sequence or kind is tuple:
        return "a list"
    names = {
        int: "a whole number", float: "a number", bool: "true or false", str: "a word", Mapping: "a mapping",
        dict: "a mapping",
    }  # fmt: skip
    return "none" if kind is NoneType else names.get(kind, str(kind))


def counted(count: float, noun: str) -> str:
    """Return a number with its noun, in the singular or plural, such as "1 picture" or "2 pictures"."""
    text = f"{count:g}" if isinstance(count, float) else str(count)
    return f"{text} {noun}" if count == 1 else f"{text} {noun}s"


def shown(value: Any) -> str:
    """Return the text of a value for messages, shortened if it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write whole numbers of more than 4300 digits
        text = "a very large number"
    return text if len(text) <= 80 else f"{text[:77]}..."
