"""Download dialogues without I/O.

A dialogue is a generator. It yields `Ask` (bytes to send, and how to tell that the answer is whole) and is sent the `Reply`;
it yields `Got` for each capture as soon as it is complete, and `Note` for what a person should see meanwhile. It returns a
`Summary`. It reads no clock and opens no port: the same dialogue runs over a pty, a real port, a bridge's MQTT topics or a
recorded transcript. Whoever drives it answers every `Ask`, at its deadline at the latest, with what came so far.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar, cast

from devices.contract import Capture


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Send `data`, then read until `missing(received)` is 0 or `timeout_s` has passed.

    `missing` gives how many bytes at least are still to come. `done` of `total` (0: not known) steps are behind us.
    """

    data: bytes
    missing: Callable[[bytes], int]
    timeout_s: float
    what: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came before the answer was whole or the time was over; `sent` and `received` are the host's UTC clock."""

    data: bytes
    sent: datetime
    received: datetime


@dataclass(frozen=True, slots=True)
class Got:
    """A capture is complete: keep it now, the link may die at any time."""

    capture: Capture


@dataclass(frozen=True, slots=True)
class Note:
    """Something worth showing: a retry, a bad block."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """How a download ended: `new_parts` captures that were not known, the pump's clock minus the host's, what else it told."""

    pump_id: str
    model: str | None
    new_parts: int
    clock_offset_s: float | None
    battery: str | None = None
    complete: bool = True


Step = Ask | Got | Note
Dialogue = Generator[Step, Reply | None, Summary]
Identification = Generator[Step, Reply | None, str]
"""A dialogue that asks a pump which one it is: it returns `family:serial`, and yields no `Got`."""

End = TypeVar("End")


def run(
    dialogue: Generator[Step, Reply | None, End],
    exchange: Callable[[Ask], Reply],
    keep: Callable[[Capture], None],
    note: Callable[[str], None] = lambda _: None,
) -> End:
    """Drives a dialogue to its end and gives what it returns: `exchange` answers an Ask, `keep` takes a capture. Errors pass through."""
    answer: Reply | None = None
    try:
        while True:
            step = dialogue.send(answer)
            answer = None
            match step:
                case Ask():
                    answer = exchange(step)
                case Got(capture):
                    keep(capture)
                case Note(text):
                    note(text)
    except StopIteration as stop:
        return cast("End", stop.value)
    finally:
        dialogue.close()
