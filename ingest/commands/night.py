"""The lake: its night, its upkeep, and a first look at both: demo, nightly, verify, quarantine."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import TaskID
from rich.table import Table

from devices.errors import masked
from ingest import demo, listing, night, settings, upkeep
from ingest.commands.options import TEXT, console, json_option, lake_option, progress_bars, store_option, strict_option
from ingest.lake import Lake
from ingest.views import plain, printable

commands = click.Group()


@commands.command(name="demo")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("demo-out"), show_default=True, help="Where to.")
def demo_(out: Path) -> None:
    """The main job on simulated pumps, with nothing else installed.

    PCA pumps over an embedded MQTT broker and subcutaneous pumps over real pseudo terminals → store → lake → sessions → lines.
    A demo lake that is there already is made anew.

    \b
    Example:
      pumpledger demo --out demo-out
    """
    demo.run(out, click.echo, print_page)


@commands.command()
@click.option(
    "--orders",
    type=click.Path(path_type=Path, dir_okay=False),
    help="orders.csv; by default the one in LAKE/pumpledger.toml, else the lake's copy of the last one.",
)
@click.option("--no-orders", is_flag=True, help="That the file names no order is meant: none is in force any more.")
@click.option("--day", type=click.DateTime(["%Y-%m-%d"]), help="Derive what was received on this UTC day; by default all that changed.")
@lake_option
@store_option
@json_option
@strict_option
def nightly(orders: Path | None, no_orders: bool, day: datetime | None, lake: Path, store: Path | None, as_json: bool) -> int:
    """Store → events → sessions → set-ups → lines → worklist, ending with one page.

    \b
    Examples:
      pumpledger nightly --orders orders.csv
      pumpledger nightly --day 2026-03-08
    """
    with progress_bars() as shown:
        bars: dict[str, TaskID] = {}

        def progress(step: str, done: int, total: int) -> None:
            if step not in bars:
                bars[step] = shown.add_task(step, total=total, note="")
            shown.update(bars[step], completed=done, total=total)

        page = night.nightly(
            lake, orders_file=orders, none_meant=no_orders, day=day.date() if day else None, store=store, progress=progress
        )
    if as_json:
        click.echo(json.dumps(plain(asdict(page)), ensure_ascii=False))
    else:
        print_page(page)
    return page.people


def print_page(page: night.Page) -> None:
    """Prints the night's one page."""
    shown = Table(title=f"Night of {page.day} (UTC)", show_header=False, title_justify="left")
    shown.add_column()
    shown.add_column(overflow="fold")
    shown.add_row("orders", escape(_orders(page.orders)))
    shown.add_row("captures received", f"{page.received}" + (f", {page.refused} refused" if page.refused else ""))
    shown.add_row("pumps expected / seen / late", f"{len(page.expected)} / {len(page.seen)} / {len(page.late)}")
    if page.late:
        shown.add_row("late", escape(", ".join(masked(pump) for pump in page.late[:10])) + (" …" if len(page.late) > 10 else ""))
    shown.add_row("minutes infused", f"{page.minutes:,}")
    shown.add_row("lines ready / held / changed", f"{page.ready} / {page.hold} / {page.changed}")
    shown.add_row("worklist", f"{page.worklist} items, {page.people} of them hold a line or a pump")
    Console(highlight=False).print(shown)


def _orders(used: night.OrdersUsed) -> str:
    """Which orders the night derived with, and what to do where nobody named them."""
    how = f"name a file with --orders, or in {settings.NAME}"
    if not used.file:
        return f"none: no pump has a patient; {how}"
    if not used.copy:
        return f"{used.rows} of {used.file}"
    since = f"{used.since:%Y-%m-%d %H:%M}" if used.since else "unknown"
    return f"{used.rows} of the copy kept since {since} UTC, for no file was named: {used.file}. Where orders have changed, {how}"


@commands.command()
@lake_option
@json_option
def verify(lake: Path, as_json: bool) -> None:
    """Re-hash every file, derive everything anew from what was received, and compare. Changes nothing; exit code 1 if it finds anything.

    \b
    Example:
      pumpledger verify --lake lake
    """
    with progress_bars() as shown:
        bar = shown.add_task("verify", total=None, note="")
        found = upkeep.verify(lake, lambda step, done, total: shown.update(bar, description=step, completed=done, total=total))
    if as_json:
        click.echo(json.dumps([asdict(one) for one in found]))
    else:
        for one in found:
            console.print(f"[bold red]{escape(one.code)}[/] {escape(one.message)}")
        click.echo(f"{len(found)} findings." if found else "Every file is whole, and every table is what its captures give.")
    if found:
        click.get_current_context().exit(1)


@commands.group()
def quarantine() -> None:
    """What could not be read, with its bytes.

    \b
    Examples:
      pumpledger quarantine list
      pumpledger quarantine show 3fa2c41b
      pumpledger quarantine discard 3fa2c41b --by reviewer --note "a torn line; read again since"
    """


@quarantine.command(name="list")
@lake_option
@json_option
def quarantine_list(lake: Path, as_json: bool) -> None:
    """The faults that no one is done with yet."""
    rows = upkeep.quarantine(Lake.open(lake))
    if as_json:
        click.echo(json.dumps([_fault(row) for row in rows], ensure_ascii=False))
        return
    shown = []
    for row in rows:
        texts = (masked(row["pump_id"]), row["part"] or f"line {row['offset']}", row["code"], row["message"])
        shown.append([row["fault_id"][:10], *map(printable, texts), str(len(row["raw"]))])
    listing.show(sys.stdout, ("id", "pump", "where", "code", "why", "bytes "), shown)


@quarantine.command(name="show")
@click.argument("ident", metavar="ID")
@lake_option
@json_option
def quarantine_show(ident: str, lake: Path, as_json: bool) -> None:
    """One fault, with its bytes in hex."""
    row = upkeep.fault(Lake.open(lake), ident)
    for name, value in [] if as_json else _fault(row).items():
        click.echo(f"{name:10} {value}")
    if as_json:
        click.echo(json.dumps(_fault(row), ensure_ascii=False))


@quarantine.command(name="retry")
@click.argument("ident", metavar="ID")
@lake_option
def quarantine_retry(ident: str, lake: Path) -> None:
    """Decode its capture with today's code, and say what that gives; the next night derives with it."""
    told = upkeep.retry(Lake.open(lake), ident)
    click.echo(f"{told['records']} records, {told['faults']} faults; this one is {'still there' if told['still'] else 'gone'}.")


@quarantine.command(name="discard")
@click.argument("ident", metavar="ID")
@click.option("--by", type=TEXT, required=True, help="Who is done with it.")
@click.option("--note", type=TEXT, required=True, help="Why.")
@lake_option
def quarantine_discard(ident: str, by: str, note: str, lake: Path) -> None:
    """Take it off the list. Its bytes stay, and so does who said so."""
    upkeep.discard(Lake.open(lake), ident, by=by, note=note)
    click.echo("Taken off the list; its bytes stay.")


def _fault(row: dict[str, Any]) -> dict[str, Any]:
    names = ("fault_id", "pump_id", "capture", "part", "offset", "code", "message")
    return {**{name: row[name] for name in names}, "raw": row["raw"].hex(" ")}
