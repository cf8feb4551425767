"""Messages as files: which are this family's, a capture of each, and captures cut to a size."""

from __future__ import annotations

from collections.abc import Sequence

from devices.contract import Anchor, Capture, parted
from devices.pcd.frames import BETWEEN, begin_of, messages_of
from devices.pcd.messages import Reader, UnreadableError, zone_of
from devices.pcd.records import decode
from devices.pcd.sheet import FAMILY, UNKNOWN_PUMP


def recognise(name: str, data: bytes) -> bool:
    """Whether the bytes begin as HL7 does and speak of device observations."""
    head = data[:65536].lstrip(BETWEEN)
    return head[:3] in (b"MSH", b"FHS", b"BHS") and (b"ORU^R" in head or b"^MDC" in head)


def read_files(
    files: Sequence[tuple[str, bytes]], *, pump_id: str | None = None, model: str | None = None, anchor: Anchor | None = None
) -> list[Capture]:
    """One capture a message, every byte as it came; what names no pump is of `pump_id`, or unknown.

    `anchor` gives times that have no zone theirs.
    """
    zone, reader = zone_of(anchor), Reader()
    captures = []
    for _, data in files:
        found = list(messages_of(data))
        begins = [0, *(begin_of(data, offset) for offset, _, _ in found[1:])]
        for (_, raw, _), begin, end in zip(found, begins, [*begins[1:], len(data)], strict=False):
            try:
                device = reader.message(raw, zone).device()
            except UnreadableError:
                device = None
            named = f"{FAMILY}:{device}" if device else pump_id or UNKNOWN_PUMP
            captures.append(Capture(data=data[begin:end], family=FAMILY, pump_id=named, model=model, anchor=anchor))
    return captures


def split(capture: Capture, size: int) -> list[Capture]:
    """The capture as captures of whole messages, each of at most `size` bytes. What has no time of its own stays between its neighbours.

    Raises InputError where a message is larger.
    """
    return parted(capture, size, _borders(capture) if len(capture.data) > size else (), decode)


def _borders(capture: Capture) -> list[int]:
    """Where messages begin before which a capture may be cut."""
    told = decode(capture)
    marks = [(offset, True, True) for offset in told.records["offset"].to_pylist()]
    marks += [(fault["offset"], False, fault["seq"] is not None) for fault in told.faults.select(["offset", "seq"]).to_pylist()]
    borders: list[int] = []
    since: list[int] = []
    bound = False
    for offset, is_record, is_placed in sorted(marks):
        since.append(offset)
        bound |= not is_placed
        if is_record:
            borders += [] if bound else since
            since, bound = [], False
    return [begin_of(capture.data, offset) for offset in [*borders, *([] if bound else since)]]
