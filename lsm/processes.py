"""How many processes torchrun started for this work, and which of them this is (torch is not imported for it)."""

from __future__ import annotations

import os


def count() -> int:
    """Processes of the work on all machines; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "MASTER_ADDR" in os.environ else 1


def is_first() -> bool:
    """Whether this process is the one that writes files and prints results."""
    return count() == 1 or os.environ.get("RANK", "0") == "0"


def is_first_here() -> bool:
    """Whether this process is the one of this machine that says what went wrong: most faults meet all processes of a machine alike."""
    return count() == 1 or os.environ.get("LOCAL_RANK", "0") == "0"
