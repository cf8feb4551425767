"""History pages of a Paradigm: `decode`, from pages to columns (docs/pump-formats.md §3.2, §3.3).

A page is 1024 bytes: records, zeros, CRC16. Where records begin is found page by page; all else is read of the records of many pages
at once, as columns.

The parts of a capture are `page=N;dump=TOKEN` (`;bad` behind it: the pump never gave it whole) and `end;dump=TOKEN`, the empty
capture with which a download ends; TOKEN names one download, or the files that were given together.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from devices.contract import ANCHORS, FAULTS, RECORDS, Capture, Decoded, anchor_row, fault_id, joined, table
from devices.paradigm.records import CODES, LAYOUTS, READ_BYTES, REWRITTEN, Ints, Layout, Mask, date_ms, layout_of, time_ms

PAGE_SIZE = 1024
_BODY = PAGE_SIZE - 2
_TOGETHER = 4096
"""So many captures are decoded at once: enough that a table costs little, few enough to fit in memory whatever a pump has."""

_LENGTH = np.array([one.length for one in LAYOUTS])
_TIME_AT = np.array([one.time_at for one in LAYOUTS])
_DATE_AT = np.array([one.date_at for one in LAYOUTS])
_IS_LARGER = np.array([int(one.larger) for one in LAYOUTS])


# --- the parts of a dump ---------------------------------------------------------------------------------------------------------

_PAGE_PART = re.compile(r"page=(\d{1,6});dump=([^;]*)(;bad)?")
_END_PART = "end;dump="


class Part(NamedTuple):
    """What a capture is of a dump: the page of this number, `bad` where the pump never gave it whole; the end if there is no number."""

    dump: str
    number: int | None = None
    bad: bool = False

    def __str__(self) -> str:
        return f"{_END_PART}{self.dump}" if self.number is None else f"page={self.number};dump={self.dump}{';bad' if self.bad else ''}"


def part_of(text: str | None) -> Part | None:
    """The part that a capture names; None where that is none of these."""
    text = text or ""
    if page := _PAGE_PART.fullmatch(text):
        return Part(page[2], int(page[1]), bool(page[3]))
    return Part(text.removeprefix(_END_PART)) if text.startswith(_END_PART) else None


# --- decode ----------------------------------------------------------------------------------------------------------------------


class _BadPageError(Exception):
    """Why a page gives none of its records."""

    def __init__(self, code: str, message: str, offset: int = 0) -> None:
        super().__init__(message)
        self.code, self.offset = code, offset


def decode(capture: Capture) -> Decoded:
    """Records of one history page (§3.2), or exactly one fault: a bad page gives none of its records.

    Empty bytes with another part than a page's are the end of a download: its anchor alone. Times naive, as printed; doses in U,
    volumes in mL (U/100), rates in U/h and mL/h, durations in s.
    """
    return decode_all([capture])


def decode_all(captures: Sequence[Capture]) -> Decoded:
    """What `decode` gives of each of these captures, in their order."""
    return joined(_decoded(captures[start : start + _TOGETHER]) for start in range(0, len(captures), _TOGETHER))


_NOTHING = joined(())


def page_key(page: bytes, model: str | None) -> str:
    """What makes a page itself: of equal start, equal (§3.3). "" for one that gives no record, bad or without a time yet."""
    return next(iter(_Found([Capture(data=page, family="", pump_id="", model=model)]).keys.values()), "")


def why_no_page(page: bytes) -> str:
    """Why these bytes are no history page: their length, or CRC16-CCITT over all but the last two bytes; "" if they are one."""
    if len(page) != PAGE_SIZE:
        return f"a page has {PAGE_SIZE} bytes, not {len(page)}"
    return "" if binascii.crc_hqx(page[:_BODY], 0xFFFF) == int.from_bytes(page[_BODY:]) else "the checksum of the page is wrong"


def _decoded(captures: Sequence[Capture]) -> Decoded:
    found = _Found(captures)
    hashes = [capture.sha256 for capture in captures]
    faults = [_fault_row(captures[nth], hashes[nth], why) for nth, why in sorted(found.bad.items())]
    told = [(one, one.anchor, sha256) for one, sha256 in zip(captures, hashes, strict=True) if one.anchor is not None]
    anchors = [anchor_row(one, anchor, anchor.after, sha256=sha256) for one, anchor, sha256 in told]
    return Decoded(
        _columns(found, hashes) if len(found.nth) else _NOTHING.records,
        table(FAULTS, faults) if faults else _NOTHING.faults,
        table(ANCHORS, anchors) if anchors else _NOTHING.anchors,
    )


def _fault_row(capture: Capture, sha256: str, bad: _BadPageError) -> dict[str, Any]:
    return {
        "fault_id": fault_id(capture.pump_id, bad.code, str(bad.offset), capture.data),
        "capture": sha256,
        "part": capture.part,
        "offset": bad.offset,
        "pump_id": capture.pump_id,
        "log_epoch": 0,
        "code": bad.code,
        "message": str(bad),
        "hole": True,
        "raw": capture.data,
    }


class _Found:
    """Where the records of some captures stand, and when they were written; `bad` and `keys`, of pages, by the number of the capture."""

    def __init__(self, captures: Sequence[Capture]) -> None:
        self.captures = captures
        self.bad: dict[int, _BadPageError] = {}
        offsets: list[int] = []
        self._pages: list[int] = []
        counts: list[int] = []
        layouts: list[int] = []
        for nth, capture in enumerate(captures):
            if not capture.data and not (capture.part or "").startswith("page="):
                continue
            try:
                layout, here = _walk(capture)
            except _BadPageError as bad:
                self.bad[nth] = bad
            else:
                offsets += here
                self._pages.append(nth)
                counts.append(len(here))
                layouts.append(layout.number)
        whole = np.frombuffer(b"".join([captures[nth].data for nth in self._pages]), np.uint8)
        page = np.repeat(np.arange(len(counts)), counts)
        self.nth: Ints = np.array(self._pages, np.int64)[page]
        self.layout: Ints = np.array(layouts, np.int64)[page]
        self.offset: Ints = np.array(offsets, np.int64)
        self._whole, self._at = whole, page * PAGE_SIZE + self.offset
        self.code: Ints = whole[self._at].astype(np.int64)
        time_at = _TIME_AT[self.layout, self.code]
        self.timed: Mask = time_at > 0
        self.ms: Ints = np.zeros(len(page), np.int64)
        self.ms[self.timed] = time_ms(self.bytes_of(self.timed, 5, time_at[self.timed]))
        self._leave_out_what_cannot_be()
        self.keys = self._page_keys()
        if len(self.keys) < len(self._pages):
            self._keep(np.isin(self.nth, list(self.keys)))

    def bytes_of(self, rows: npt.NDArray[Any], size: int, start: Ints | int = 0) -> Ints:
        """The first `size` bytes of these records from `start` on: row n has the n-th of each."""
        taken: Ints = self._whole[self._at[rows] + start + np.arange(size)[:, None]].astype(np.int64)
        return taken

    def length(self) -> Ints:
        """Of each record."""
        told = _LENGTH[self.layout, self.code]
        own = np.flatnonzero(told < 0)
        told[own] = np.maximum(self.bytes_of(own, 2)[1], 2)
        return told

    def _leave_out_what_cannot_be(self) -> None:
        """A page with a time or a date that cannot be is bad, from its first one on."""
        date_at = _DATE_AT[self.layout, self.code]
        dated = np.flatnonzero(date_at)
        wrong_day = dated[date_ms(*self.bytes_of(dated, 2, date_at[dated])) < 0]
        wrong_time = np.flatnonzero(self.ms < 0)
        for rows, what in ((wrong_day, "date"), (wrong_time, "time")):
            for row in rows[::-1].tolist():
                bad = _BadPageError("time", f"a record has a {what} that cannot be", int(self.offset[row]))
                nth = int(self.nth[row])
                if nth not in self.bad or bad.offset < self.bad[nth].offset:
                    self.bad[nth] = bad
        if self.bad:
            self._keep(~np.isin(self.nth, list(self.bad)))

    def _keep(self, rows: Mask) -> None:
        for name in ("nth", "layout", "offset", "_at", "code", "timed", "ms"):
            setattr(self, name, getattr(self, name)[rows])

    def _page_keys(self) -> dict[int, str]:
        """What makes each page itself. Of a first record that may be rewritten, only code and time count."""
        timed = np.flatnonzero(self.timed)
        pages, first = np.unique(self.nth[timed], return_index=True)
        keys = {}
        for nth, row in zip(pages.tolist(), timed[first].tolist(), strict=True):
            data, start, code = self.captures[nth].data, int(self.offset[row]), int(self.code[row])
            layout = LAYOUTS[int(self.layout[row])]
            head = data[: start + layout.length[code]]
            if code in REWRITTEN:
                stamp = start + layout.time_at[code]
                head = data[: start + 1] + data[stamp : stamp + 5]
            keys[nth] = hashlib.sha256(head).hexdigest()[:16]
        return keys


def _walk(capture: Capture) -> tuple[Layout, list[int]]:
    """The layout of a page, and where its records begin. Raises _BadPageError."""
    page = capture.data
    layout = layout_of(capture.model)
    if layout is None:
        raise _BadPageError("model", "the model is not known: it decides how long a record is")
    if why := why_no_page(page):
        raise _BadPageError("length" if len(page) != PAGE_SIZE else "crc", why)
    length = layout.length
    offsets: list[int] = []
    at, end = 0, len(page[:_BODY].rstrip(b"\0"))
    while at < end:
        if code := page[at]:
            offsets.append(at)
            size = length[code]
            at += size if size > 0 else max(page[at + 1], 2)
        else:
            at += 1
    if at > _BODY:
        raise _BadPageError("overrun", "a record runs over the end of the page", offsets[-1])
    return layout, offsets


_TYPES = {f.name: f.type for f in RECORDS}
_IS_FLOAT = {name: pa.types.is_floating(kind) for name, kind in _TYPES.items()}
_HEX = pa.array([f"{code:02x}" for code in range(256)])
_AT = pa.array([f":{offset:04d}:" for offset in range(PAGE_SIZE)])


def _columns(found: _Found, hashes: Sequence[str]) -> pa.Table:
    """RECORDS of what was found."""
    size = len(found.nth)
    captures, which = found.captures, pa.array(found.nth)
    keys = pa.array([found.keys.get(nth) for nth in range(len(captures))], pa.string()).take(which)
    codes, times = _HEX.take(pa.array(found.code)), found.ms.view("datetime64[ms]")
    slices = zip(found.nth.tolist(), found.offset.tolist(), (found.offset + found.length()).tolist(), strict=True)
    columns: dict[str, pa.Array] = {
        "capture": pa.array(hashes, pa.string()).take(which),
        "part": pa.array([one.part for one in captures], pa.string()).take(which),
        "offset": pa.array(found.offset),
        "pump_id": pa.array([one.pump_id for one in captures], pa.string()).take(which),
        "log_epoch": pa.repeat(pa.scalar(0, pa.int32()), size),
        "record_key": pc.binary_join_element_wise(keys, _AT.take(pa.array(found.offset)), codes, ""),
        "page": keys,
        "pump_time": pa.array(times, mask=~found.timed),
        "new_time": pa.array(times, mask=found.code != 0x18),
        "native_code": codes,
        "raw": pa.array([captures[nth].data[start:end] for nth, start, end in slices], pa.binary()),
        **_said(found),
    }
    return pa.Table.from_arrays([columns[f.name] if f.name in columns else pa.nulls(size, f.type) for f in RECORDS], schema=RECORDS)


_ALWAYS = {"kind": "other", "detail": "{}"}
_WORDS = {
    name: np.array([CODES[code].says.get(name, _ALWAYS.get(name)) if code in CODES else _ALWAYS.get(name) for code in range(256)], object)
    for name in sorted({*_ALWAYS, *(name for one in CODES.values() for name in one.says)})
}
"""What every record of a code says alike: field → value, by code."""


def _said(found: _Found) -> dict[str, pa.Array]:
    """The columns of what the records say."""
    values: dict[str, npt.NDArray[Any]] = {name: words[found.code] for name, words in _WORDS.items()}
    groups = found.code + 256 * _IS_LARGER[found.layout]
    for group in np.flatnonzero(np.bincount(groups)).tolist():
        larger, code = divmod(group, 256)
        if code not in CODES or (read := CODES[code].read) is None:
            continue
        rows = np.flatnonzero(groups == group)
        raw = found.bytes_of(rows, min(READ_BYTES, LAYOUTS[larger].length[code]))
        for name, value in read(raw, bool(larger)).items():
            if name not in values:
                values[name] = np.full(len(groups), np.nan if _IS_FLOAT[name] else None)
            values[name][rows] = np.array(value, object) if isinstance(value, list) else value
    return {
        name: pa.array(column, mask=np.isnan(column)) if _IS_FLOAT[name] else pa.array(column, _TYPES[name])
        for name, column in values.items()
    }
