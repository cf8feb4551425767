"""Tandem t:slim X2 event log (docs/pump-formats.md §7): records of 26 bytes, by themselves or in Bluetooth stream messages.

    record   type u16 (source << 12 | event) · u32 seconds since 2008-01-01, pump local time · u32 sequence number · four 32-bit words
    message  81 · transaction · cargo length · count · stream · count x record, newest first · CRC-16 CCITT (1021, FFFF), low byte first

A record is written in either byte order: big-endian as the maker's cloud hands it out, little-endian as the pump sends it over
Bluetooth. Each word is turned as a whole, so one table of fields, named by their big-endian offset, reads both.

A capture is a file or an MQTT batch: records or messages one after another, or the same as hex or base64 text, in lines or wrapped.
A message proves itself by its CRC. A bare record has none: it must look like one, and the looks of all of a capture tell its byte order.

What it is made of, each knowing only those before it: `sheet`, what its log tells; `events`, their fields as data; `frames`, captures cut
into records; `records`, `decode`; `files`, records as files; `log`, `assemble`.
"""

from __future__ import annotations

from devices.tandem.files import read_files, recognise, split
from devices.tandem.log import assemble
from devices.tandem.records import decode
from devices.tandem.sheet import SHEET

__all__ = ["SHEET", "assemble", "decode", "read_files", "recognise", "split"]
