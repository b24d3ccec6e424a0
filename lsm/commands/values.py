"""What options may hold: parts and numbers separated by commas, numbers that are large enough, and only options of the action asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lsm.errors import UserError


def comma_separated(value: str) -> list[str]:
    """The parts of an option's value, each once."""
    return list(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))


def whole_numbers(value: str, option: str) -> list[int]:
    """The whole numbers in an option's value; raises `UserError` for anything else and for none."""
    try:
        numbers = [int(part) for part in comma_separated(value)]
    except ValueError:
        numbers = []
    if not numbers:
        raise UserError(f"{option} {value or '(nothing)'}: give whole numbers separated by commas")
    return numbers


def refuse_foreign(options: Any, of_action: Mapping[str, Sequence[str]], *, verb: str) -> None:
    """Raise `UserError` for an option that belongs to other actions only; `of_action` names the options that not all actions share."""
    foreign = {name for names in of_action.values() for name in names} - set(of_action[options.action])
    if given := sorted(name for name in foreign if getattr(options, name) != getattr(type(options), name)):
        raise UserError(f"--{given[0].replace('_', '-')} is no option of lsm {verb} {options.action}; leave it out")


def refuse_below(options: Any, smallest: Mapping[str, int]) -> None:
    """Raise `UserError` for a number below the one named for its option."""
    for name, least in smallest.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least {least}")
