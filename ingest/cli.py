"""The command line (docs/design.md §4). Thin: each command calls one function of a room and prints what it gave.

Exit codes: 0 done, 1 failed, 2 usage; with `--strict` 3 for "done, with items that need a person".
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import IO, Any

import click
import pyarrow as pa
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

import simulators
from devices.contract import Anchor, Capture
from devices.errors import InputError, PumpledgerError, masked
from devices.families import families, family
from ingest import demo, docks, explain, files, hub, night, settings, views
from ingest.lake import Lake
from ingest.store import Arrival, Store
from simulators import rig, therapy
from transforms.orders import Orders
from transforms.sessions import FactPolicy

console = Console(stderr=True, highlight=False)

_TABLES = ("sessions", "setups", "days", "lines", "worklist")


class _Commands(click.Group):
    """Turns our errors into *what, why, what to do next* and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PumpledgerError as error:
            if "--json" in sys.argv:
                click.echo(json.dumps({"error": error.code, "what": error.what, "why": error.why, "do": error.do}))
            for style, text in (("bold red", error.what), ("", error.why), ("bold", error.do)):
                if text:
                    console.print(f"[{style}]{escape(text)}[/]" if style else escape(text))
            ctx.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="pumpledger")
def main() -> None:
    """Turns what an infusion pump recorded into what may honestly be billed.

    Read-only to a pump. It proposes; a biller decides.

    \b
    A first look, with simulated pumps:
      pumpledger demo --out demo-out
    A night:
      pumpledger sync /dev/ttyUSB0=paradigm:123456
      pumpledger nightly --orders orders.csv
      pumpledger lines --month 2026-03
    """


def _lake_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--lake",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("lake"),
        envvar="PUMPLEDGER_LAKE",
        show_default=True,
        show_envvar=True,
        help="The lake's folder.",
    )(command)


def _store_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--store", type=click.Path(path_type=Path, dir_okay=False), help="The store's file; by default LAKE/store.sqlite.")(
        command
    )


def _json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(command)


def _strict_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--strict`: exit code 3 if the command gives a true value: something needs a person."""

    @click.option("--strict", is_flag=True, help="Exit with 3 when something needs a person.")
    @wraps(command)
    def run(*args: Any, strict: bool, **kwargs: Any) -> None:
        if command(*args, **kwargs) and strict:
            click.get_current_context().exit(3)

    return run


def _bars() -> Progress:
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


@main.command(name="demo")
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


# --- in -----------------------------------------------------------------------------------------------------------------------


@main.command()
@click.argument("ports", nargs=-1, metavar="[PORT[=PUMP]]...")
@click.option("--family", "family_name", help="The pumps' family; found by asking when left out.")
@_lake_option
@_store_option
@_json_option
def sync(ports: tuple[str, ...], family_name: str | None, lake: Path, store: Path | None, as_json: bool) -> None:
    """Download docked pumps, all ports at once.

    A port is a path or a URL; without one, the ports of LAKE/pumpledger.toml. A download goes on where it stopped; no new
    data is a success. Exit code 1 also when one of several ports failed: what the others gave is stored.

    \b
    Examples:
      pumpledger sync /dev/ttyUSB0=paradigm:123456
      pumpledger sync socket://dock-2:4001 --family paradigm
    """
    night.open_lake(lake)
    wanted = list(ports) or docks.ports(lake)
    if not wanted:
        raise InputError("No port was named.", do=f"Name one, or add a [[dock]] to {lake / settings.NAME}.", code="no_port")
    bars: dict[str, TaskID] = {}
    with _bars() as shown:
        for port in wanted:
            bars[port] = shown.add_task(port, total=None, note="")

        def progress(at: docks.Progress) -> None:
            shown.update(bars[at.port], completed=at.done, total=at.total or None, note=at.note)

        results = docks.sync_all(lake, wanted, store=store, family=family_name, progress=progress)
    failed = 0
    for result in results:
        if "error" in result:
            failed += 1
        if as_json:
            click.echo(json.dumps(result))
        elif "error" in result:
            console.print(f"[bold red]{escape(result['port'])}: {escape(result['line'])}[/]")
        else:
            click.echo(f"{result['port']}: {result['line']}")
    if failed:
        click.get_current_context().exit(1)


@main.command()
@click.option("--broker", help="mqtt://[user:password@]host:port; by default the one in LAKE/pumpledger.toml.")
@_lake_option
@_store_option
def listen(broker: str | None, lake: Path, store: Path | None) -> None:
    """The MQTT hub: store what gateways publish, durably, before it is acknowledged. Ends with Ctrl-C.

    \b
    Example:
      pumpledger listen --broker mqtt://localhost:1883
    """
    night.open_lake(lake)
    url = broker or settings.load(lake).broker
    if url is None:
        raise InputError("No broker was named.", do="Name one with --broker mqtt://host:1883.", code="no_broker")
    hub.listen(url, store or lake / "store.sqlite", show=lambda line: console.print(escape(line)))


@main.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False, exists=True), metavar="FILE...")
@click.option("--family", "family_name", help="The family of these files; found by their bytes when left out.")
@click.option("--model", help="The pump's model, where its files do not tell (Paradigm: 522).")
@click.option("--pump", help="FAMILY:SERIAL, where the files do not tell.")
@click.option("--clock", metavar="PUMP_TIME=UTC", help="A clock anchor: what the pump's clock said, and UTC at that moment.")
@_lake_option
@_store_option
@_json_option
def load(
    paths: tuple[Path, ...],
    family_name: str | None,
    model: str | None,
    pump: str | None,
    clock: str | None,
    lake: Path,
    store: Path | None,
    as_json: bool,
) -> None:
    """Put captured files into the store: history pages, transcripts, JSON lines. Files given together are one download.

    \b
    Examples:
      pumpledger load night-*.jsonl
      pumpledger load page-*.data --family paradigm --model 522 --pump paradigm:123456 \\
          --clock 2026-03-08T06:00:00=2026-03-08T10:00:00Z
    """
    captures = _captures(paths, family_name, model, pump, _anchor(clock))
    night.open_lake(lake)
    now = datetime.now(UTC)
    with Store(store or lake / "store.sqlite") as keep:
        known = sum(keep.has(capture.sha256) for capture in captures)
        keep.append((capture, Arrival(received_at=now, via="file")) for capture in captures)
    pumps = sorted({masked(capture.pump_id) for capture in captures})
    if as_json:
        told = {"files": len(paths), "captures": len(captures), "known": known, "pumps": pumps}
        click.echo(json.dumps(told, ensure_ascii=False))
    else:
        click.echo(f"{len(paths)} files, {len(captures)} captures ({known} known already) of {', '.join(pumps)} are stored.")


def _anchor(text: str | None) -> Anchor | None:
    if text is None:
        return None
    clock, _, utc = text.partition("=")
    try:
        pump_clock, moment = datetime.fromisoformat(clock), datetime.fromisoformat(utc)
    except ValueError:
        raise click.UsageError("--clock is PUMP_TIME=UTC, such as 2026-03-08T06:00:00=2026-03-08T10:00:00Z") from None
    if pump_clock.tzinfo is not None or moment.tzinfo is None:
        raise click.UsageError("--clock: the pump's time has no zone, UTC ends in Z")
    return Anchor(pump_clock=pump_clock, utc=moment.astimezone(UTC))


def _captures(paths: Sequence[Path], family_name: str | None, model: str | None, pump: str | None, anchor: Anchor | None) -> list[Capture]:
    """The captures of files. Raises InputError for a file that no family knows."""
    if pump is not None and not all(pump.partition(":")[::2]):
        raise click.UsageError("--pump is FAMILY:SERIAL")
    by_family: dict[str, list[tuple[str, bytes]]] = {}
    for path in paths:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}.", do="Check the file and its permissions.", code="file") from error
        named = family_name or (pump.partition(":")[0] if pump else None)
        named = named or next((name for name, adapter in families().items() if adapter.recognise(path.name, data)), None)
        if named is None:
            raise InputError(f"{path} is of no family known by its bytes.", do="Name its family with --family.", code="unknown_file")
        by_family.setdefault(named, []).append((path.name, data))
    return [
        capture for name, given in by_family.items() for capture in family(name).read_files(given, pump_id=pump, model=model, anchor=anchor)
    ]


# --- the night ------------------------------------------------------------------------------------------------------------------


@main.command()
@click.option("--orders", type=click.Path(path_type=Path, dir_okay=False), help="orders.csv; by default the last one used.")
@click.option("--day", type=click.DateTime(["%Y-%m-%d"]), help="Derive what was received on this UTC day; by default all that changed.")
@_lake_option
@_store_option
@_json_option
@_strict_option
def nightly(orders: Path | None, day: datetime | None, lake: Path, store: Path | None, as_json: bool) -> int:
    """Store → events → sessions → set-ups → lines → worklist, ending with one page.

    \b
    Examples:
      pumpledger nightly --orders orders.csv
      pumpledger nightly --day 2026-03-08
    """
    with _bars() as shown:
        bars: dict[str, TaskID] = {}

        def progress(step: str, done: int, total: int) -> None:
            if step not in bars:
                bars[step] = shown.add_task(step, total=total, note="")
            shown.update(bars[step], completed=done, total=total)

        page = night.nightly(lake, orders_file=orders, day=day.date() if day else None, store=store, progress=progress)
    if as_json:
        click.echo(json.dumps({**asdict(page), "day": page.day.isoformat()}))
    else:
        print_page(page)
    return page.people


def print_page(page: night.Page) -> None:
    """Prints the night's one page."""
    shown = Table(title=f"Night of {page.day} (UTC)", show_header=False, title_justify="left")
    shown.add_row("captures received", f"{page.received}" + (f", {page.refused} refused" if page.refused else ""))
    shown.add_row("pumps expected / seen / late", f"{len(page.expected)} / {len(page.seen)} / {len(page.late)}")
    if page.late:
        shown.add_row("late", escape(", ".join(masked(pump) for pump in page.late[:10])) + (" …" if len(page.late) > 10 else ""))
    shown.add_row("minutes infused", f"{page.minutes:,}")
    shown.add_row("lines ready / held / changed", f"{page.ready} / {page.hold} / {page.changed}")
    shown.add_row("worklist", f"{page.worklist} items, {page.people} of them hold a line or a pump")
    Console(highlight=False).print(shown)


@main.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False, exists=True), metavar="FILE...")
@click.option("--family", "family_name", required=True, help="The family of these files.")
@click.option("--model", help="The pump's model, where its files do not tell.")
@click.option("--pump", help="FAMILY:SERIAL; by default FAMILY:unknown where the files do not tell.")
@click.option("--clock", metavar="PUMP_TIME=UTC", help="A clock anchor.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The Parquet file to write.")
@_json_option
@_strict_option
def decode(
    paths: tuple[Path, ...], family_name: str, model: str | None, pump: str | None, clock: str | None, output: Path, as_json: bool
) -> int:
    """Files to events, without a store or a lake.

    History pages may be named in any way whose last number is the page number, 0 the newest.

    \b
    Example:
      pumpledger decode page-*.data --family paradigm --model 522 -o events.parquet
    """
    anchor = _anchor(clock)
    try:
        captures = _captures(paths, family_name, model, pump, anchor)
    except InputError:
        if pump is not None or family_name not in families():
            raise
        captures = _captures(paths, family_name, model, f"{family_name}:unknown", anchor)
    events, faults, records = [], 0, 0
    for pump_id in sorted({capture.pump_id for capture in captures}):
        mine = list({capture.sha256: capture for capture in captures if capture.pump_id == pump_id}.values())
        decoded, _, facts = night.facts_of(pump_id, mine, Orders(()), FactPolicy())
        events.append(facts.events)
        faults += decoded.faults.num_rows
        records += decoded.records.num_rows
        for fault in decoded.faults.to_pylist():
            console.print(f"[yellow]{escape(str(fault['part'] or 'line ' + str(fault['offset'])))}: {escape(fault['message'])}[/]")
    whole = pa.concat_tables(events)
    files.replace(output, files.parquet(whole))
    told = {"records": records, "events": whole.num_rows, "faults": faults, "output": str(output)}
    click.echo(json.dumps(told) if as_json else f"{records} records, {whole.num_rows} events, {faults} faults → {output}")
    return faults


# --- out ------------------------------------------------------------------------------------------------------------------------


def _pulls(name: str, what: str) -> None:
    @main.command(
        name=name, help=f"{what}\n\n\b\nExamples:\n  pumpledger {name} --month 2026-03\n  pumpledger {name} --format xlsx -o {name}.xlsx"
    )
    @click.option("--month", metavar="YYYY-MM", help="Only this month.")
    @click.option("--patient", help="Only this patient.")
    @click.option("--payer", help="Only this payer.")
    @click.option("--state", help="Only this state.")
    @click.option("--format", "style", type=click.Choice(["table", "csv", "xlsx", "json", "parquet"]), default="table", show_default=True)
    @click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="The file to write; by default standard output.")
    @_lake_option
    @_json_option
    def pull(
        month: str | None,
        patient: str | None,
        payer: str | None,
        state: str | None,
        style: str,
        output: Path | None,
        lake: Path,
        as_json: bool,
    ) -> None:
        rows = views.select(Lake.open(lake), name, month=month, patient=patient, payer=payer, state=state)
        form = "json" if as_json else style
        stream: IO[Any] = sys.stdout if form == "table" else sys.stdout.buffer
        views.write(rows, name, form, output or stream)


for _name, _what in (
    ("sessions", "Infusion sessions, with their seconds by kind."),
    ("setups", "Set-ups of pump and site."),
    ("days", "Therapy days."),
    ("lines", "Candidate service lines. A biller decides."),
    ("worklist", "What needs a look, and what holds lines."),
):
    _pulls(_name, _what)


@main.command(name="explain")
@click.argument("ident", metavar="ID")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write a page with the timeline drawn.")
@_lake_option
@_json_option
def explain_(ident: str, html: Path | None, lake: Path, as_json: bool) -> None:
    """From any line, session, set-up, event or worklist item back to the raw bytes.

    \b
    Examples:
      pumpledger explain 3fa2c41be07d55aa9c10
      pumpledger explain 3fa2c4 --html line.html
    """
    found = explain.explain(Lake.open(lake), ident)
    if html is not None:
        files.replace_text(html, explain.as_html(found))
        console.print(f"Written: {html}")
    else:
        click.echo(explain.as_json(found) if as_json else explain.as_text(found))


# --- for engineers ----------------------------------------------------------------------------------------------------------------


@main.command()
@click.argument("family_name", metavar="FAMILY")
@click.option("--therapy", "kind", default="sc_continuous", show_default=True, help="sc_continuous, pca, demand_only or insulin_like.")
@click.option("--seed", default=1, show_default=True, help="Equal seeds give equal pumps.")
@click.option("--days", default=3, show_default=True, help="Days of therapy, which end now.")
@click.option("--serial", help="The pump's serial number.")
@click.option("--broker", help="Where a pump that publishes does so: mqtt://HOST:PORT.")
@click.option("--truth", type=click.Path(path_type=Path, dir_okay=False), help="Write what truly happened, as JSON.")
def simulate(family_name: str, kind: str, seed: int, days: int, serial: str | None, broker: str | None, truth: Path | None) -> None:
    """Play a simulated pump: on a serial port whose path is printed, or to an MQTT broker. Ends with Ctrl-C.

    \b
    Examples:
      pumpledger simulate paradigm --therapy insulin_like --truth truth.json
      pumpledger simulate canonical --therapy pca --broker mqtt://localhost:1883
    """
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(days=days)
    script = therapy.therapy(kind, seed, start, days)
    options: dict[str, Any] = {"serial": serial} if serial else {}
    device, told = simulators.family(family_name).simulate(script, seed, now=lambda: datetime.now(UTC), **options)
    if truth is not None:
        files.replace_text(truth, told.to_json())
    with rig.Rig([device], broker=broker) as playing:
        for pump, path in playing.ports.items():
            click.echo(f"{pump} waits at {path}\nDownload it with: pumpledger sync {path}={pump}")
        if broker is not None:
            click.echo(f"{device.pump_id} publishes to {broker} until a hub has receipted it all (pumpledger listen).")
        with suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()
