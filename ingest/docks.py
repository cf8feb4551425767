"""The thin edge around download dialogues: a port, the family of the pump behind it, and what it gives into the store.

A family that is asked has, beside `download`, `HELLO` (an Ask that every pump and stick may be sent) and `is_hello(answer)`; where its
line is not 9600 8N1 it has `LINE`, the settings of pyserial that differ (`{"baudrate": 115200}`); where a pump tells its serial number it
has `identify`, and a pump that nobody named is asked. Nothing here builds a request.
"""

from __future__ import annotations

import errno
import grp
import os
import re
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import serial
from serial.tools import list_ports

from devices import dialogue, families
from devices.contract import HOLES, Adapter, Capture, CaptureHead, joined
from devices.dialogue import Ask, Reply, Summary
from devices.errors import InputError, LinkError, PumpError, PumpledgerError, StorageError, masked
from ingest import night, settings
from ingest.lake import UNKNOWN, Lake
from ingest.store import Arrival, Store
from transforms import orders, tables

_LINE: Mapping[str, Any] = {"baudrate": 9600, "bytesize": 8, "parity": "N", "stopbits": 1}
_SLICE_S = 0.1
_WRITE_S = 5.0
_ZONE_S, _LAST_ZONE_S, _WRONG_S = 900, 14 * 3600, 1800
_NAMED = re.compile(r"(?P<port>.+)=(?P<pump>[a-z][a-z0-9_]*:[^=/:]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a port is: `done` of `total` (0: not known) steps; `port` as it was named; `note` for people, without a serial number."""

    port: str
    done: int
    total: int
    note: str


class SerialLink:
    """An open port that answers `Ask`s: a path or a URL of pyserial (`socket://`, `rfc2217://`), held alone; a context manager."""

    def __init__(self, port: str, *, stop: threading.Event | None = None) -> None:
        """Opens the port at 9600 8N1. Raises LinkError with the likely cause, InputError for a URL that is none."""
        self.port = port
        self.heard = 0
        self.lost = False
        self._stop = stop or threading.Event()
        try:
            write_s = None if port.startswith("rfc2217:") else _WRITE_S  # pyserial has none there
            self._serial = serial.serial_for_url(port, timeout=_SLICE_S, write_timeout=write_s, exclusive=True, **_LINE)
        except ValueError as error:
            raise InputError(
                f"{port} is no port.", why=f"{error}.", do="Name a path, socket://HOST:PORT or rfc2217://HOST:PORT.", code="bad_port"
            ) from error
        except (OSError, termios.error) as error:
            raise _not_opened(port, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._serial.close()

    def use(self, adapter: Adapter) -> None:
        """Sets the line as this family wants it. Raises LinkError."""
        with self._guard():
            self._serial.apply_settings({**_LINE, **getattr(adapter, "LINE", {})})

    def exchange(self, ask: Ask) -> Reply:
        """Sends, and gives what came until the answer was whole or `timeout_s` was over, with UTC to the millisecond.

        What is left of an earlier answer is dropped before something is sent. Raises LinkError at once where the port is gone.
        """
        deadline = time.monotonic() + ask.timeout_s
        answer = bytearray()
        with self._guard():
            if ask.data:
                self._serial.reset_input_buffer()
            sent = _now()
            if ask.data:
                self._serial.write(ask.data)
            while (missing := ask.missing(bytes(answer))) > 0 and time.monotonic() < deadline:
                if self._stop.is_set():
                    raise LinkError("The download was stopped.", do="Run it again; it goes on where it stopped.", code="stopped")
                answer += self._serial.read(max(missing, self._serial.in_waiting))
            received = _now()
        self.heard += len(answer)
        return Reply(data=bytes(answer), sent=sent, received=received)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except serial.SerialTimeoutException as error:
            raise LinkError(
                f"{self.port} takes no bytes.",
                why="What was sent is stuck in the port: the other end holds it back, or is not there.",
                do="Unplug the cable, plug it in again, and run this again.",
                code="stuck",
            ) from error
        except (OSError, termios.error) as error:
            self.lost = True
            raise LinkError(
                f"{self.port} is gone.",
                why=f"It was unplugged, or another program reads from it too ({error}).",
                do="Plug it in again, end the other program, and run this again; it goes on where it stopped.",
                code="unplugged",
            ) from error


def find_family(link: SerialLink) -> Adapter:
    """The family of the pump (or its stick) behind a link: the one whose `HELLO` it answers. Every family is asked, in order of name.

    A hello only reads, and is harmless to the pumps of every other family. Raises LinkError where nothing, nothing that is known, or
    more than one family answers.
    """
    found: list[Adapter] = []
    for adapter in families.families().values():
        if hasattr(adapter, "HELLO"):
            asked: Any = adapter
            link.use(asked)
            if asked.is_hello(link.exchange(asked.HELLO).data):
                found.append(asked)
    if not found:
        raise _no_answer(link)
    if len(found) > 1:
        raise LinkError(
            f"{link.port} answers like {' and like '.join(adapter.SHEET.family for adapter in found)}.",
            do="Say which it is with --family.",
            code="two_families",
        )
    link.use(found[0])
    return found[0]


def ports(lake: Path) -> list[str]:
    """The ports that the settings of this lake name. Raises InputError."""
    return [dock.port for dock in settings.load(lake).docks]


def sync(
    lake: Path,
    port: str,
    *,
    store: Path | None = None,
    family: str | None = None,
    pump: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Downloads the pump at one port into the store (default `LAKE/store.sqlite`), from where the last download stopped.

    `port` may be written PORT=FAMILY:SERIAL. Each capture is durable before the next is asked for. Gives what JSON can say: port,
    family, pump (masked), model, new_captures, new_events, up_to (the printed time of the last of them), clock_offset_s (pump minus
    UTC), battery, complete, and `line`, a sentence about it all. Nothing new is a success. Raises InputError, LinkError, PumpError,
    StorageError.
    """
    return _Round(lake, store, family, progress).sync(port, pump)


def sync_all(
    lake: Path,
    wanted: Sequence[str],
    *,
    store: Path | None = None,
    family: str | None = None,
    progress: Callable[[Progress], None] | None = None,
    anew: bool = False,
    beside: Path | None = None,
) -> list[dict[str, Any]]:
    """As `sync`, for many ports at once, in their order; none waits for another. `progress` is called from threads of their own.

    A port that failed gives `error` (the code), what, why, do and `line` instead of raising. `anew`: everything is read from the
    beginning, and kept again. `beside`: another store, in which there may be what came before.
    """
    together = _Round(lake, store, family, progress, anew, beside)
    together.taken.update(pump for _, pump in map(split_port, wanted) if pump)
    with ThreadPoolExecutor(max_workers=max(1, len(wanted))) as pool:
        running = [pool.submit(together.result, port) for port in wanted]
        try:
            return [one.result() for one in running]
        except BaseException:
            together.stop.set()
            raise


@dataclass(frozen=True, slots=True)
class _Round:
    """What the ports of one run share; among it the word to stop, and the pumps that a port has, for a radio may reach them all."""

    lake: Path
    store: Path | None
    family: str | None
    progress: Callable[[Progress], None] | None
    anew: bool = False
    beside: Path | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    taken: set[str] = field(default_factory=set)

    def result(self, named: str) -> dict[str, Any]:
        """The result of one port; an error as a value, one that nobody foresaw too, so that no port takes the others with it."""
        try:
            return self.sync(named, None)
        except PumpledgerError as error:
            told = error
        except Exception as error:
            told = PumpledgerError("The download failed in a way that nobody foresaw.", why=f"{type(error).__name__}: {error}.", code="bug")
        return {"port": split_port(named)[0], "error": told.code, "what": told.what, "why": told.why, "do": told.do, "line": str(told)}

    def sync(self, named: str, pump: str | None) -> dict[str, Any]:
        port, written = split_port(named)
        known = settings.load(self.lake)
        dock = known.dock(port)
        pump = pump or written or dock.pump
        adapter = _chosen(self.family or dock.family, pump)
        with Store(self.store or self.lake / "store.sqlite") as store, SerialLink(port, stop=self.stop) as link:
            download = _Download(named, port, link, self.progress or (lambda _: None))
            if adapter:
                link.use(adapter)
            else:
                adapter = find_family(link)
            if pump is None and hasattr(adapter, "identify"):
                pump = download.identify(adapter)
            tried = 0
            for candidate in [pump] if pump else _candidates(known, port, adapter.SHEET.family):
                if not self._take(candidate) and candidate != pump:
                    continue
                tried += 1
                intake = Intake(store, candidate, f"serial:{port}", anew=self.anew, lake=self.lake, beside=self.beside)
                try:
                    return download.run(adapter, intake, dock.model)
                except (PumpError, LinkError) as error:
                    self._give_back(candidate)
                    if pump or download.gained or link.lost or not link.heard:
                        raise download.explained(error) from error
        raise _nobody(port, adapter.SHEET.family, tried)

    def _take(self, pump: str) -> bool:
        with self.lock:
            free = pump not in self.taken
            self.taken.add(pump)
            return free

    def _give_back(self, pump: str) -> None:
        with self.lock:
            self.taken.discard(pump)


class _Download:
    """One port's download, and what it has kept so far."""

    def __init__(self, named: str, port: str, link: SerialLink, show: Callable[[Progress], None]) -> None:
        self.gained: list[Capture] = []
        self._named, self._port, self._link, self._show = named, port, link, show
        self._done = self._total = 0

    def identify(self, adapter: Adapter) -> str:
        """The pump behind the link, as it says itself. Raises PumpError, LinkError."""
        try:
            return dialogue.run(adapter.identify(), self._exchange, self.gained.append, self._note)
        except (PumpError, LinkError) as error:
            raise self.explained(error) from error

    def run(self, adapter: Adapter, intake: Intake, model: str | None) -> dict[str, Any]:
        """Asks for what is not in the store yet; `model` where the pump does not tell it. Raises what dialogue, link and store raise."""
        self.gained = intake.gained
        asked = adapter.download(intake.pump, intake.known, model=model)
        return intake.told(self._port, dialogue.run(asked, self._exchange, intake.keep, self._note))

    def explained(self, error: PumpledgerError) -> PumpledgerError:
        """The error, saying what is safe already; where not one byte came from the port, what that means."""
        if not self._link.lost and not self._link.heard:
            return _no_answer(self._link)
        if not self.gained:
            return error
        kept = f"{_count(len(self.gained))} stored before that; a next download goes on from there."
        return type(error)(error.what, why=error.why, do=f"{error.do} {kept}".strip(), code=error.code)

    def _exchange(self, ask: Ask) -> Reply:
        self._done, self._total = ask.done, ask.total
        self._note(ask.what)
        return self._link.exchange(ask)

    def _note(self, text: str) -> None:
        self._show(Progress(port=self._named, done=self._done, total=self._total, note=text))


class Intake:
    """What one download of a pump brings into a store: each capture is durable when it is kept."""

    def __init__(
        self, store: Store, pump: str, via: str, *, anew: bool = False, lake: Path | None = None, beside: Path | None = None
    ) -> None:
        """`anew`: nothing counts as known, and what was dropped is kept again. What came before may be in a `lake`, or a store `beside`."""
        self.pump = pump
        self.known: list[CaptureHead] = [] if anew else store.heads(pump)
        self.gained: list[Capture] = []
        self._store, self._via, self._lake, self._beside = store, via, lake, beside
        self._append = store.renew if anew else store.append

    def keep(self, capture: Capture) -> None:
        """Takes a capture. Raises StorageError."""
        self._append([(capture, Arrival(datetime.now(UTC), self._via))])
        self.gained.append(capture)

    def told(self, port: str, summary: Summary) -> dict[str, Any]:
        """What `sync` gives of a download that ended with this summary."""
        events, up_to = self._news()
        up_to = up_to if summary.clock_offset_s is not None else None  # such a log counts from a moment of its own
        line = []
        if events:
            line.append(f"{events:,} new event{'s' if events != 1 else ''}")
        else:
            line.append(_count(summary.new_parts) if events is None and summary.new_parts else "no new data")
        if summary.clock_offset_s is not None:
            line += [f"up to {_printed(up_to, summary.clock_offset_s)}"] if up_to else []
            line.append(f"clock {_clock(summary.clock_offset_s)}")
        if summary.battery:
            line.append(f"battery {summary.battery}")
        if not summary.complete:
            line.append("not complete: run it again")
        return {
            "port": port,
            "family": summary.pump_id.partition(":")[0],
            "pump": masked(summary.pump_id),
            "model": summary.model,
            "new_captures": summary.new_parts,
            "new_events": events,
            "up_to": up_to.isoformat() if up_to else None,
            "clock_offset_s": summary.clock_offset_s,
            "battery": summary.battery,
            "complete": summary.complete,
            "line": f"{masked(summary.pump_id)}: {', '.join(line)}",
        }

    def _news(self) -> tuple[int | None, datetime | None]:
        """How many events were gained that were not known, and the printed time of the last. None where that cannot be said."""
        if not self.gained:
            return 0, None
        try:
            return self._new_events(families.family(self.pump.partition(":")[0]))
        except Exception:  # what was gained is safe, and the night says what is wrong with it; this only counts
            return None, None

    def _new_events(self, adapter: Adapter) -> tuple[int, datetime | None]:
        gained = {capture.sha256: capture for capture in self.gained}
        before = [capture for capture, _ in self._store.pending(self.pump) if capture.sha256 not in gained]
        if self._beside is not None and self._beside.exists():
            with Store(self._beside) as beside:
                before += [capture for capture, _ in beside.pending(self.pump) if capture.sha256 not in gained]
        known, whole = (
            adapter.assemble(self.pump, *joined(map(adapter.decode, some))).events for some in (before, [*before, *gained.values()])
        )
        new = whole.filter(pc.invert(pc.is_in(whole["kind"], pa.array([kind.value for kind in HOLES]))))
        new = new.filter(pc.invert(pc.is_in(new["record_key"], known["record_key"].combine_chunks())))
        new = new.filter(pc.invert(pc.is_in(new["record_key"], self._in_lake(new["pump_time"]))))
        times = new["pump_time"].drop_null()
        return new.num_rows, times[-1].as_py() if len(times) else None

    def _in_lake(self, times: pa.ChunkedArray) -> pa.Array:
        """The record keys of this pump's events that the lake has of the months about these printed times."""
        keys: pa.Array = pa.array([], pa.string())
        if self._lake is None or not pc.count(times).as_py():
            return keys
        try:
            lake = Lake.open(self._lake)
        except StorageError as error:
            if error.code != "no_lake":
                raise
            return keys
        first, last = (moment.as_py() + timedelta(days=days) for moment, days in ((pc.min(times), -1), (pc.max(times), 1)))
        months = [
            f"{month // 12:04d}-{month % 12 + 1:02d}" for month in range(first.year * 12 + first.month - 1, last.year * 12 + last.month)
        ]
        there = lake.read(
            "events", tables.EVENTS, months=[*months, UNKNOWN], buckets=[lake.bucket_of(self.pump)], columns=["pump_id", "record_key"]
        )
        return there.filter(pc.equal(there["pump_id"], self.pump))["record_key"].combine_chunks()


def _printed(moment: datetime, offset_s: float) -> str:
    """What the pump printed, with its date unless the pump shows this day now."""
    today = (datetime.now(UTC) + timedelta(seconds=offset_s)).date()
    return f"{moment:%H:%M}" if moment.date() == today else f"{moment:%Y-%m-%d %H:%M}"


def _clock(offset_s: float) -> str:
    """How far a pump's clock is from the host's, or from that of the zone that it seems to show where this is another one."""
    here = datetime.now(UTC).astimezone().utcoffset() or timedelta(0)
    away = offset_s - here.total_seconds()
    zone = _ZONE_S * round(offset_s / _ZONE_S)
    if abs(away) < _WRONG_S or abs(zone) > _LAST_ZONE_S:
        return _span(away)
    minutes = abs(zone) // 60
    return f"{_span(offset_s - zone)} at UTC{'−' if zone < 0 else '+'}{minutes // 60}" + (f":{minutes % 60:02d}" if minutes % 60 else "")


def _span(seconds: float) -> str:
    whole = abs(round(seconds))
    days, rest = divmod(whole, 86_400)
    text = f"{whole} s" if whole < 120 else f"{rest // 3600}:{rest // 60 % 60:02d}:{rest % 60:02d} h"
    return ("−" if seconds < 0 and whole else "+") + (f"{days:,} days " if days else "") + text


def _chosen(family: str | None, pump: str | None) -> Adapter | None:
    """The adapter that is known beforehand, from the family or the pump's id; None: ask. Raises InputError."""
    of_pump = pump.partition(":")[0] if pump else None
    if family and of_pump and of_pump != family:
        raise InputError(f"{masked(pump or '')} is no pump of family {family}.", do="Name it as FAMILY:SERIAL.", code="bad_pump")
    if not (name := family or of_pump):
        return None
    if not hasattr(adapter := families.family(name), "download"):
        raise InputError(f"Pumps of family {name} are not asked over a port.", do="Use `pumpledger load FILE…`.", code="not_asked")
    return adapter


def _count(captures: int) -> str:
    return f"{captures} new capture{'s' if captures != 1 else ''}"


def split_port(port: str) -> tuple[str, str | None]:
    """PORT=FAMILY:SERIAL as its two halves; a port alone (its URL may have a `=` too) as itself."""
    if match := _NAMED.fullmatch(port):
        return match["port"], match["pump"]
    return port, None


def _candidates(known: settings.Settings, port: str, family: str) -> list[str]:
    """The pumps of a family that may be behind a port: those of orders in force first. One that has a dock of its own is not here."""
    elsewhere = {dock.pump for dock in known.docks if dock.pump and dock.port != port}
    listed: list[tuple[bool, str]] = []
    if known.orders is not None:
        try:
            text = known.orders.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"The orders at {known.orders} cannot be read: {error}.",
                do=f"Mend `orders` in {settings.NAME}, or name the pump as PORT={family}:SERIAL.",
                code="orders",
            ) from error
        now_ms = round(datetime.now(UTC).timestamp() * 1000)
        for order in orders.parse(text, night.rule_sets(), name=known.orders.name).all:
            listed.append((not order.covers(now_ms), order.pump_id))
    return list(dict.fromkeys(pump for _, pump in sorted(listed) if pump.startswith(f"{family}:") and pump not in elsewhere))


def _nobody(port: str, family: str, tried: int) -> PumpledgerError:
    how = f'Name the pump: `pumpledger sync {port}={family}:SERIAL`, or `pump = "{family}:SERIAL"` in the [[dock]] of {settings.NAME}.'
    if not tried:
        return InputError(
            f"Which pump is at {port}?",
            why=f"Pumps of family {family} are called by their serial number, and no order that could be meant names one.",
            do=how,
            code="which_pump",
        )
    return LinkError(
        f"None of the {tried} pumps of family {family} that the orders name answers at {port}.",
        why="The pump is out of reach, its battery is low, or it is one that no order names.",
        do=f"Bring it closer and run this again. {how}",
        code="no_pump",
    )


def _no_answer(link: SerialLink) -> LinkError:
    """What it may mean that no pump answers: nothing came at all, or something that no family says."""
    if not link.heard:
        why = "A cable that carries power only, a pump that sleeps or is switched off, or the wrong port."
        do = f"Wake the pump, try another cable, and run this again. {_there_are()}"
        return LinkError(f"Nothing answers at {link.port}.", why=why, do=do, code="silent")
    why = f"{link.heard} bytes came that no family sends: the wrong baud rate, or another device."
    do = f"Check what is plugged in, or say what it is with --family {'|'.join(families.families())}. {_there_are()}"
    return LinkError(f"What answers at {link.port} is no pump that is known here.", why=why, do=do, code="garbled")


def _not_opened(port: str, error: Exception) -> LinkError:
    """Why a port does not open, in words, with the next step."""
    number = error.args[0] if error.args and isinstance(error.args[0], int) else None
    if "://" in port:
        do = "Check host and port, and that the serial server there runs and serves nobody else."
        return LinkError(f"{port} cannot be reached.", why=f"{error}.", do=do, code="unreachable")
    match number:
        case errno.ENOENT | errno.ENODEV | errno.ENXIO:
            return LinkError(f"There is no port {port}.", why="Nothing is plugged in there.", do=_there_are(), code="no_port")
        case errno.EACCES | errno.EPERM:
            group = _group(port)
            do = f"Run `sudo usermod -aG {group} $USER`, log in again, and run this again."
            return LinkError(f"This user may not use {port}.", why=f"The group {group} may.", do=do, code="permission")
        case errno.EBUSY | errno.EAGAIN:
            return LinkError(f"{port} is in use.", why=_holders(port), do="End that program, and run this again.", code="busy")
        case _:
            return LinkError(f"{port} is no serial port.", why=f"The system says: {error}.", do=_there_are(), code="not_serial")


def _there_are() -> str:
    """The ports of this machine, by the names that stay the same when they are plugged in anew."""
    by_id = {os.path.realpath(link): str(link) for link in Path("/dev/serial/by-id").glob("*")}
    there = [by_id.get(info.device, info.device) for info in sorted(list_ports.comports())]
    return f"There are: {', '.join(there)}." if there else "This machine has no serial port: plug the cable in."


def _group(port: str) -> str:
    """The group that may use a port; where that is nobody's but root's, the one that such ports usually belong to."""
    with suppress(OSError, KeyError):
        if (name := grp.getgrgid(Path(port).stat().st_gid).gr_name) != "root":
            return name
    return "dialout"


def _holders(port: str) -> str:
    """Who holds a port, as far as this user may look (/proc)."""
    target = os.path.realpath(port)
    found = set()
    for handle in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if str(handle.readlink()) == target:
                process = handle.parent.parent
                found.add(f"{(process / 'comm').read_text().strip()} (process {process.name})")
    return f"{' and '.join(sorted(found))} holds it." if found else "Another program holds it."


def _now() -> datetime:
    moment = datetime.now(UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)
