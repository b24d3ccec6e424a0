"""What is written in the value of an option: parts and numbers separated by commas."""

from __future__ import annotations

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
