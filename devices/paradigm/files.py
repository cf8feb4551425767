"""Files of a Paradigm: history pages, and recorded dialogues with a stick, which are answered by request and read as a pump is."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from devices import dialogue
from devices.contract import Anchor, Capture
from devices.dialogue import Ask, Reply
from devices.errors import InputError, LinkError, masked
from devices.paradigm.link import Given, no_model, replay
from devices.paradigm.pages import PAGE_SIZE, Part, why_no_page
from devices.paradigm.records import layout_of
from devices.paradigm.sheet import FAMILY

_GZIP = b"\x1f\x8b"
_MAX_UNPACKED = 1 << 28


def _unpacked(data: bytes) -> bytes:
    """A .gz file as it was before; anything else as it is. Raises InputError for one that is damaged."""
    if not data.startswith(_GZIP):
        return data
    try:
        return zlib.decompressobj(wbits=31).decompress(data, _MAX_UNPACKED)
    except zlib.error as error:
        raise InputError("A .gz file cannot be unpacked.", why=f"{error}.", do="Copy it again from where it came.", code="gzip") from error


def _is_transcript(data: bytes) -> bool:
    line = data.split(b"\n", 1)[0]
    return b"host_to_stick" in line or b"stick_to_host" in line


def recognise(name: str, data: bytes) -> bool:
    """Whether a file is a history page (by its checksum, or by size and name), or a recorded dialogue with a stick."""
    if len(data) == PAGE_SIZE and re.search(r"page\D*\d", name, re.IGNORECASE):
        return True
    try:
        return not why_no_page(data) or _is_transcript(_unpacked(data))
    except InputError:
        return False


def read_files(
    files: Sequence[tuple[str, bytes]], *, pump_id: str | None = None, model: str | None = None, anchor: Anchor | None = None
) -> list[Capture]:
    """The captures of history pages and recorded dialogues that were given together: one dump.

    The last number in a page's file name is its page number, 0 the newest. A recorded dialogue is answered by request and read as a
    pump is. Raises InputError where the model is not told, or a name tells no number, or two the same.
    """
    token = hashlib.sha256(repr(sorted(hashlib.sha256(data).hexdigest() for _, data in files)).encode()).hexdigest()[:16]
    unpacked = [(name, _unpacked(data)) for name, data in files]
    recorded = [data for _, data in unpacked if _is_transcript(data)]
    pages = [(name, data) for name, data in unpacked if not _is_transcript(data)]
    captures: list[Capture] = []
    if recorded:
        captures += _replayed(recorded, pump_id, Given(model, token if not pages else f"{token}-dialogue", anchor))
    if pages and layout_of(model) is None:
        raise no_model()
    numbers: dict[int, str] = {}
    for name, data in pages:
        found = re.findall(r"\d+", re.split(r"[/\\]", name)[-1].rpartition(".")[0] or name)
        if not found or len(found[-1]) > 6:
            raise InputError(
                f"{name} tells no page number.", do="Name history pages like page-0.data, 0 being the newest.", code="no_number"
            )
        number = int(found[-1])
        if number in numbers:
            raise InputError(f"{numbers[number]} and {name} are both page {number}.", do="Load each download by itself.", code="two_pages")
        numbers[number] = name
        captures.append(
            Capture(
                data=data,
                family=FAMILY,
                pump_id=pump_id or f"{FAMILY}:unknown",
                model=model,
                part=str(Part(token, number)),
                anchor=anchor,
            )
        )
    return captures


class TranscriptLink:
    """A recorded dialogue that answers by request, not by position.

    What the pump was asked is looked for from where the recording stands, and from its beginning again; what the stick says on the
    way to the answer comes in the order it was said. What was never asked gets no answer, as in a time-out.
    """

    def __init__(self, recordings: Iterable[bytes]) -> None:
        """Raises InputError for a line that is not one of such a recording."""
        self._said: list[tuple[bytes, bytes]] = []
        for number, line in enumerate((line for one in recordings for line in one.splitlines() if line.strip()), 1):
            try:
                told = json.loads(line)
                data = bytes.fromhex(told["hex"])
                from_host = {"host_to_stick": True, "stick_to_host": False}[told["dir"]]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise InputError(
                    f"Line {number} of the recorded dialogue cannot be read.", do="Check that the file is whole.", code="transcript"
                ) from error
            if from_host:
                self._said.append((data, b""))
            elif self._said:
                self._said[-1] = self._said[-1][0], self._said[-1][1] + data
        self._at = 0

    def serials(self) -> set[str]:
        """The serial numbers of the pumps that were asked."""
        return {asked[4:7].hex() for asked, _ in self._said if asked[:1] == b"\x01" and len(asked) >= 16}

    def exchange(self, ask: Ask) -> Reply:
        """Answers with the bytes alone: a recording knows no time."""
        never = datetime.fromtimestamp(0, UTC)
        return Reply(data=self._answer(ask.data), sent=never, received=never)

    def _answer(self, asked: bytes) -> bytes:
        if asked[:1] in (b"\x03", b"\x0c"):
            places: Iterable[int] = self._until_next_request()
        else:
            places = [*range(self._at, len(self._said)), *range(self._at)]
        for place in places:
            if self._said[place][0] == asked:
                self._at = place + 1
                return self._said[place][1]
        return b""

    def _until_next_request(self) -> Iterable[int]:
        for place in range(self._at, len(self._said)):
            if self._said[place][0][:1] == b"\x01":
                return
            yield place


def _replayed(recordings: list[bytes], pump_id: str | None, given: Given) -> list[Capture]:
    """The pages of a recorded dialogue. Raises InputError where it is that of another pump, or of several, or tells no model."""
    link = TranscriptLink(recordings)
    serials = sorted(link.serials())
    if len(serials) != 1 or (pump_id and pump_id.partition(":")[2] not in (serials[0], "unknown")):
        raise InputError(
            "The recorded dialogue is not that of the one pump it is said to be of.",
            why=f"It asks {', '.join(masked(f'{FAMILY}:{one}') for one in serials) or 'no pump'}.",
            do="Leave --pump out, or load the dialogues of each pump by themselves.",
            code="wrong_pump",
        )
    captures: list[Capture] = []
    try:
        dialogue.run(replay(f"{FAMILY}:{serials[0]}", given), link.exchange, captures.append)
    except LinkError as error:
        if not captures:
            raise InputError(
                "The recorded dialogue gives no page.", why=f"{error.what} {error.why}", do="Check that it is whole.", code="transcript"
            ) from error
    return captures
