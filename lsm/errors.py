"""What goes wrong for a reason the user can mend."""

from __future__ import annotations


class UserError(Exception):
    """A fault that the user can fix: `lsm` prints the message as one line on stderr and exits 2.

    The message names the file or option concerned, the value found, and the way out.
    """


def missing_extra(module: str, extra: str) -> UserError:
    """The error for an optional dependency that is not installed."""
    return UserError(f"{module} is not installed; run: pip install 'lsm[{extra}]'")
