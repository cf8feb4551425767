"""The edge: pumps, files and gateways to the store: sync, listen, ask, gateway, load, enroll."""

from __future__ import annotations

import json
import signal
from contextlib import ExitStack, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import click
from rich.markup import escape
from rich.progress import TaskID

from devices.errors import InputError, masked
from ingest import docks, enroll, gateway, hub, mllp, night, settings
from ingest.commands.given import anchor_of, captures_of, unused
from ingest.commands.options import TEXT, address, console, json_option, lake_option, progress_bars, store_option, utc_moment
from ingest.store import Arrival, Store

commands = click.Group()


@commands.command()
@click.argument("ports", nargs=-1, metavar="[PORT[=PUMP]]...")
@click.option("--family", "family_name", help="The pumps' family; found by asking when left out.")
@lake_option
@store_option
@json_option
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
    with progress_bars() as shown:
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


@commands.command()
@click.option("--broker", help="mqtt://[user:password@]host:port; by default the one in LAKE/pumpledger.toml.")
@click.option(
    "--mllp",
    "mllp_at",
    metavar="HOST:PORT",
    callback=address,
    help="Take HL7 messages (IHE PCD) over MLLP there too; alone where no broker is named.",
)
@click.option(
    "--hl7-topic",
    "hl7_topics",
    metavar="FILTER",
    multiple=True,
    help="Topics of the broker whose payloads are HL7 messages (IHE PCD) as they are; may be named several times.",
)
@lake_option
@store_option
def listen(broker: str | None, mllp_at: tuple[str, int] | None, hl7_topics: tuple[str, ...], lake: Path, store: Path | None) -> None:
    """The MQTT hub: store what gateways publish, durably, before it is acknowledged. Ends with Ctrl-C, and says what came.

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

    listener: mllp.Listener | None = None
    with suppress(KeyboardInterrupt), ExitStack() as beside:
        if mllp_at is not None:
            listener = beside.enter_context(mllp.Listener(*mllp_at, path, show=show))
            show(f"MLLP at {mllp_at[0]}:{listener.port}")
        if url is not None:
            hub.listen(url, path, hl7_topics=hl7_topics, show=show)
        else:
            signal.pause()
    if listener is not None:
        show(f"Ended: {listener.counters.line()}")


@commands.command(name="ask")
@click.argument("pump", metavar="PUMP")
@click.option("--gateway", "name", metavar="NAME", help="The gateway that read it; by default the one it was last heard from.")
@click.option("--from", "since", metavar="UTC", callback=utc_moment, help="What the gateway read from then on, as 2026-03-08T02:00Z.")
@click.option("--to", "until", metavar="UTC", callback=utc_moment, help="What the gateway read before then.")
@click.option("--broker", help="mqtt://[user:password@]host:port; by default the one in LAKE/pumpledger.toml.")
@click.option("--wait", default=10.0, show_default=True, help="So many seconds at most for the gateway's answer.")
@lake_option
@store_option
@json_option
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


@commands.command(name="gateway")
@click.argument("ports", nargs=-1, metavar="[PORT[=PUMP]]...")
@click.option("--broker", help="mqtt://[user:password@]host:port; by default the one in LAKE/pumpledger.toml.")
@click.option("--files", "inbox", type=click.Path(path_type=Path, file_okay=False), help="A folder: what is dropped there is sent.")
@click.option("--name", help="The gateway's opaque name; by default the one in LAKE/pumpledger.toml.")
@click.option("--every", default=15.0, show_default=True, type=click.FloatRange(min=0.1), help="Minutes between two rounds of the docks.")
@click.option("--once", is_flag=True, help="One round, then wait for the hub's receipts, and end.")
@click.option("--wait", default=60.0, show_default=True, help="With --once: so many seconds at most for the receipts.")
@lake_option
@json_option
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


@commands.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False, exists=True), metavar="FILE...")
@click.option("--family", "family_name", help="The family of these files; found by their bytes when left out.")
@click.option("--model", type=TEXT, help="The pump's model, where its files do not tell (Paradigm: 522).")
@click.option("--pump", type=TEXT, help="FAMILY:SERIAL, where the files do not tell.")
@click.option("--clock", metavar="PUMP_TIME=UTC", help="A clock anchor: what the pump's clock said, and UTC at that moment.")
@lake_option
@store_option
@json_option
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
    anchor = anchor_of(clock)
    captures = captures_of(paths, family_name, model, pump, anchor)
    if not captures:
        raise InputError("There is nothing in these files.", do="Check that they were written to the end.", code="empty")
    gateway.check_clocks(captures, now := datetime.now(UTC))
    night.open_lake(lake)
    with Store(store or lake / "store.sqlite") as keep:
        known = sum(keep.has(capture.sha256) for capture in captures)
        keep.append((capture, Arrival(received_at=now, via="file")) for capture in captures)
    for line in unused(anchor, captures):
        console.print(f"[yellow]{escape(line)}[/]")
    pumps = sorted({masked(capture.pump_id) for capture in captures})
    if as_json:
        told = {"files": len(paths), "captures": len(captures), "known": known, "pumps": pumps}
        click.echo(json.dumps(told, ensure_ascii=False))
    else:
        click.echo(f"{len(paths)} files, {len(captures)} captures ({known} known already) of {', '.join(pumps)} are stored.")


@commands.command(name="enroll")
@click.argument("name", metavar="GATEWAY")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="The folder that goes to the gateway.")
@click.option("--broker", metavar="HOST[:PORT]", help="The broker, as gateways call it; by default the one in LAKE/pumpledger.toml.")
@click.option(
    "--ca", type=click.Path(path_type=Path, file_okay=False), help="The authority's folder, made at the first time; by default LAKE/ca."
)
@click.option("--days", default=825, show_default=True, type=click.IntRange(min=1), help="So long the certificate holds.")
@lake_option
@json_option
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
