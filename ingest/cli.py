"""The command line (docs/design.md §4). Thin: each command calls one function of a room and prints what it gave.

Exit codes: 0 done, 1 failed, 2 usage; with `--strict` 3 for "done, with items that need a person".
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import click
import pyarrow as pa
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

import simulators
from devices.contract import Anchor, Capture
from devices.errors import InputError, PumpledgerError, masked
from devices.families import families
from ingest import (
    demo,
    docks,
    doctor,
    enroll,
    explain,
    files,
    gateway,
    hub,
    mllp,
    night,
    people,
    postgres,
    replay,
    review,
    settings,
    upkeep,
    views,
)
from ingest.lake import Lake
from ingest.store import Arrival, Store
from simulators import rig, therapy
from simulators.link import SerialDevice
from transforms.orders import Orders
from transforms.sessions import FactPolicy

console = Console(stderr=True, highlight=False)

_FORMATS = ("table", "csv", "xlsx", "json", "parquet")
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


def _address(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, int] | None:
    """HOST:PORT as its two halves."""
    if value is None:
        return None
    host, _, port = value.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65_535:
        raise click.BadParameter(f"{value} is not HOST:PORT, such as 0.0.0.0:2575", ctx, param)
    return host.strip("[]"), int(port)


def _utc(ctx: click.Context, param: click.Parameter, value: str | None) -> datetime | None:
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
@click.option(
    "--mllp",
    "mllp_at",
    metavar="HOST:PORT",
    callback=_address,
    help="Take HL7 messages (IHE PCD) over MLLP there too; alone where no broker is named.",
)
@click.option(
    "--hl7-topic",
    "hl7_topics",
    metavar="FILTER",
    multiple=True,
    help="Topics of the broker whose payloads are HL7 messages (IHE PCD) as they are; may be named several times.",
)
@_lake_option
@_store_option
def listen(broker: str | None, mllp_at: tuple[str, int] | None, hl7_topics: tuple[str, ...], lake: Path, store: Path | None) -> None:
    """The MQTT hub: store what gateways publish, durably, before it is acknowledged. Ends with Ctrl-C.

    \b
    Examples:
      pumpledger listen --broker mqtt://localhost:1883
      pumpledger listen --broker mqtt://localhost:1883 --mllp 0.0.0.0:2575
      pumpledger listen --broker mqtt://localhost:1883 --hl7-topic 'pcd/#'
    """
    night.open_lake(lake)
    url = broker or settings.load(lake).broker
    if url is None and mllp_at is None:
        raise InputError("No broker was named.", do="Name one with --broker mqtt://host:1883.", code="no_broker")
    if url is None and hl7_topics:
        raise InputError("--hl7-topic needs a broker.", do="Name one with --broker mqtt://host:1883.", code="no_broker")
    path = store or lake / "store.sqlite"

    def show(line: str) -> None:
        console.print(escape(line))

    with ExitStack() as beside:
        if mllp_at is not None:
            listener = beside.enter_context(mllp.Listener(*mllp_at, path, show=show))
            show(f"MLLP at {mllp_at[0]}:{listener.port}")
        if url is not None:
            hub.listen(url, path, hl7_topics=hl7_topics, show=show)
        else:
            with suppress(KeyboardInterrupt):
                signal.pause()


@main.command(name="ask")
@click.argument("pump", metavar="PUMP")
@click.option("--gateway", "name", metavar="NAME", help="The gateway that read it; by default the one it was last heard from.")
@click.option("--from", "since", metavar="UTC", callback=_utc, help="What the gateway read from then on, as 2026-03-08T02:00Z.")
@click.option("--to", "until", metavar="UTC", callback=_utc, help="What the gateway read before then.")
@click.option("--broker", help="mqtt://[user:password@]host:port; by default the one in LAKE/pumpledger.toml.")
@click.option("--wait", default=10.0, show_default=True, help="So many seconds at most for the gateway's answer.")
@_lake_option
@_store_option
@_json_option
def ask_(
    pump: str,
    name: str | None,
    since: datetime | None,
    until: datetime | None,
    broker: str | None,
    wait: float,
    lake: Path,
    store: Path | None,
    as_json: bool,
) -> None:
    """Ask a gateway to send again what it read of a pump: what a hole in the lake needs.

    It sends what it still has; what it has no more it reads from the pump's dock, if the pump is there. A pump is only ever read.
    PUMP is FAMILY:SERIAL, or with --gateway its alias in topics. Exit code 1 where the gateway can give nothing or does not answer.

    \b
    Examples:
      pumpledger ask paradigm:123456 --from 2026-03-07T00:00Z --to 2026-03-09T00:00Z
      pumpledger ask 3fa2c41be07d55aa --gateway gw1
    """
    url = broker or settings.load(lake).broker
    if url is None:
        raise InputError("No broker was named.", do="Name one with --broker mqtt://host:1883.", code="no_broker")
    alias = pump
    if ":" in pump:
        heard = hub.heard_by(pump, store or lake / "store.sqlite", lake)
        name = name or next(reversed(heard), None)
        if name is None or name not in heard:
            raise InputError(
                f"{masked(pump)} was never heard from {name or 'a gateway'}.",
                do="Name the gateway with --gateway and, instead of the pump, its alias: pl1/GATEWAY/d/ALIAS/cap is its topic.",
                code="never_heard",
            )
        alias = heard[name]
    if name is None:
        raise click.UsageError("an alias needs --gateway")
    answer = hub.ask(url, gateway.checked_name(name), hub.Ask(pump=alias, since=since, until=until), wait_s=wait)
    told = {"gateway": name, "known": answer.known, "again": answer.again, "gone": answer.gone, "reading": answer.reading}
    if as_json:
        click.echo(json.dumps(told))
    elif not answer.known:
        click.echo(f"{name} never read this pump.")
    else:
        parts = [f"{name} sends {answer.again} captures again"] if answer.again else []
        parts += [f"{answer.gone} that it read then it has no more"] if answer.gone else []
        parts = parts or [f"{name} read nothing of this pump in that time"]
        parts += ["it reads the pump anew at its dock"] if answer.reading else []
        click.echo("; ".join(parts) + ".")
        if not answer.reading and (answer.gone or not answer.again):
            click.echo("Its dock is not known there: put the pump in it, and run `pumpledger gateway PORT=PUMP` there.")
    if not answer.again and not answer.reading:
        click.get_current_context().exit(1)


@main.command(name="gateway")
@click.argument("ports", nargs=-1, metavar="[PORT[=PUMP]]...")
@click.option("--broker", help="mqtt://[user:password@]host:port; by default the one in LAKE/pumpledger.toml.")
@click.option("--files", "inbox", type=click.Path(path_type=Path, file_okay=False), help="A folder: what is dropped there is sent.")
@click.option("--name", help="The gateway's opaque name; by default the one in LAKE/pumpledger.toml.")
@click.option("--every", default=15.0, show_default=True, type=click.FloatRange(min=0.1), help="Minutes between two rounds of the docks.")
@click.option("--once", is_flag=True, help="One round, then wait for the hub's receipts, and end.")
@click.option("--wait", default=60.0, show_default=True, help="With --once: so many seconds at most for the receipts.")
@_lake_option
@_json_option
def gateway_(
    ports: tuple[str, ...],
    broker: str | None,
    inbox: Path | None,
    name: str | None,
    every: float,
    once: bool,
    wait: float,
    lake: Path,
    as_json: bool,
) -> None:
    """The edge: docks and dropped files → outbox → MQTT. What is sent leaves the outbox on the hub's receipt alone.

    LAKE is the gateway's own folder: settings, outbox and key. Without a PORT, the ports of its settings; a bridge's pump is named
    mqtt://HOST:PORT/PREFIX/MAC=ids:SERIAL. In the folder of --files a sub-folder named FAMILY:SERIAL holds the files of this pump.
    Ends with Ctrl-C.

    \b
    Examples:
      pumpledger gateway /dev/ttyUSB0=paradigm:123456 --broker mqtts://hub.example:8883?ca=ca.pem
      pumpledger gateway --files /srv/drop --broker mqtt://localhost:1883 --once
    """
    known = settings.load(lake)
    url = broker or known.broker
    if url is None:
        raise InputError("No broker was named.", do="Name one with --broker mqtt://host:1883.", code="no_broker")
    plan = gateway.Plan(
        broker=url, name=name or known.gateway, ports=ports or [dock.port for dock in known.docks], inbox=inbox, every_s=every * 60
    )
    if not once:
        with suppress(KeyboardInterrupt):
            gateway.run(lake, plan, show=lambda line: console.print(escape(line)))
        return
    told = gateway.once(lake, plan, wait_s=wait)
    if as_json:
        click.echo(json.dumps(told, ensure_ascii=False))
    else:
        for result in told["ports"]:
            click.echo(f"{result['port']}: {result['line']}")
        for file, why in told["files"]:
            click.echo(f"{file}: {why or 'taken'}")
        trouble = f" {told['trouble']}" if told["trouble"] else ""
        click.echo(
            f"{told['unsent']} captures have no receipt yet; they stay in the outbox.{trouble}" if told["unsent"] else "All is sent."
        )
    if told["unsent"] or told["refused"] or any("error" in one for one in told["ports"]) or any(why for _, why in told["files"]):
        click.get_current_context().exit(1)


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
    if not captures:
        raise InputError("There is nothing in these files.", do="Check that they were written to the end.", code="empty")
    gateway.check_clocks(captures, now := datetime.now(UTC))
    night.open_lake(lake)
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
        moment = moment.astimezone(UTC) if moment.tzinfo is not None else moment
    except (ValueError, OverflowError):
        raise click.UsageError("--clock is PUMP_TIME=UTC, such as 2026-03-08T06:00:00=2026-03-08T10:00:00Z") from None
    if pump_clock.tzinfo is not None or moment.tzinfo is None:
        raise click.UsageError("--clock: the pump's time has no zone, UTC ends in Z")
    return Anchor(pump_clock=pump_clock, utc=moment)


def _captures(paths: Sequence[Path], family_name: str | None, model: str | None, pump: str | None, anchor: Anchor | None) -> list[Capture]:
    """The captures of files. Raises InputError for a file that no family knows."""
    if pump is not None and not all(pump.partition(":")[::2]):
        raise click.UsageError("--pump is FAMILY:SERIAL")
    given: list[tuple[str, bytes]] = []
    for path in paths:
        try:
            given.append((path.name, path.read_bytes()))
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}.", do="Check the file and its permissions.", code="file") from error
    return gateway.captures_of(given, family=family_name, pump=pump, model=model, anchor=anchor)


# --- the night ------------------------------------------------------------------------------------------------------------------


@main.command()
@click.option("--orders", type=click.Path(path_type=Path, dir_okay=False), help="orders.csv; by default the last one used.")
@click.option("--no-orders", is_flag=True, help="That the file names no order is meant: none is in force any more.")
@click.option("--day", type=click.DateTime(["%Y-%m-%d"]), help="Derive what was received on this UTC day; by default all that changed.")
@_lake_option
@_store_option
@_json_option
@_strict_option
def nightly(orders: Path | None, no_orders: bool, day: datetime | None, lake: Path, store: Path | None, as_json: bool) -> int:
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

        page = night.nightly(
            lake, orders_file=orders, none_meant=no_orders, day=day.date() if day else None, store=store, progress=progress
        )
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
    _form("parquet", output)
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
        one, facts = night.facts_of(night.assembled(pump_id, mine), Orders(()), FactPolicy())
        events.append(facts.events)
        faults += one.decoded.faults.num_rows
        records += one.decoded.records.num_rows
        for fault in one.decoded.faults.to_pylist():
            console.print(f"[yellow]{escape(str(fault['part'] or 'line ' + str(fault['offset'])))}: {escape(fault['message'])}[/]")
    if not events:
        raise InputError("There is nothing in these files.", do="Check that they were written to the end.", code="empty")
    whole = pa.concat_tables(events)
    files.replace(output, files.parquet(whole))
    told = {"records": records, "events": whole.num_rows, "faults": faults, "output": str(output)}
    said = json.dumps(told) if as_json else f"{records} records, {whole.num_rows} events, {faults} faults → {output}"
    click.echo(said, err=output.resolve() == Path("/dev/stdout").resolve())
    return faults


# --- out ------------------------------------------------------------------------------------------------------------------------


def _form(asked: str | None, output: Path | None) -> str:
    """The format that was asked for, or that a file's ending says."""
    ending = output.suffix.lower().removeprefix(".") if output else ""
    if ending in _FORMATS and asked not in (None, ending):
        raise click.UsageError(f"{output} is to be {asked}, and its ending says {ending}: change one of the two")
    return asked or (ending if ending in _FORMATS else "table")


def _pulls(name: str, what: str) -> None:
    @main.command(
        name=name, help=f"{what}\n\n\b\nExamples:\n  pumpledger {name} --month 2026-03\n  pumpledger {name} --format xlsx -o {name}.xlsx"
    )
    @click.option("--month", metavar="YYYY-MM", help="Only this month.")
    @click.option("--patient", help="Only this patient.")
    @click.option("--payer", help="Only this payer.")
    @click.option("--state", help="Only this state.")
    @click.option("--format", "style", type=click.Choice(_FORMATS), help="By default what the file's ending says, else table.")
    @click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="The file to write; by default standard output.")
    @_lake_option
    @_json_option
    def pull(
        month: str | None,
        patient: str | None,
        payer: str | None,
        state: str | None,
        style: str | None,
        output: Path | None,
        lake: Path,
        as_json: bool,
    ) -> None:
        form = _form("json" if as_json else style, output)
        rows = views.select(Lake.open(lake), name, month=month, patient=patient, payer=payer, state=state)
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


@main.command(name="export")
@click.option(
    "--to",
    required=True,
    metavar="URL",
    envvar="PUMPLEDGER_DATABASE",
    show_envvar=True,
    help="postgresql://[user[:password]@]host[:port]/database",
)
@click.option("--schema", default="pumpledger", show_default=True, help="The schema of its tables; made where it is not there.")
@click.option("--month", metavar="YYYY-MM", help="Only this month.")
@click.option("--patient", help="Only this patient.")
@click.option("--payer", help="Only this payer: of the tables that name one.")
@click.option("--state", help="Only this state: of the tables that have it.")
@_lake_option
@_json_option
def export_(
    to: str, schema: str, month: str | None, patient: str | None, payer: str | None, state: str | None, lake: Path, as_json: bool
) -> None:
    """What billing pulls, into a PostgreSQL database: sessions, setups, days, lines and worklist, whole or not at all.

    The first export makes the tables; each later one changes the rows that differ and no others. A row that the lake has no more
    stays, with withdrawn_at; a filtered export looks at no row outside its filter. A password may be left to ~/.pgpass.

    \b
    Examples:
      pumpledger export --to postgresql://billing@db.example/agency
      pumpledger export --to "postgresql:///agency?host=/run/postgresql" --month 2026-03
      pumpledger export --to postgresql://billing@db.example/agency --state ready --json
    """
    with _bars() as shown:
        bars: dict[str, TaskID] = {}

        def progress(table: str, done: int, total: int) -> None:
            if table not in bars:
                bars[table] = shown.add_task(table, total=total, note="")
            shown.update(bars[table], completed=done, total=total)

        told = postgres.export(
            Lake.open(lake), to, schema=schema, month=month, patient=patient, payer=payer, state=state, progress=progress
        )
    left_out = [name for name in _TABLES if name not in told]
    if as_json:
        counts = {name: asdict(one) for name, one in told.items()}
        click.echo(json.dumps({"schema": schema, "tables": counts, "left_out": left_out}))
        return
    for name, one in told.items():
        click.echo(f"{name}: " + ", ".join(f"{count} {what}" for what, count in asdict(one).items()))
    if left_out:
        click.echo(f"As they were, for they lack what is filtered by: {', '.join(left_out)}.")


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


# --- decisions and releases -----------------------------------------------------------------------------------------------------


_ACTIONS = ("confirm_site", "stop", "confirm_clock", "clear", "hold", "void")


@main.command()
@click.argument("words", nargs=-1, required=True, metavar="ID | undo DECISION_ID | list")
@click.option("--confirm-site", is_flag=True, help="The set-up had a new site.")
@click.option(
    "--stop", metavar="T", help="The delivery ended then: UTC with Z, the order's local time without, the pump's where UTC is unknown."
)
@click.option("--confirm-clock", is_flag=True, help="The pump's clock ran on as it did in the next part of its log that has an anchor.")
@click.option("--clear", metavar="CODE", help="This code no longer holds this encounter.")
@click.option("--hold", is_flag=True, help="Hold it until this is taken back.")
@click.option("--void", is_flag=True, help="Never bill it.")
@click.option("--note", metavar="TEXT", default="", help="Why, or alone: what is to be known. Write no names: it is kept for ever.")
@click.option("--by", metavar="WHO", help="Who decides.")
@_lake_option
@_json_option
def decide(words: tuple[str, ...], note: str, by: str | None, lake: Path, as_json: bool, **asked: Any) -> None:
    """A reviewer's decision on a line, worklist item, session, set-up or event; it is kept, and what it touches is derived at once.

    A decision holds as long as what it was taken on is as it was; then the item is open again. `undo` takes one back, whoever took it;
    so may an undo be. `list` shows all of them. Notes are kept for ever and shown: never write a patient's name or what names one.

    \b
    Examples:
      pumpledger decide 3fa2c41be0 --clear OVER_8H --note "duration confirmed with the visit record" --by ana
      pumpledger decide 3fa2c41be0 --stop 2026-03-08T14:30:00Z --by ana
      pumpledger decide 77b0e1c2d4 --confirm-site --by ana
      pumpledger decide undo 9c01aa52ef --by ana
    """
    if words == ("list",):
        _show_decisions(lake, as_json)
        return
    if by is None:
        raise click.UsageError("Say who decides with --by.")
    given = [name for name in _ACTIONS if asked[name]] or (["note"] if note else [])
    if words[0] == "undo":
        if len(words) != 2 or (given and given != ["note"]):
            raise click.UsageError("It is: decide undo DECISION_ID --by WHO")
        outcome = review.undo(lake, words[1], by=by, note=note)
    else:
        if len(words) != 1 or len(given) != 1:
            raise click.UsageError("Name one ID and one decision: --" + ", --".join(name.replace("_", "-") for name in (*_ACTIONS, "note")))
        argument = asked[given[0]] if given[0] in ("stop", "clear") else ""
        outcome = review.decide(lake, words[0], given[0].replace("_", "-"), by=by, argument=argument, note=note)
    told, names = outcome.decision, ("line_id", "revision", "service_date", "code", "units", "minutes", "state", "reasons")
    lines = [{name: views.plain(line[name]) for name in names} for line in outcome.lines]
    if as_json:
        click.echo(json.dumps({"decision": views.plain(told.row()), "shown": outcome.shown, "lines": lines}, ensure_ascii=False))
        return
    click.echo(
        f"Kept: {told.action} {told.argument}".rstrip()
        + f" by {told.by}; take it back with: pumpledger decide undo {told.decision_id[:10]}"
    )
    if not outcome.shown:
        click.echo("Another run is deriving right now: the next night shows it.")
    for line in lines:
        held = f", held by {', '.join(line['reasons'])}" if line["reasons"] else ""
        shown = f"{line['service_date']} {line['code'] or 'no code'} x{line['units']}, {line['minutes']} min: {line['state']}{held}"
        click.echo(f"  {line['line_id'][:10]} {shown}")


def _show_decisions(lake: Path, as_json: bool) -> None:
    every = people.decisions(Lake.open(lake))
    if as_json:
        click.echo(json.dumps([{**views.plain(one.row()), "stands": review.stands(one, every)} for one in every], ensure_ascii=False))
        return
    shown = Table("id", "when (UTC)", "who", "decision", "on", "note", "stands")
    for one in every:
        what, stands = f"{one.action} {one.argument}".rstrip(), "yes" if review.stands(one, every) else "taken back"
        when = f"{one.decided_at:%Y-%m-%d %H:%M}"
        shown.add_row(one.decision_id[:10], when, *(escape(views.printable(text)) for text in (one.by, what, one.named, one.note)), stands)
    Console(highlight=False).print(shown)


@main.command(name="release")
@click.option("--payer", help="Only this payer.")
@click.option("--month", metavar="YYYY-MM", help="Only encounters that began in this month.")
@click.option("--dry-run", is_flag=True, help="Show what it would take, and take nothing.")
@click.option("--by", required=True, metavar="WHO", help="Who takes them.")
@_lake_option
@_json_option
def release_(payer: str | None, month: str | None, dry_run: bool, by: str, lake: Path, as_json: bool) -> None:
    """Take the lines that are ready, once: their rows are frozen under LAKE/releases, and shown as released from then on.

    A second release takes only what is new; nothing new is a success. What changes later is an amendment, never an edit. What changed
    in released lines and was cleared goes with it, as void and replacement.

    \b
    Examples:
      pumpledger release --payer payer-a --month 2026-03 --dry-run --by ana
      pumpledger release --payer payer-a --month 2026-03 --by ana
    """
    taken = review.release(lake, by=by, payer=payer, month=month, dry_run=dry_run)
    if as_json:
        click.echo(json.dumps({"dry_run": dry_run, "release": taken.plain() if taken else None}, ensure_ascii=False))
    elif taken is None:
        click.echo("Nothing new is ready.")
    else:
        shown = Table("payer", "code", "lines", "units", "minutes")
        for total in taken.totals:
            shown.add_row(escape(total.payer), total.code, str(total.lines), str(total.units), str(total.minutes))
        Console(highlight=False).print(shown)
        voids = f", and {taken.voids} voids of what was released before" if taken.voids else ""
        click.echo(f"{'Would take' if dry_run else 'Taken'}: {taken.lines} lines, {taken.units} units{voids}.")
        if not dry_run:
            click.echo(f"Release {taken.release_id}: {lake / 'releases' / taken.rows_sha256}.parquet")


@main.command()
@click.option("--month", metavar="YYYY-MM", help="Only this month of service, as released or as it is now.")
@click.option("--payer", help="Only this payer.")
@click.option("--format", "style", type=click.Choice(["table", "csv", "xlsx", "json", "parquet"]), default="table", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="The file to write; by default standard output.")
@_lake_option
@_json_option
def amendments(month: str | None, payer: str | None, style: str, output: Path | None, lake: Path, as_json: bool) -> None:
    """What late data, a decision or an order changed in lines after they were released: what is void, and what replaces it.

    A replacement is held until somebody clears it: pumpledger decide LINE --clear AMENDED_AFTER_RELEASE --by WHO

    \b
    Examples:
      pumpledger amendments --month 2026-03
      pumpledger amendments --payer payer-a --format csv -o amendments.csv
    """
    rows = review.amendments(Lake.open(lake), payer=payer, month=month)
    form = "json" if as_json else style
    stream: IO[Any] = sys.stdout if form == "table" else sys.stdout.buffer
    views.write(rows, "amendments", form, output or stream)


# --- upkeep ---------------------------------------------------------------------------------------------------------------------


@main.command()
@_lake_option
@_json_option
def verify(lake: Path, as_json: bool) -> None:
    """Re-hash every file, derive everything anew from what was received, and compare. Changes nothing; exit code 1 if it finds anything.

    \b
    Example:
      pumpledger verify --lake lake
    """
    with _bars() as shown:
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


@main.group()
def quarantine() -> None:
    """What could not be read, with its bytes.

    \b
    Examples:
      pumpledger quarantine list
      pumpledger quarantine show 3fa2c41b
      pumpledger quarantine discard 3fa2c41b --by reviewer --note "a torn line; read again since"
    """


@quarantine.command(name="list")
@_lake_option
@_json_option
def quarantine_list(lake: Path, as_json: bool) -> None:
    """The faults that no one is done with yet."""
    rows = upkeep.quarantine(Lake.open(lake))
    if as_json:
        click.echo(json.dumps([_fault(row) for row in rows], ensure_ascii=False))
        return
    shown = Table("id", "pump", "where", "code", "why", "bytes")
    for row in rows:
        where = row["part"] or f"line {row['offset']}"
        shown.add_row(row["fault_id"][:10], masked(row["pump_id"]), where, row["code"], escape(row["message"]), str(len(row["raw"])))
    Console(highlight=False).print(shown)


@quarantine.command(name="show")
@click.argument("ident", metavar="ID")
@_lake_option
@_json_option
def quarantine_show(ident: str, lake: Path, as_json: bool) -> None:
    """One fault, with its bytes in hex."""
    row = upkeep.fault(Lake.open(lake), ident)
    for name, value in [] if as_json else _fault(row).items():
        click.echo(f"{name:10} {value}")
    if as_json:
        click.echo(json.dumps(_fault(row), ensure_ascii=False))


@quarantine.command(name="retry")
@click.argument("ident", metavar="ID")
@_lake_option
def quarantine_retry(ident: str, lake: Path) -> None:
    """Decode its capture with today's code, and say what that gives; the next night derives with it."""
    told = upkeep.retry(Lake.open(lake), ident)
    click.echo(f"{told['records']} records, {told['faults']} faults; this one is {'still there' if told['still'] else 'gone'}.")


@quarantine.command(name="discard")
@click.argument("ident", metavar="ID")
@click.option("--by", required=True, help="Who is done with it.")
@click.option("--note", required=True, help="Why.")
@_lake_option
def quarantine_discard(ident: str, by: str, note: str, lake: Path) -> None:
    """Take it off the list. Its bytes stay, and so does who said so."""
    upkeep.discard(Lake.open(lake), ident, by=by, note=note)
    click.echo("Taken off the list; its bytes stay.")


def _fault(row: dict[str, Any]) -> dict[str, Any]:
    names = ("fault_id", "pump_id", "capture", "part", "offset", "code", "message")
    return {**{name: row[name] for name in names}, "raw": row["raw"].hex(" ")}


# --- for engineers ----------------------------------------------------------------------------------------------------------------


@main.command()
@click.argument("family_name", metavar="FAMILY")
@click.option("--therapy", "kind", default="sc_continuous", show_default=True, help="sc_continuous, pca, demand_only or insulin_like.")
@click.option("--seed", default=1, show_default=True, help="Equal seeds give equal pumps.")
@click.option("--days", default=3, show_default=True, help="Days of therapy, which end now.")
@click.option("--serial", help="The pump's serial number.")
@click.option("--broker", help="Where a pump that publishes does so: mqtt://HOST:PORT.")
@click.option(
    "--listen", "at", metavar="HOST:PORT", callback=_address, help="Serve a pump that is asked over TCP there, for socket:// ports."
)
@click.option("--faults", "faults_file", type=click.Path(path_type=Path, dir_okay=False, exists=True), help="What goes wrong, as TOML.")
@click.option(
    "--truth", type=click.Path(path_type=Path, dir_okay=False), help="Write what truly happened, as JSON; all of it is past then."
)
def simulate(
    family_name: str,
    kind: str,
    seed: int,
    days: int,
    serial: str | None,
    broker: str | None,
    at: tuple[str, int] | None,
    faults_file: Path | None,
    truth: Path | None,
) -> None:
    """Play a simulated pump: on a serial port whose path is printed, or to an MQTT broker. Ends with Ctrl-C.

    \b
    Examples:
      pumpledger simulate paradigm --therapy insulin_like --truth truth.json
      pumpledger simulate paradigm --listen 127.0.0.1:4001 --faults bad-cable.toml
      pumpledger simulate canonical --therapy pca --broker mqtt://localhost:1883
    A file of faults (any of them):
      drift_s_per_day = 12
      battery_out_h = 30        # hours after the therapy begins
      noise = 0.02              # of all answers, or captures, with a bad byte
      unplug_at = 5000          # the byte before which the cable is pulled
      duplicates = 0.3          # of those that publish: captures sent twice,
      reorder = true            # in another order,
      keep = 3                  # and only so many of them
    """
    now = datetime.now(UTC).replace(microsecond=0)
    start = now - timedelta(days=days)
    script = therapy.therapy(kind, seed, start, days)
    while truth is not None and script.end > now:
        start -= timedelta(days=1)
        script = therapy.therapy(kind, seed, start, days)
    options: dict[str, Any] = {"serial": serial} if serial else {}
    if faults_file is not None:
        options["faults"] = replay.faults(faults_file, start)
    device, told = simulators.family(family_name).simulate(script, seed, now=lambda: datetime.now(UTC), **options)
    if truth is not None:
        files.replace_text(truth, told.to_json())
    if at is not None:
        if not isinstance(device, SerialDevice):
            raise InputError(
                f"Pumps of family {family_name} are not asked over a port.", do="Name a broker with --broker.", code="not_asked"
            )
        with replay.TcpPort(device, *at) as tcp, suppress(KeyboardInterrupt):
            click.echo(f"{device.pump_id} waits at {tcp.url}\nDownload it with: pumpledger sync {tcp.url}={device.pump_id}")
            signal.pause()
        return
    with rig.Rig([device], broker=broker) as playing:
        for pump, path in playing.ports.items():
            click.echo(f"{pump} waits at {path}\nDownload it with: pumpledger sync {path}={pump}")
        if broker is not None:
            click.echo(f"{device.pump_id} publishes to {broker} until a hub has receipted it all (pumpledger listen).")
        with suppress(KeyboardInterrupt):
            if playing.ports:
                replay.keep_plugged([playing.port(pump) for pump in playing.ports], say=click.echo)
            else:
                signal.pause()


@main.command(name="replay")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False, exists=True), metavar="FILE...")
@click.option("--to", help="pty, socket://HOST:PORT (a transcript, as a device), or mqtt://HOST:PORT (captures); by default nowhere.")
@click.option("--speed", default="max", show_default=True, help="Times as fast as it was, 1 to 10000, or max.")
@click.option("--check", type=click.Path(path_type=Path, dir_okay=False, exists=True), help="Compare with the truth of `simulate --truth`.")
@click.option("--watch", is_flag=True, help="Show events, sessions and minutes as they grow.")
@click.option("--family", "family_name", help="The family of these files; found by their bytes when left out.")
@click.option("--model", help="The pump's model, where its files do not tell.")
@click.option("--pump", help="FAMILY:SERIAL, where the files do not tell.")
@_json_option
def replay_(
    paths: tuple[Path, ...],
    to: str | None,
    speed: str,
    check: Path | None,
    watch: bool,
    family_name: str | None,
    model: str | None,
    pump: str | None,
    as_json: bool,
) -> None:
    """Play what was recorded: a serial transcript as a device at a port, or captured files over MQTT, on a clock that runs fast.

    At a port, --watch and --check download from it as `sync` does; without them it waits for another host, until Ctrl-C.

    \b
    Examples:
      pumpledger replay night.jsonl --to mqtt://localhost:1883 --speed 1000 --watch
      pumpledger replay download.jsonl.gz --to pty
      pumpledger replay download.jsonl --to pty --pump paradigm:123456 --check truth.json
    """
    try:
        clock = replay.Clock(None if speed == "max" else float(speed))
    except ValueError:
        raise click.UsageError("--speed is a number from 1 to 10000, or max") from None
    truth = replay.truth(check) if check else None
    reading = replay.Reading()
    with ExitStack() as open_:
        live = open_.enter_context(Live(console=console, refresh_per_second=8)) if watch else None

        def keep(capture: Capture) -> None:
            reading.add(capture)
            if live:
                live.update(reading.shown())

        if to is not None and not to.startswith("mqtt"):
            device = replay.Transcript([path.read_bytes() for path in paths], pump or "transcript", clock=clock)
            port = open_.enter_context(replay.served(device, to))
            if watch or check:
                replay.read_port(port, pump, keep)
            else:
                click.echo(f"The device waits at {port}\nDownload it with: pumpledger sync {port}={pump or 'FAMILY:SERIAL'}")
                with suppress(KeyboardInterrupt):
                    signal.pause()
                return
        else:
            publish = open_.enter_context(replay.publishing(to)) if to else None
            for capture in replay.play(_captures(paths, family_name, model, pump, None), clock):
                if publish:
                    publish(capture)
                keep(capture)
    if live and not console.is_terminal:
        console.print()
    found = reading.differences(truth) if truth else []
    if as_json:
        click.echo(json.dumps({**reading.summary(), "differences": found}, ensure_ascii=False))
    else:
        click.echo("; ".join(f"{name.replace('_', ' ')}: {value}" for name, value in reading.summary().items()))
        for difference in found:
            console.print(f"[bold red]{escape(difference)}[/]")
        if truth and not found:
            click.echo("All is as it truly was.")
    if found:
        click.get_current_context().exit(1)


@main.command(name="doctor")
@click.argument("ports", nargs=-1, metavar="[PORT]...")
@click.option("--broker", help="The broker to try; by default the one in LAKE/pumpledger.toml.")
@_lake_option
@_store_option
@_json_option
def doctor_(ports: tuple[str, ...], broker: str | None, lake: Path, store: Path | None, as_json: bool) -> None:
    """What works here: ports and who answers there, broker, store, lake, disk, clock, versions. Exit code 1 if something is broken.

    It downloads nothing and stores nothing. Its report names no patient, and serial numbers by their end only: paste it anywhere.

    \b
    Examples:
      pumpledger doctor
      pumpledger doctor /dev/ttyUSB0 --broker mqtt://localhost:1883 --json
    """
    found = doctor.examine(lake, store=store, ports=list(ports) or None, broker=broker)
    click.echo(json.dumps(doctor.as_plain(found), ensure_ascii=False) if as_json else doctor.as_text(found))
    if doctor.broken(found):
        click.get_current_context().exit(1)


@main.command(name="enroll")
@click.argument("name", metavar="GATEWAY")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="The folder that goes to the gateway.")
@click.option("--broker", metavar="HOST[:PORT]", help="The broker, as gateways call it; by default the one in LAKE/pumpledger.toml.")
@click.option(
    "--ca", type=click.Path(path_type=Path, file_okay=False), help="The authority's folder, made at the first time; by default LAKE/ca."
)
@click.option("--days", default=825, show_default=True, type=click.IntRange(min=1), help="So long the certificate holds.")
@_lake_option
@_json_option
def enroll_(name: str, out: Path, broker: str | None, ca: Path | None, days: int, lake: Path, as_json: bool) -> None:
    """Certificates for a gateway, from the agency's own authority; prints what to write into the broker's and the gateway's settings.

    The authority's folder stays on this machine: whoever has ca.key lets in whom they like. The hub needs a certificate too; it is
    enrolled by the name pumpledger-hub.

    \b
    Examples:
      pumpledger enroll gw7 --broker mqtt.agency.example --out /media/usb/gw7
      pumpledger enroll pumpledger-hub --broker mqtt.agency.example --out /etc/pumpledger/hub
    """
    known = urlsplit(f"//{broker}" if broker else settings.load(lake).broker or "")
    try:
        host, port = known.hostname, known.port or 8883
    except ValueError:
        raise click.UsageError("--broker is HOST or HOST:PORT") from None
    if host is None:
        raise InputError("No broker was named.", do="Name it as gateways call it: --broker HOST.", code="no_broker")
    made = enroll.enroll(name, out, authority=ca or lake / "ca", host=host, port=port, days=days)
    if as_json:
        click.echo(json.dumps({**asdict(made), "until": made.until.isoformat()}, default=str, ensure_ascii=False))
        return
    click.echo(f"{made.certificate.parent} has what {name} needs, until {made.until:%Y-%m-%d}. Bring it there by a way that nobody reads.")
    who = "pumpledger.toml of the lake" if name == enroll.HUB else "pumpledger.toml of the gateway"
    for title, lines in (
        ("mosquitto.conf, with acl_file naming a file of the rules below; its user must be able to read these files", made.mosquitto),
        ("the rules", made.acl),
        (f"{who}; the folder as it is called there", made.settings),
    ):
        click.echo("\n".join([f"\n# {title}", *lines]))


if __name__ == "__main__":
    main()
