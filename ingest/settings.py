"""`LAKE/pumpledger.toml`: where the pumps are, where the orders are, and the policies that shape facts."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from devices.errors import InputError
from ingest import files
from transforms.sessions import FactPolicy

NAME = "pumpledger.toml"

DEFAULT = """\
# Settings of this lake. Everything here may be left out.

# orders = "/srv/agency/orders.csv"       # what each pump is doing; relative paths start at this folder
# broker = "mqtt://localhost:1883"        # where `pumpledger listen` hears gateways
# gateway = "gw1"                         # an opaque name, never an agency's or a patient's

# One [[dock]] for each port that `sync` and the night read:
# [[dock]]
# port = "/dev/serial/by-id/usb-0a21_8001-if00-port0"
# family = "paradigm"                     # found by asking when left out
# pump = "paradigm:123456"                # needed by families that are called by their serial number

[policies]                                # they shape facts: a change derives everything anew
gap_limit_min = 60                        # pieces of one order at most this far apart are one session
clock_step_s = 60                         # a clock that steps back further, unlogged, cuts the log
drift_s_per_day = 60                      # two anchors may disagree by this much a day of elapsed time ...
drift_s = 120                             # ... plus this much
"""

_RANGES = {"gap_limit_min": (0, 1440), "clock_step_s": (0, 3600), "drift_s_per_day": (0, 3600), "drift_s": (0, 3600)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Dock:
    """A port and what is known of the pump behind it."""

    port: str
    family: str | None = None
    pump: str | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of one lake."""

    docks: tuple[Dock, ...] = ()
    broker: str | None = None
    orders: Path | None = None
    gateway: str = "gw1"
    facts: FactPolicy = field(default_factory=FactPolicy)

    def dock(self, port: str) -> Dock:
        """The dock of this port; one that nothing is known of where the settings name none."""
        return next((dock for dock in self.docks if dock.port == port), Dock(port=port))


def load(lake: Path) -> Settings:
    """The settings of a lake; defaults where it has none. Raises InputError that names the mistake."""
    path = lake / NAME
    try:
        raw = tomllib.loads(path.read_text()) if path.exists() else {}
        return _settings(lake, raw)
    except (tomllib.TOMLDecodeError, TypeError, KeyError, ValueError, OSError) as error:
        raise InputError(
            f"{path} cannot be read: {error}.", do="Mend it; the first run writes one with comments.", code="settings"
        ) from error


def write_default(lake: Path) -> None:
    """Writes the settings with their comments where there are none yet."""
    if not (lake / NAME).exists():
        files.replace_text(lake / NAME, DEFAULT)


def _settings(lake: Path, raw: dict[str, Any]) -> Settings:
    unknown = set(raw) - {"orders", "broker", "gateway", "dock", "policies"}
    if unknown:
        raise ValueError(f"there is no setting {', '.join(sorted(unknown))}")
    policies = raw.get("policies", {})
    texts = [raw.get(name, "") for name in ("orders", "broker", "gateway")]
    docks = raw.get("dock", [])
    if not isinstance(policies, dict) or not isinstance(docks, list) or not all(isinstance(dock, dict) for dock in docks):
        raise ValueError("policies is a table and each dock is a [[dock]]")
    if not all(isinstance(text, str) for text in (*texts, *(value for dock in docks for value in dock.values()))):
        raise ValueError("orders, broker, gateway and what a dock says are texts in quotes")
    for name, value in policies.items():
        if name not in {f.name for f in fields(FactPolicy)}:
            raise ValueError(f"there is no policy {name}")
        low, high = _RANGES[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"{name} must be a number from {low} to {high}")
    return Settings(
        docks=tuple(Dock(**dock) for dock in raw.get("dock", [])),
        broker=raw.get("broker"),
        orders=lake / raw["orders"] if "orders" in raw else None,
        gateway=raw.get("gateway", "gw1"),
        facts=FactPolicy(**policies),
    )
