"""The command line: its verbs, and what becomes of their errors."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from ._arguments import StoreUrl
from ._crd import crd
from ._doctor import doctor
from ._edit import recover, rename, reset, set_result
from ._exits import Exits, code_of
from ._listing import runs
from ._move import export, import_
from ._output import silence, write_error
from ._remove import prune, rm
from ._report import report
from ._show import show
from ._stats import stats
from ._typer import Exit, Option, Typer, TyperException, quick_command
from ._watch import watch

__all__ = ["app", "run"]

_EPILOG = (
    "Exit codes: 0 done; 1 the watched run failed, or doctor found something; 2 usage; 3 no such "
    "store, run or step; 4 the run is held; 5 the store could not do it; 6 not confirmed; 7 watch "
    "gave up waiting. See docs/command-line.md."
)

app = Typer(
    name="asteps",
    help="Look at stored runs, watch them, and put them right.",
    epilog=_EPILOG,
    rich_markup_mode=None,  # plain help, at once
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:  # noqa: FBT001 - as Typer calls it
    if value:
        from importlib.metadata import version  # noqa: PLC0415 - it takes a while

        sys.stdout.write(f"asteps {version('asteps')}\n")
        raise Exit


def _show_errors(value: bool) -> None:  # noqa: FBT001 - likewise
    if value:
        os.environ["ASTEPS_DEBUG"] = "1"


@app.callback()
def _before_verbs(
    *,
    store: StoreUrl = None,
    debug: Annotated[
        bool,
        Option(
            "--debug",
            callback=_show_errors,
            help="Show where errors come from. [env: ASTEPS_DEBUG=1]",
        ),
    ] = False,
    show_version: Annotated[
        bool,
        Option(
            "--version", "-V", callback=_show_version, is_eager=True, help="Show it, and leave."
        ),
    ] = False,
) -> None:
    """Look at stored runs, watch them, and put them right."""


app.command()(runs)
app.command()(show)
app.command()(report)
app.command()(stats)
app.command()(watch)
app.command()(recover)
app.command()(reset)
app.command()(set_result)
app.command()(rename)
app.command()(rm)
app.command()(prune)
app.command()(export)
app.command("import")(import_)
app.command()(doctor)
app.command()(crd)


def run(arguments: Sequence[str]) -> int:
    """Do what the command line says.

    Returns:
        The exit code.
    """
    _open_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        said = [*arguments] or ["--help"]
        code = quick_command(app).main(said, prog_name="asteps", standalone_mode=False)
        sys.stdout.flush()
    except TyperException as exc:
        write_error(f"{exc.format_message()} (asteps --help)")
        return exc.exit_code
    except KeyboardInterrupt:
        return Exits.INTERRUPTED
    except BrokenPipeError:
        silence(sys.stdout)
        return Exits.NO_READER
    except Exception as exc:  # noqa: BLE001 - the border at which errors become lines
        return _failed(exc)
    return code if isinstance(code, int) else Exits.DONE


def _open_streams() -> None:
    """Whoever started this process may have closed them; then there is nobody to read or ask."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115


def _failed(error: Exception) -> int:
    code = code_of(error)
    if code is Exits.NO_READER:
        silence(sys.stdout)
        return code
    if os.environ.get("ASTEPS_DEBUG"):
        traceback.print_exc()
    message = str(error)
    if code is Exits.BUG:
        message = f"this is a bug: {type(error).__name__}: {message} (ASTEPS_DEBUG=1 shows where)"
    if message:
        write_error(message)
    return code
