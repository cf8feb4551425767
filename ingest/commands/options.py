"""What commands have in common: options, arguments that are read, bars, where messages go."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False)

FORMATS = ("table", "csv", "xlsx", "json", "parquet")


class _Text(click.types.StringParamType):
    """Words that are Unicode: what they go into is UTF-8."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text as it is."""
        text: str = super().convert(value, param, ctx)
        if any("\ud800" <= c <= "\udfff" for c in text):
            self.fail("it is no UTF-8 text", param, ctx)
        return text


TEXT = _Text()


def lake_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--lake`: which lake it is about."""
    return click.option(
        "--lake",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("lake"),
        envvar="PUMPLEDGER_LAKE",
        show_default=True,
        show_envvar=True,
        help="The lake's folder.",
    )(command)


def store_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--store`: a store elsewhere than in the lake."""
    return click.option("--store", type=click.Path(path_type=Path, dir_okay=False), help="The store's file; by default LAKE/store.sqlite.")(
        command
    )


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--json`, as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(command)


def strict_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--strict`: exit code 3 if the command gives a true value: something needs a person."""

    @click.option("--strict", is_flag=True, help="Exit with 3 when something needs a person.")
    @wraps(command)
    def run(*args: Any, strict: bool, **kwargs: Any) -> None:
        if command(*args, **kwargs) and strict:
            click.get_current_context().exit(3)

    return run


def address(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, int] | None:
    """HOST:PORT as its two halves."""
    if value is None:
        return None
    host, _, port = value.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65_535:
        raise click.BadParameter(f"{value} is not HOST:PORT, such as 0.0.0.0:2575", ctx, param)
    return host.strip("[]"), int(port)


def utc_moment(ctx: click.Context, param: click.Parameter, value: str | None) -> datetime | None:
    """A moment that says that it is UTC, or in which zone it is, as UTC."""
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is None:
            raise ValueError("it has no zone")
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{value} is no moment such as 2026-03-08T02:00Z", ctx, param) from None


def progress_bars() -> Progress:
    """Bars of what is under way; none where nobody watches."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def form_of(asked: str | None, output: Path | None) -> str:
    """The format that was asked for, or that a file's ending says."""
    ending = output.suffix.lower().removeprefix(".") if output else ""
    if ending in FORMATS and asked not in (None, ending):
        raise click.UsageError(f"{output} is to be {asked}, and its ending says {ending}: change one of the two")
    return asked or (ending if ending in FORMATS else "table")
