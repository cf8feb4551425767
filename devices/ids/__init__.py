"""Bluetooth SIG Insulin Delivery Service 1.0.2, history and its reading (docs/pump-formats.md §5).

    record   u16 type · u32 sequence · u16 seconds since the last reference time · data by type [· CRC-16/MCRF4XX if E2E], little-endian

A capture is text: each line is the value of one characteristic, as a letter, a blank and hex, in the order in which they came.

    H 0f0001000000…   notification of History Data (2B28; 780G 0108)     > 335a0f…   write to RACP (2B27; 780G 2A52)
    T e2070102…       value of Current Time (2A2B)                       < 0f0f33f0  its indication
    ? 2a2b            the read that asks for it
    {"uuid": …, "hex": …}   any of them as a monitor's log in JSON lines has it

A damaged byte so costs one line. The reading dialogue speaks the same lines both ways, so it runs over any stream; `bridge_line` and
`bridge_request` are what stands between it and the topics of an MQTT bridge. Only `H` lines are history.

`Capture.model` names the profile: "780g" (32-bit amounts in some records, Medtronic's own record types), anything else the standard;
"+crc" behind it says that E2E-CRC is on. A record must fit its layout to the byte, so a wrong profile gives faults, not amounts. A
download finds E2E-CRC by itself, and refuses a wrong profile before it keeps what that would misread.

One capture does not tell the time of its records: `decode` leaves `pump_time` open and puts the offset into `native_ms`; `assemble`
puts both right from the whole log. What has no reference time since the last hole is part of that hole, until one comes.
"""

from devices.ids.columns import decode, split
from devices.ids.lines import BRIDGE_TOPICS, bridge_line, bridge_request, read_files, recognise
from devices.ids.link import HELLO, download, is_hello
from devices.ids.log import assemble
from devices.ids.sheet import SHEET

__all__ = [
    "BRIDGE_TOPICS",
    "HELLO",
    "SHEET",
    "assemble",
    "bridge_line",
    "bridge_request",
    "decode",
    "download",
    "is_hello",
    "read_files",
    "recognise",
    "split",
]
