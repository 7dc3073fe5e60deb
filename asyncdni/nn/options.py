"""Checks of the options that layers and generators take from an experiment file."""

from __future__ import annotations

from typing import TypeGuard

from asyncdni.errors import ConfigError

__all__ = ["check_flags", "check_least", "check_number", "check_positive", "is_whole"]


def is_whole(value: object) -> TypeGuard[int]:
    """Return whether `value` is an int, and not one of the bools, which are ints to Python."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_positive(**options: object) -> None:
    """Raise `ConfigError` for the first of the named options that is no whole number above 0."""
    for name, value in options.items():
        if not is_whole(value) or value < 1:
            raise ConfigError(f"{name} {value!r}: expected a positive whole number")


def check_least(name: str, value: object, least: int) -> None:
    """Raise `ConfigError` unless the option `name` is a whole number of at least `least`."""
    if not is_whole(value) or value < least:
        raise ConfigError(f"{name} {value!r}: expected a whole number of at least {least}")


def check_flags(**options: object) -> None:
    """Raise `ConfigError` for the first of the named options that is no bool."""
    for name, value in options.items():
        if not isinstance(value, bool):
            raise ConfigError(f"{name} {value!r}: expected true or false")


def check_number(name: str, value: object, least: float, most: float) -> None:
    """Raise `ConfigError` unless the option `name` is a number from `least` to `most`."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not least <= value <= most:  # type: ignore[operator]
        raise ConfigError(f"{name} {value!r}: expected a number from {least} to {most}")
