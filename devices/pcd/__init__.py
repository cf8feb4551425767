r"""IHE PCD-10 events, PCD-04 alarms and PCD-01 snapshots, HL7 v2.6 (docs/pump-formats.md §2, §6).

    MSH|^~\&|sender|…|sent|…|ORU^R42^ORU_R01|control id|…     ORU^R42 an event, R40 an alarm, R01 a snapshot
    OBR|1|order|infusion|…|||time of the event, with its zone
    OBX|3|CWE|0^MDC_ATTR_EVT_COND^MDC|1.0.0.2|197288^MDC_EVT_PUMP_DELIV_START^MDC||||||R

A capture is one message or several, bare or in MLLP frames. One message is one record. Terms are matched by their MDC name first and
by their number second: draft senders write number 0, makers write MDC_PUMP_… for MDC_DEV_PUMP_…. The pump's clock is read as UTC: the
time of each message, in the message's own zone, made UTC, so a change of zone or to daylight saving is no step of that clock.

Messages are split here and not by a library: those there are (`hl7`, `hl7apy`) do not join a segment that was wrapped over two lines,
raise bare IndexErrors on damaged headers, and read 30 and 1,000 times fewer messages a second; the splitting itself is a page.

Segments that are about the patient (PID, PV1 and the like) are not looked at and are left out of `raw`; the capture keeps them.

What it is made of, each knowing only those before it: `sheet`, what its log tells; `terms`, the nomenclature as data; `frames`, bytes to
messages; `messages`, one message; `records`, `decode`; `files`, messages as files; `log`, `assemble`.
"""

from __future__ import annotations

from devices.pcd.files import read_files, recognise, split
from devices.pcd.frames import Frames, answer, framed, unframed
from devices.pcd.log import assemble
from devices.pcd.records import decode, decode_all
from devices.pcd.sheet import SHEET

__all__ = ["SHEET", "Frames", "answer", "assemble", "decode", "decode_all", "framed", "read_files", "recognise", "split", "unframed"]
