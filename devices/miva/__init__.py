"""Zyno / InfuTronix MIVA platform (Nimbus II, CAPS, Nimbus unified H): an event log of 16-byte records in a ring (docs/pump-formats.md §4).

    frame    02 · command in ASCII · checksum of the command, 2 hex digits · 03       9600 8N1; a reply repeats the command
    record   type u8 · stamp u32 · sub-type u16 · two 32-bit words · u8 unused        big-endian but for relative stamps; all FF: empty

A *capture* is the records of one range of the log; its `part` says which, and what else decoding needs (`records.Part`). A record's number
is its ring index, unwrapped. `decode` reads each record alone. What a record means in its place (whether it lies inside a programme,
at which rate a start starts, how long a dose took) is found in `assemble`, over all captures, so that no border of a capture matters.

A programme (what an infusion is programmed to do) is 2 or 16 records between a BEGIN and an END. They have neither type nor time, look
like any record, and are known by their position alone. Where one of them is missing, all that is left of it belongs to the hole. A
start after a hole in which a programme may have stood has no known rate and may be one that delivers nothing: it is a hole itself.
"""

from __future__ import annotations

from devices.miva.frames import read_files, recognise
from devices.miva.link import HELLO, download, identify, is_hello
from devices.miva.log import assemble
from devices.miva.records import decode, split
from devices.miva.sheet import SHEET

__all__ = ["HELLO", "SHEET", "assemble", "decode", "download", "identify", "is_hello", "read_files", "recognise", "split"]
