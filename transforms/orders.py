"""Orders: what the agency says a pump is doing (docs/design.md §3). The only source of patient and route."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from importlib import resources
from itertools import pairwise
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from devices.errors import InputError

COLUMNS = (
    "pump_id",
    "patient_id",
    "order_id",
    "drug",
    "route",
    "concentration",
    "dose_unit",
    "payer",
    "rule_set",
    "place_of_service",
    "tz",
    "start",
    "stop",
)
_NEEDED = ("pump_id", "patient_id", "order_id", "rule_set", "tz", "start")
_SAME_FOR_AN_ORDER = ("patient_id", "drug", "route", "payer", "rule_set", "place_of_service", "tz")
_ROUTES = {"sc": "SC", "iv": "IV", "intravenous": "IV"}
"""Those that rules ask for, in small letters; others are kept as they are."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAIVE = datetime(1970, 1, 1)  # noqa: DTZ001 - local times carry no zone
_MINUTE_MS = 60_000
_MINUTES_SINCE = 94_694_400_000
"""Since 1973 zones have changed their offset at whole minutes of UTC alone: one look a minute is enough."""


@cache
def zone(name: str) -> ZoneInfo:
    """The zone of an IANA name, from the tzdata package alone, so that every machine agrees. Raises KeyError."""
    parts = name.split("/")
    if not name or any(not part or part.startswith(".") for part in parts):
        raise KeyError(name)
    try:
        with resources.files("tzdata").joinpath("zoneinfo", *parts).open("rb") as data:
            return ZoneInfo.from_file(data, key=name)
    except (OSError, ValueError) as error:
        raise KeyError(name) from error


def local(utc_ms: int, tz: ZoneInfo) -> datetime:
    """UTC milliseconds as naive local time."""
    if utc_ms < _MINUTES_SINCE:
        return (_EPOCH + timedelta(milliseconds=utc_ms)).astimezone(tz).replace(tzinfo=None)
    return _NAIVE + timedelta(milliseconds=utc_ms + _offset_ms(utc_ms // _MINUTE_MS * _MINUTE_MS, tz))


def utc_ms(local_time: datetime, tz: ZoneInfo) -> int:
    """Naive local time as UTC milliseconds; of an hour that comes twice, the first."""
    return round((local_time.replace(tzinfo=tz) - _EPOCH) / timedelta(milliseconds=1))


def local_ms(instants: npt.NDArray[np.int64], tz: ZoneInfo) -> npt.NDArray[np.int64]:
    """UTC milliseconds as local milliseconds. Raises OverflowError beyond the years of a calendar."""
    whole = np.where(instants >= _MINUTES_SINCE, instants // _MINUTE_MS * _MINUTE_MS, instants)
    told, where = np.unique(whole, return_inverse=True)
    ahead = [_offset_ms(moment, tz) for moment in told.tolist()]
    return instants + np.array(ahead, dtype=np.int64)[where]


@lru_cache(maxsize=1 << 16)
def _offset_ms(utc_ms: int, tz: ZoneInfo) -> int:
    ahead = (_EPOCH + timedelta(milliseconds=utc_ms)).astimezone(tz).utcoffset()
    assert ahead is not None
    return round(ahead / timedelta(milliseconds=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One row of orders.csv: `start_ms` and `stop_ms` are UTC milliseconds, half open; no stop is None."""

    pump_id: str
    patient_id: str
    order_id: str
    drug: str
    route: str
    concentration: str
    dose_unit: str
    payer: str
    rule_set: str
    place_of_service: str
    tz: str
    start_ms: int
    stop_ms: int | None

    @property
    def zone(self) -> ZoneInfo:
        """Its time zone."""
        return zone(self.tz)

    def covers(self, instant_ms: int) -> bool:
        """Whether it is in force at this UTC instant."""
        return self.start_ms <= instant_ms and (self.stop_ms is None or instant_ms < self.stop_ms)


class Orders:
    """All orders, by pump and by id."""

    def __init__(self, orders: Collection[Order]) -> None:
        self.all = tuple(sorted(orders, key=lambda o: (o.pump_id, o.start_ms, o.order_id)))
        self._rows: dict[str, range] = {}
        self._by_pump: dict[str, list[Order]] = {}
        self._by_id: dict[str, list[Order]] = {}
        self._by_patient: dict[str, list[Order]] = {}
        for row, order in enumerate(self.all):
            self._rows[order.pump_id] = range(self._rows.get(order.pump_id, range(row, row)).start, row + 1)
            self._by_pump.setdefault(order.pump_id, []).append(order)
            self._by_id.setdefault(order.order_id, []).append(order)
            self._by_patient.setdefault(order.patient_id, []).append(order)

    def of_pump(self, pump_id: str) -> list[Order]:
        """The orders of one pump by start."""
        return self._by_pump.get(pump_id, [])

    def of_pumps(self, pumps: Iterable[str]) -> Orders:
        """Those of some pumps alone."""
        return Orders([order for pump in pumps for order in self.of_pump(pump)])

    def rows_of_pump(self, pump_id: str) -> range:
        """Where the orders of one pump stand in `all`, by start."""
        return self._rows.get(pump_id, range(0))

    def of_id(self, order_id: str) -> list[Order]:
        """The rows of one order: one a pump and time."""
        return self._by_id.get(order_id, [])

    def of_patient(self, patient_id: str) -> list[Order]:
        """The orders of one patient."""
        return self._by_patient.get(patient_id, [])

    def patients(self) -> list[str]:
        """All patients, sorted."""
        return sorted(self._by_patient)

    def in_force(self, pump_id: str, utc: int | None, printed: datetime | None) -> Order | None:
        """The order of a pump at an instant; where UTC is unknown, its printed time read in the order's zone finds it."""
        for order in self.of_pump(pump_id):
            instant = utc if utc is not None else (utc_ms(printed, order.zone) if printed is not None else None)
            if instant is not None and order.covers(instant):
                return order
        return None


def parse(text: str, rule_sets: Collection[str], *, name: str = "orders.csv") -> Orders:
    """Reads orders.csv. Raises InputError that names every line with an error: the file is refused whole."""
    try:
        return _parsed(csv.DictReader(io.StringIO(text.removeprefix("\ufeff"))), rule_sets, name)
    except csv.Error as error:
        raise InputError(f"{name} is no CSV: {error}.", do="Save it with commas and line ends.", code="orders") from error


def _parsed(reader: csv.DictReader[str], rule_sets: Collection[str], name: str) -> Orders:
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or [])]
    if missing:
        raise InputError(
            f"{name} lacks the columns {', '.join(missing)}.", do=f"Its first line must name {', '.join(COLUMNS)}.", code="orders"
        )
    twice = [column for column in COLUMNS if (reader.fieldnames or []).count(column) > 1]
    if twice:
        raise InputError(f"{name} names the columns {', '.join(twice)} twice.", do="Leave one of each.", code="orders")
    orders: list[tuple[int, Order]] = []
    wrong: list[str] = []
    for row in reader:
        try:
            orders.append((reader.line_num, _order(row, rule_sets)))
        except ValueError as error:
            wrong.append(f"line {reader.line_num}: {error}")
    wrong += _overlaps(orders) + _differing(orders)
    if wrong:
        raise InputError(f"{name} is refused: " + "; ".join(wrong) + ".", do="Mend these lines and start the night again.", code="orders")
    return Orders([order for _, order in orders])


def _order(row: dict[str, str | None], rule_sets: Collection[str]) -> Order:
    value = {column: (row.get(column) or "").strip() for column in COLUMNS}
    if None in row:
        raise ValueError("it has more fields than the first line names")
    for column in _NEEDED:
        if not value[column]:
            raise ValueError(f"{column} is empty")
    family, _, serial = value["pump_id"].partition(":")
    if not family or not serial:
        raise ValueError("pump_id is not family:serial")
    try:
        zone(value["tz"])
    except KeyError:
        raise ValueError(f"there is no time zone {value['tz']!r}") from None
    if value["rule_set"] not in rule_sets:
        raise ValueError(f"there is no rule set {value['rule_set']!r} (there are {', '.join(sorted(rule_sets))})")
    place = value["place_of_service"]
    if place and not (place.isascii() and place.isdigit() and len(place) == 2):
        raise ValueError("place_of_service is two digits or empty")
    value["route"] = _ROUTES.get(value["route"].lower(), value["route"])
    start, stop = _instant(value.pop("start"), "start"), value.pop("stop")
    stop_ms = _instant(stop, "stop") if stop else None
    if stop_ms is not None and stop_ms <= start:
        raise ValueError("it stops before it starts")
    return Order(**value, start_ms=start, stop_ms=stop_ms)


def _instant(text: str, column: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{column} is no time such as 2026-03-01T08:00:00Z") from None
    if not 2 <= moment.year <= 9998:
        raise ValueError(f"{column} is no year of an order")
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round((moment - _EPOCH) / timedelta(milliseconds=1))


def _overlaps(orders: list[tuple[int, Order]]) -> list[str]:
    by_pump: dict[str, list[tuple[int, Order]]] = {}
    for line, order in orders:
        by_pump.setdefault(order.pump_id, []).append((line, order))
    found = []
    for rows in by_pump.values():
        rows.sort(key=lambda r: r[1].start_ms)
        for (line, earlier), (other, later) in pairwise(rows):
            if earlier.stop_ms is None or later.start_ms < earlier.stop_ms:
                found.append(f"lines {line} and {other}: these orders overlap on one pump")
    return found


def _differing(orders: list[tuple[int, Order]]) -> list[str]:
    first: dict[str, tuple[int, Order]] = {}
    found = []
    for line, order in orders:
        known, before = first.setdefault(order.order_id, (line, order))
        differ = [name for name in _SAME_FOR_AN_ORDER if getattr(order, name) != getattr(before, name)]
        if differ:
            found.append(f"lines {known} and {line}: one order with two values of {', '.join(differ)}")
    return found
