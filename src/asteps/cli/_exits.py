"""How the command line ends: its exit codes, and which error comes to which."""

from __future__ import annotations

from enum import IntEnum

from ..errors import AstepsError, BusyError, StoreError, UsageError

__all__ = ["Exits", "Stop", "code_of"]


class Exits(IntEnum):
    """What the process says by its exit code; scripts decide by it."""

    DONE = 0  # what was asked for was done; of `watch`: the run is done
    FAILED = 1  # of `watch`: the run has failed; of `doctor`: something is wrong
    USAGE = 2  # the command line, or what it was given, cannot be understood; nothing was done
    NOT_FOUND = 3  # no such store, run, step or file, or more than one run could be meant
    BUSY = 4  # somebody advances the run; nothing was changed
    STORE = 5  # the store could not do it
    UNCONFIRMED = 6  # the answer was no, or nobody could be asked; nothing was changed
    UNFINISHED = 7  # of `watch`: the time was up, and the run had not ended
    BUG = 70
    INTERRUPTED = 130  # Ctrl-C
    NO_READER = 141  # nobody reads the output any more


class Stop(Exception):  # noqa: N818 - an end, and no fault of ours
    """The command ends here.

    Attributes:
        code: The exit code.
        message: The line for the error output; nothing is said without one.
    """

    def __init__(self, code: Exits, message: str = "", /) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


def code_of(error: Exception) -> Exits:
    """The exit code for an error that a verb did not expect."""
    match error:
        case Stop():
            return error.code
        case BusyError():
            return Exits.BUSY
        case StoreError() | OSError():
            return Exits.STORE
        case UsageError() | AstepsError():
            return Exits.USAGE
        case _:
            return Exits.BUG
