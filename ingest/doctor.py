"""What works here and what does not: ports, broker, store, lake, disk, clock, versions. It reads, and stores nothing.

At each port the families' greetings are said once; no pump is called by its number and nothing is downloaded. What it tells can be
pasted anywhere: it names no patient, no pump but by the end of its serial number, no password and no user.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import apsw
from serial.tools import list_ports

from devices import families
from devices.errors import InputError, LinkError, PumpledgerError, StorageError, masked
from ingest import docks, files, gateway, night, settings
from ingest.docks import split_port
from ingest.hub import broker_client
from ingest.lake import Lake
from ingest.store import Store
from transforms import orders

State = Literal["ok", "note", "broken"]

_LOW_BYTES, _FEW_BYTES = 200 << 20, 2 << 30
_BROKER_S = 5.0
_TIME_ERROR = 5
_PACKAGES = ("pumpledger", "pyarrow", "numpy", "paho-mqtt", "pyserial", "tzdata")
_BY_ID = re.compile(r"/dev/serial/by-id/[^\s=,]*[^\s=,.:]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at. `code` is stable; `why` and `do` only where it is not ok. A `note` breaks nothing by itself."""

    what: str
    state: State
    says: str
    code: str = ""
    why: str = ""
    do: str = ""


def examine(lake: Path, *, store: Path | None = None, ports: Sequence[str] | None = None, broker: str | None = None) -> list[Finding]:
    """Looks at everything once, ports at the same time; gives what was found, in a fixed order. Raises nothing that a check meets.

    `ports`: those to greet, as `sync` names them; by default all that the settings or this machine have.
    """
    known, about_settings = _settings(lake)
    url = broker or known.broker
    needed = list(ports) if ports is not None else [dock.port for dock in known.docks]
    greeted = needed if ports is not None else [*needed, *_others(needed)]
    with ThreadPoolExecutor(max_workers=len(greeted) + 1) as pool:
        asked = pool.submit(_checked, "broker", partial(_broker, url)) if url else None
        greetings = [pool.submit(_checked, f"port {_port_name(port)}", partial(_port, port, port in needed)) for port in greeted]
        found = [
            _versions(),
            _checked("families", _families),
            _checked("clock", _clock),
            about_settings,
            _checked("lake", lambda: _lake(lake)),
            _checked("store", lambda: _store(store or lake / "store.sqlite")),
            _checked("disk", lambda: _disk(lake)),
            _checked("orders", lambda: _orders(known)),
        ]
        found.append(asked.result() if asked else Finding(what="broker", state="note", says="none is named", code="no_broker_named"))
        found += [one.result() for one in greetings]
    if not greeted:
        found.append(Finding(what="ports", state="note", says="this machine has no serial port", code="no_port", do="Plug the cable in."))
    return found


def broken(found: Sequence[Finding]) -> bool:
    """Whether something does not work."""
    return any(one.state == "broken" for one in found)


def as_text(found: Sequence[Finding]) -> str:
    """The report for people: a line a finding, and under it why and what to do."""
    wide = max(len(one.what) for one in found)
    lines = []
    for one in found:
        code = f" [{one.code}]" if one.code else ""
        lines.append(f"{one.state:<6}  {one.what:<{wide}}  {one.says}{code}")
        lines += [f"{'':<6}  {'':<{wide}}    {text}" for text in (one.why, one.do) if text]
    return "\n".join(lines)


def as_plain(found: Sequence[Finding]) -> dict[str, Any]:
    """The report as JSON can say it."""
    return {"broken": broken(found), "findings": [asdict(one) for one in found]}


def _checked(what: str, check: Callable[[], Finding]) -> Finding:
    """What a check gives; an error as a finding."""
    try:
        return check()
    except PumpledgerError as error:
        return _broken(what, error)
    except Exception as error:
        return Finding(
            what=what, state="broken", says="the check itself failed", code="bug", why=_shareable(f"{type(error).__name__}: {error}.")
        )


def _broken(what: str, error: PumpledgerError) -> Finding:
    return Finding(
        what=what, state="broken", says=_shareable(error.what), code=error.code, why=_shareable(error.why), do=_shareable(error.do)
    )


def _shareable(text: str) -> str:
    """Text without the serial numbers of adapters that /dev/serial/by-id names, and without the user's own folder."""
    text = _BY_ID.sub(lambda match: os.path.realpath(match[0]) if Path(match[0]).exists() else "/dev/serial/by-id/…", text)
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text


# --- this machine ---------------------------------------------------------------------------------------------------------------


def _versions() -> Finding:
    told = [f"{name} {_version(name)}" for name in _PACKAGES]
    return Finding(
        what="versions",
        state="ok",
        says=f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, SQLite {apsw.sqlite_lib_version()}, "
        + ", ".join(told),
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "?"


def _families() -> Finding:
    return Finding(what="families", state="ok", says=", ".join(families.families()))


def _clock() -> Finding:
    """The host's clock: every anchor is as good as it is."""
    now = datetime.now(UTC)
    newest = max(file.stat().st_mtime for file in Path(__file__).parent.glob("*.py"))
    says = f"{now:%Y-%m-%dT%H:%M:%SZ}"
    if now.timestamp() < newest - 86_400:
        return Finding(
            what="clock",
            state="broken",
            says=f"{says} lies before this program was written",
            code="clock_wrong",
            why="Every time that a pump's clock is compared with would be wrong.",
            do="Set the clock: `sudo timedatectl set-ntp true`.",
        )
    kept = _synchronised()
    if kept is False:
        return Finding(
            what="clock",
            state="note",
            says=f"{says}, not synchronised",
            code="clock_free",
            why="Nothing on this machine says that its clock is kept right (NTP).",
            do="Run `sudo timedatectl set-ntp true`; times in UTC are as good as this clock.",
        )
    return Finding(what="clock", state="ok", says=says + (", synchronised" if kept else ", whether it is synchronised cannot be read"))


def _synchronised() -> bool | None:
    """What the kernel says of its clock (adjtimex without a change); None where it does not tell."""
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(512))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != _TIME_ERROR


# --- lake and store -------------------------------------------------------------------------------------------------------------


def _settings(lake: Path) -> tuple[settings.Settings, Finding]:
    try:
        known = settings.load(lake)
    except InputError as error:
        return settings.Settings(), _broken("settings", error)
    there = "" if (lake / settings.NAME).exists() else " (there is no file: all as by default)"
    return known, Finding(what="settings", state="ok", says=f"{len(known.docks)} docks{there}")


def _lake(lake: Path) -> Finding:
    if not lake.exists():
        _probe(_above(lake))
        return Finding(what="lake", state="note", says="there is none yet; it can be made", code="no_lake")
    _probe(lake)
    if not (lake / "manifests").exists():
        return Finding(what="lake", state="note", says="the folder is there, and no lake in it yet", code="no_lake")
    return Finding(what="lake", state="ok", says=f"{Lake.open(lake).buckets} buckets, writable")


def _above(path: Path) -> Path:
    """The nearest folder above that is there."""
    return next(folder for folder in path.absolute().parents if folder.exists())


def _probe(folder: Path) -> None:
    """Writes a file of no content, durably, and removes it. Raises StorageError."""
    path = folder / f".doctor-{secrets.token_hex(4)}"
    files.create(path, b"")
    files.remove(path)


def _store(path: Path) -> Finding:
    if not path.exists():
        _probe(path.parent if path.parent.exists() else _above(path))
        return Finding(what="store", state="note", says="there is none yet; it can be made", code="no_store")
    if not os.access(path, os.W_OK):
        raise StorageError(f"The store {path} cannot be written.", do="Give this user the right to write there.", code="not_writable")
    _probe(path.parent)
    with Store(path, busy_timeout_s=2.0) as store:
        pumps = len(store.pumps())
        waiting = sum(1 for _ in store.pending())
    return Finding(what="store", state="ok", says=f"captures of {pumps} pumps, {waiting} of them wait for the night; writable")


def _disk(lake: Path) -> Finding:
    free = shutil.disk_usage(lake if lake.exists() else _above(lake)).free
    says = f"{free / (1 << 30):.1f} GiB free"
    do = "Free some space: a full disk stops downloads and receipts; nothing is lost by it."
    if free < _LOW_BYTES:
        return Finding(what="disk", state="broken", says=says, code="disk_full", do=do)
    return Finding(what="disk", state="note" if free < _FEW_BYTES else "ok", says=says, code="disk_low" if free < _FEW_BYTES else "",
                   do=do if free < _FEW_BYTES else "")  # fmt: skip


def _orders(known: settings.Settings) -> Finding:
    if known.orders is None:
        return Finding(what="orders", state="note", says="the settings name no file", code="no_orders")
    try:
        text = known.orders.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"orders.csv cannot be read: {error}.", do=f"Mend `orders` in {settings.NAME}.", code="orders") from error
    return Finding(what="orders", state="ok", says=f"{len(orders.parse(text, night.rule_sets()).all)} orders")


# --- broker and ports -----------------------------------------------------------------------------------------------------------


def _broker(url: str) -> Finding:
    """Connects, and waits for the broker's word; publishes and subscribes nothing."""
    client, host, port = broker_client(url, "pumpledger-doctor")
    said: list[Any] = []
    client.on_connect = lambda _client, _user, _flags, reason, _properties: said.append(reason)
    where = f"{host}:{port}{' with TLS' if urlsplit(url).scheme == 'mqtts' else ''}"
    do = "Check that it runs there, its address in the settings, and that no firewall stands between."
    try:
        client.connect(host, port, keepalive=10)
        deadline = time.monotonic() + _BROKER_S
        while not said and time.monotonic() < deadline and not client.loop(0.1):
            pass
    except OSError as error:
        raise LinkError(f"The broker at {where} cannot be reached.", why=f"{error.strerror or error}.", do=do, code="no_broker") from error
    finally:
        client.disconnect()
        client.loop(0.1)
    if not said:
        raise LinkError(f"What answers at {where} is no broker.", do=do, code="no_broker")
    if said[0].is_failure:
        raise LinkError(
            f"The broker at {where} refuses this user: {said[0]}.",
            do="Check user and password in the broker's URL, and the broker's own list.",
            code="broker_refuses",
        )
    return Finding(what="broker", state="ok", says=f"{where} answers")


def _others(named: Sequence[str]) -> list[str]:
    """The ports of this machine that are not named."""
    real = {os.path.realpath(port) for port in named}
    return [info.device for info in sorted(list_ports.comports()) if os.path.realpath(info.device) not in real]


def _port_name(port: str) -> str:
    name, pump = split_port(port)
    shown = gateway.bridge_name(name) if gateway.is_bridge(name) else _shareable(name)
    return f"{shown} ({masked(pump)})" if pump else shown


def _port(named: str, needed: bool) -> Finding:
    """Opens a port, says hello, and closes it. That nothing answers at a port that nobody named breaks nothing."""
    port, pump = split_port(named)
    if gateway.is_bridge(port):
        return _bridge(named, port, pump)
    try:
        with docks.SerialLink(port) as link:
            adapter = docks.find_family(link)
    except LinkError as error:
        if needed or error.code not in ("silent", "garbled"):
            raise
        return replace(_broken(f"port {_port_name(named)}", error), state="note")
    return Finding(what=f"port {_port_name(named)}", state="ok", says=f"a pump or stick of family {adapter.SHEET.family} answers")


def _bridge(named: str, port: str, pump: str | None) -> Finding:
    """Says hello to a pump behind a bridge."""
    adapter: Any = families.family(pump.partition(":")[0] if pump else "ids")
    with gateway.BridgeLink(port, adapter) as link:
        if not adapter.is_hello(link.exchange(adapter.HELLO).data):
            raise LinkError(
                f"No pump answers at {link.port}.", why="The bridge has no connection to it, or has other names for its topics.",
                do="Bring the pump near, or name the topics: ?racp=SERVICE/CHARACTERISTIC.", code="silent",
            )  # fmt: skip
    return Finding(what=f"port {_port_name(named)}", state="ok", says=f"a pump of family {adapter.SHEET.family} answers")
