"""Records and messages as files: which are this family's, a capture of each, and captures cut to a size."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from devices.contract import Anchor, Capture, parted
from devices.errors import InputError
from devices.tandem.frames import WHITE, cut_of, from_text, is_text
from devices.tandem.records import BIG, LITTLE, decode, looks_of, rows_of
from devices.tandem.sheet import FAMILY


def recognise(name: str, data: bytes) -> bool:
    """Whether these are stream messages whose CRC holds, or whole records of which nine in ten look like ones."""
    cut = cut_of(data)
    if any(cut.proved):
        return True
    if cut.broken or not cut.offsets:
        return False
    looks = [looks_of(np.frombuffer(cut.records, order)) for order in (LITTLE, BIG)]
    return any(np.count_nonzero(look == 3) * 10 >= 9 * len(look) for look in looks)


def read_files(
    files: Sequence[tuple[str, bytes]], *, pump_id: str | None = None, model: str | None = None, anchor: Anchor | None = None
) -> list[Capture]:
    """One capture a file. No record names its pump. Raises InputError without a pump id."""
    if pump_id is None:
        raise InputError("Tandem records do not say which pump they are of.", do=f"Name it: --pump {FAMILY}:SERIAL.", code="no_pump")
    return [Capture(data=data, family=FAMILY, pump_id=pump_id, model=model, anchor=anchor) for _, data in files]


def split(capture: Capture, size: int) -> list[Capture]:
    """The capture as captures of whole records or messages, each of at most `size` bytes, in the form in which they came.

    The anchor of each names the record behind which the clock was read; it says too which reading of a record is the later one.
    Raises InputError where one message is larger, or damaged records would not be read as before.
    """
    if len(capture.data) <= size:
        return [capture]
    if capture.anchor is not None:
        after = next(iter(decode(capture).anchors["after"].to_pylist()), None)
        capture = replace(capture, anchor=replace(capture.anchor, after=after))
    return parted(capture, size, _borders(capture.data), decode)


def _borders(data: bytes) -> list[int]:
    """Where in these bytes records or messages begin before which they may be cut: those between two that can be read."""
    cut = cut_of(data)
    _, good, _, _ = rows_of(cut)
    good[1:] &= good[:-1].copy()
    good[[number for number, *_ in cut.broken if number < len(good)]] = False
    may = [(cut.offsets[row], cut.borders[row]) for row in np.flatnonzero(good).tolist() if cut.borders[row] >= 0]
    if not is_text(data):
        return [border for _, border in may]
    texts = [(0, data)]
    if cut.lines:
        lines = data.split(b"\n")
        starts = itertools.accumulate((len(line) + 1 for line in lines), initial=0)
        texts = list(zip(starts, lines, strict=False))
    read = {number: _place_in_text(text, start) for number, (start, text) in enumerate(texts, 1) if text.strip()}
    found = [read[stood if cut.lines else 1](border) for stood, border in may]
    return [place for place in found if place is not None]


def _place_in_text(text: bytes, start: int) -> Callable[[int], int | None]:
    """Where the characters of a byte begin in a text, which itself begins at `start`; None for a byte that shares one with another."""
    characters = np.flatnonzero(~np.isin(np.frombuffer(text, np.uint8), list(WHITE))).tolist()
    is_hex = len(characters) == 2 * len(from_text(b"".join(text.split())) or b"")
    size, of = (2, 1) if is_hex else (4, 3)
    return lambda byte: None if byte % of else start + characters[byte // of * size]
