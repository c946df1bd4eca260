"""Checks of what a user gives; each error says what was got and what was expected."""

import math
from collections.abc import Iterable
from numbers import Integral
from typing import Any

from ddpm.errors import ConfigError


def is_whole(value: Any) -> bool:
    """Whether it is a whole number; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a finite number of at least 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def check_whole(least: int = 1, **numbers: Any) -> None:
    """Raises ConfigError where a setting is no whole number of at least `least`."""
    for name, number in numbers.items():
        if not is_whole(number) or number < least:
            raise ConfigError(f"{name} must be a whole number of at least {least}, got {number!r}")


def check_positive(**factors: Any) -> None:
    """Raises ConfigError where a setting is no finite number above 0."""
    for name, factor in factors.items():
        if not is_number(factor) or factor == 0:
            raise ConfigError(f"{name} must be a number above 0, got {factor!r}")


def check_one_of(known: Iterable[Any], **values: Any) -> None:
    """Raises ConfigError where a setting is none of the known values."""
    known = list(known)
    for name, value in values.items():
        if value not in known:
            raise ConfigError(f"{name} must be one of {', '.join(map(str, known))}, got {value!r}")
