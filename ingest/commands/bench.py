"""The bench, for engineers: decode, simulate, replay, doctor."""

from __future__ import annotations

import json
import signal
import threading
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
from rich.live import Live
from rich.markup import escape

import simulators
from devices.contract import Capture
from devices.errors import InputError
from devices.families import families
from ingest import doctor, files, night, replay
from ingest.commands.given import anchor_of, captures_of, unused
from ingest.commands.options import TEXT, address, console, form_of, json_option, lake_option, store_option, strict_option
from simulators import rig, therapy
from simulators.link import SerialDevice
from transforms.orders import Orders
from transforms.sessions import FactPolicy

commands = click.Group()


@commands.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False, exists=True), metavar="FILE...")
@click.option("--family", "family_name", required=True, help="The family of these files.")
@click.option("--model", type=TEXT, help="The pump's model, where its files do not tell.")
@click.option("--pump", type=TEXT, help="FAMILY:SERIAL; by default FAMILY:unknown where the files do not tell.")
@click.option("--clock", metavar="PUMP_TIME=UTC", help="A clock anchor.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The Parquet file to write.")
@json_option
@strict_option
def decode(
    paths: tuple[Path, ...], family_name: str, model: str | None, pump: str | None, clock: str | None, output: Path, as_json: bool
) -> int:
    """Files to events, without a store or a lake.

    History pages may be named in any way whose last number is the page number, 0 the newest.

    \b
    Example:
      pumpledger decode page-*.data --family paradigm --model 522 -o events.parquet
    """
    form_of("parquet", output)
    anchor = anchor_of(clock)
    try:
        captures = captures_of(paths, family_name, model, pump, anchor)
    except InputError:
        if pump is not None or family_name not in families():
            raise
        captures = captures_of(paths, family_name, model, f"{family_name}:unknown", anchor)
    for line in unused(anchor, captures):
        console.print(f"[yellow]{escape(line)}[/]")
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


@commands.command()
@click.argument("family_name", metavar="FAMILY")
@click.option("--therapy", "kind", default="sc_continuous", show_default=True, help="sc_continuous, pca, demand_only or insulin_like.")
@click.option("--seed", default=1, show_default=True, help="Equal seeds give equal pumps.")
@click.option("--days", default=3, show_default=True, help="Days of therapy, which end now.")
@click.option("--serial", help="The pump's serial number.")
@click.option("--broker", help="Where a pump that publishes does so: mqtt://HOST:PORT.")
@click.option(
    "--listen", "at", metavar="HOST:PORT", callback=address, help="Serve a pump that is asked over TCP there, for socket:// ports."
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
    """Play a simulated pump: on a serial port whose path is printed, until Ctrl-C, or to an MQTT broker, until all has its receipt.

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
        if playing.ports:
            with suppress(KeyboardInterrupt):
                replay.keep_plugged([playing.port(pump) for pump in playing.ports], say=click.echo)
        if playing.gateway is not None:
            _until_receipted(
                playing.gateway, f"{device.pump_id} publishes to {broker} until a hub has receipted it all (pumpledger listen)."
            )


def _until_receipted(gateway: rig.Gateway, says: str) -> None:
    """Waits for the hub's answers, or Ctrl-C, and says what came of what was published."""
    try:
        click.echo(says)
        refused = gateway.wait_for_receipts(threading.TIMEOUT_MAX)
    except KeyboardInterrupt:
        click.echo(f"Ended: {gateway.counts()[1]} captures have no receipt.")
        return
    click.echo(f"All of it has a receipt: {gateway.counts()[0] - len(refused)} captures are stored, {len(refused)} refused.")
    for why in sorted(set(refused.values())):
        click.echo(f"  refused: {why}")


@commands.command(name="replay")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False, exists=True), metavar="FILE...")
@click.option("--to", help="pty, socket://HOST:PORT (a transcript, as a device), or mqtt://HOST:PORT (captures); by default nowhere.")
@click.option("--speed", default="max", show_default=True, help="Times as fast as it was, 1 to 10000, or max.")
@click.option("--check", type=click.Path(path_type=Path, dir_okay=False, exists=True), help="Compare with the truth of `simulate --truth`.")
@click.option("--watch", is_flag=True, help="Show events, sessions and minutes as they grow.")
@click.option("--family", "family_name", help="The family of these files; found by their bytes when left out.")
@click.option("--model", type=TEXT, help="The pump's model, where its files do not tell.")
@click.option("--pump", type=TEXT, help="FAMILY:SERIAL, where the files do not tell.")
@json_option
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
            for capture in replay.play(captures_of(paths, family_name, model, pump, None), clock):
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


@commands.command(name="doctor")
@click.argument("ports", nargs=-1, metavar="[PORT]...")
@click.option("--broker", help="The broker to try; by default the one in LAKE/pumpledger.toml.")
@lake_option
@store_option
@json_option
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
