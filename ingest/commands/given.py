"""Files and clock anchors as they are named on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from devices.contract import Anchor, Capture
from devices.errors import InputError, masked
from ingest import gateway, night

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def anchor_of(text: str | None) -> Anchor | None:
    """The clock anchor of PUMP_TIME=UTC. Raises UsageError."""
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


def captures_of(
    paths: Sequence[Path], family_name: str | None, model: str | None, pump: str | None, anchor: Anchor | None
) -> list[Capture]:
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


def unused(anchor: Anchor | None, captures: Sequence[Capture]) -> list[str]:
    """A sentence for each pump in whose log, as these captures give it, a clock anchor of the command line ties nothing to UTC."""
    if anchor is None:
        return []
    given = tuple((moment - _EPOCH) // timedelta(milliseconds=1) for moment in (anchor.pump_clock.replace(tzinfo=UTC), anchor.utc))
    said = []
    for pump in sorted({capture.pump_id for capture in captures}):
        one = night.assembled(pump, list({capture.sha256: capture for capture in captures if capture.pump_id == pump}.values()))
        placed = one.log.anchors if one.log is not None else ()
        if given not in {(at.pump_clock_ms, at.utc_ms) for at in placed}:
            why = "its files tell their own clock, which counts" if placed else "there is no record behind which it could have been read"
            said.append(f"--clock is not used for {masked(pump)}: {why}.")
    return said
