"""`lsm VERB ...`: finds the verb's module, parses its options with tyro, runs it, and turns what went wrong into an exit code."""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import io
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsm import __version__, processes
from lsm.commands import VERBS
from lsm.errors import UserError
from lsm.progress import silenced

if TYPE_CHECKING:
    from lsm.config import CommonOptions

EXIT_DONE, EXIT_USER_FAULT, EXIT_INTERRUPTED, EXIT_TERMINATED = 0, 2, 130, 143


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code: 0 done, 2 the user can mend it (one line on stderr), 130 interrupted, 143 terminated (SIGTERM).

    An exception that is our fault passes through: at the shell a traceback and exit 1. Scripts may call it in process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Before torch loads: waiting OpenMP threads must sleep, not spin; on a busy machine spinning made a step 4 to 20 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if processes.count() > 1:  # or DDP remarks in every process that it looked for unused parameters and found none
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        with _terminable():
            code = _dispatch(arguments)
            sys.stdout.flush()
    except UserError as error:
        if processes.is_first_here():
            print(f"lsm: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_USER_FAULT
    except KeyboardInterrupt as stop:
        terminated = isinstance(stop, _Terminated)
        what = "terminated" if terminated else "interrupted"
        print(f"lsm: {what}; what was finished is kept: resume with the same command", file=sys.stderr)
        return EXIT_TERMINATED if terminated else EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has gone: that is its right. Point stdout elsewhere so that the interpreter's last flush is quiet too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE
    except OSError as error:
        # What no room has explained better: a plot, a log, a report that could not be written.
        from lsm.files import refusal

        line = refusal(error, error.filename or "the output", verb="use")
        if line is None:
            raise
        print(f"lsm: {line}", file=sys.stderr)
        return EXIT_USER_FAULT
    return code


class _Terminated(KeyboardInterrupt):
    """SIGTERM: what cleans up after Ctrl-C cleans up after it."""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Within it SIGTERM ends the work as Ctrl-C does; a second one kills at once.

    Not under torchrun, whose processes may wait in a collective that no Python code leaves, nor where someone else handles it.
    """
    if (
        processes.count() > 1
        or threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return

    def terminate(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise _Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return EXIT_DONE if arguments else EXIT_USER_FAULT
    if arguments[0] in ("-V", "--version", "version"):
        print(f"lsm {__version__}")
        return EXIT_DONE
    name, rest = arguments[0], arguments[1:]
    if name not in VERBS:
        near = difflib.get_close_matches(name, VERBS, n=1)
        raise UserError(f"no verb {name!r}; " + (f"did you mean: lsm {near[0]}" if near else "see: lsm --help"))
    return run_verb(name, rest)


def overview() -> str:
    """The text of `lsm --help`."""
    width = max(map(len, VERBS))
    lines = [f"lsm {__version__}: language models that work on sentence vectors", "", "usage: lsm VERB [OPTIONS]", ""]
    lines += [f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items()]
    lines += ["", "Options of one verb: lsm VERB --help. Every verb takes --json FILE, --device, --seed, --quiet."]
    return "\n".join(lines)


def run_verb(name: str, arguments: list[str]) -> int:
    """Parse `arguments` with the verb's `Options`, run it, and write `--json` when asked for."""
    from lsm.assets import offline

    if offline():  # the hub's library reads its own variable, once, when it is imported
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    module = importlib.import_module(VERBS[name].module)
    options = parse(name, module.Options, arguments)
    if options is None:  # --help has been shown
        return EXIT_DONE
    if options.json and (options.json.is_dir() or not options.json.parent.is_dir()):
        raise UserError(f"--json {options.json}: give a file in a folder that exists")
    start = time.monotonic()
    with silenced(options.quiet or not processes.is_first()):
        results: dict[str, Any] = module.run(options)
    if options.json and processes.is_first():
        from lsm.files import write_json
        from lsm.provenance import report

        write_json(options.json, report(results, seed=options.seed, device=options.device, elapsed_seconds=time.monotonic() - start))
    return int(results.get("exit_code", EXIT_DONE))


def parse(name: str, kind: type[CommonOptions], arguments: list[str]) -> Any:
    """Arguments to an instance of `kind`; None when they ask for `--help`, which is printed.

    When `kind` has a field `settings`, its entries are options without a prefix (`--steps 100`, `--optimizer.lr 1e-3`);
    when it has a field `config` too, the YAML file of `--config` (a path, or the bare name of a shipped one) gives their
    defaults, so that an option overrides an entry.

    Raises:
        UserError: unknown option, missing option, or a value of the wrong kind.
    """
    import tyro

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(_with_settings(kind, arguments), prog=f"lsm {name}", description=VERBS[name].summary, args=arguments)
    except SystemExit as stop:
        if not stop.code:
            return None
        raise UserError(_unboxed(complaint.getvalue())) from stop
    except ValueError as error:  # a settings class found values that do not fit together
        raise UserError(str(error)) from error


def _unboxed(box: str) -> str:
    """Tyro's complaint as one line: the title, the frame (drawn in Unicode or with spaces) and the rules go, the words stay."""
    lines = [line.strip("│ ") for line in box.strip().splitlines()][1:]
    groups = re.split(r"\n[─╰╯-]{4,}", "\n" + "\n".join(lines))
    return "; ".join(" ".join(group.split()) for group in groups if group.strip())


def _with_settings(kind: type[CommonOptions], arguments: list[str]) -> type[Any]:
    import dataclasses
    from typing import Annotated, get_type_hints

    import tyro

    from lsm.config import load_settings, settings_kind_of

    names = {field.name for field in dataclasses.fields(kind)}
    if "settings" not in names:
        return kind
    path = _value_of("--config", arguments) if "config" in names else None
    settings_kind: Any = settings_kind_of(get_type_hints(kind)["settings"], None if path is None else _config_file(path))
    make_default = settings_kind if path is None else functools.partial(load_settings, settings_kind, _config_file(path))
    field = ("settings", Annotated[settings_kind, tyro.conf.arg(name="")], dataclasses.field(default_factory=make_default))
    return dataclasses.make_dataclass(kind.__name__, [field], bases=(kind,), kw_only=True, namespace={"__doc__": kind.__doc__})


def _config_file(value: str) -> Path:
    """A YAML file, or by its bare name (`latent-small`) one that is shipped: in the checkout, or inside the installed package."""
    package = Path(__file__).resolve().parent
    for folder in (package.parent / "configs", package / "_configs"):
        shipped = folder / f"{value}.yaml"
        if shipped.parent == folder and shipped.is_file() and not Path(value).exists():
            return shipped
    return Path(value)


def _value_of(option: str, arguments: list[str]) -> str | None:
    """The last value given to `option`, as `--option VALUE` or `--option=VALUE`."""
    value = None
    for position, argument in enumerate(arguments):
        if argument == "--":
            break
        if argument == option and position + 1 < len(arguments):
            value = arguments[position + 1]
        elif argument.startswith(f"{option}="):
            value = argument.partition("=")[2]
    return value
