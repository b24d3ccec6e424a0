"""How a script of scripts/ starts: options from its dataclass, its docstring as help, one line and exit 2 for a user's fault."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import tyro

from lsm.errors import UserError

Options = TypeVar("Options")


def run_script(main: Callable[[Options], None], options: type[Options], description: str | None) -> None:
    """Parse the command line into `options` and call `main` with them."""
    try:
        main(tyro.cli(options, description=description))
    except UserError as error:
        print(f"{Path(sys.argv[0]).stem}: {error}", file=sys.stderr)
        raise SystemExit(2) from error
