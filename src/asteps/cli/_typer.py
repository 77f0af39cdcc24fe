"""Typer, or an error that says what to install; and what makes it quick."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ..errors import MissingDependencyError

try:
    from typer import Argument, Context, Exit, Option, Typer, TyperException
    from typer.main import get_command
except ImportError as exc:
    raise MissingDependencyError("typer", "cli") from exc

__all__ = ["Argument", "Context", "Exit", "Option", "Typer", "TyperException", "quick_command"]


def quick_command(app: Typer) -> Any:
    """The command of an application all of whose arguments and options are texts and flags.

    A recent Typer imports pydantic to convert them, which takes as long as all the rest together.
    There is nothing to convert.
    """
    command: Any = get_command(app)
    for each in (command, *command.commands.values()):
        _take_as_given(each)
    return command


def _take_as_given(command: Any) -> None:
    all_parameters = command.get_params

    def get_params(context: Context) -> list[Any]:
        parameters: list[Any] = all_parameters(context)
        for parameter in parameters:
            if "process_value" not in vars(parameter):
                parameter.process_value = partial(_given, parameter, parameter.process_value)
        return parameters

    command.get_params = get_params


def _given(parameter: Any, convert: Callable[..., Any], context: Context, value: Any) -> Any:
    if parameter.callback is None or value is None:
        if isinstance(value, str) or (value is None and not parameter.required):
            return value
        if isinstance(value, list | tuple) and (value or not parameter.required):
            return [*value] or None
    return convert(context, value)
