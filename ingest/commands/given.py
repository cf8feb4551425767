"""Files and clock anchors as they are named on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click

from devices.contract import Anchor, Capture
from devices.errors import InputError
from ingest import gateway


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
