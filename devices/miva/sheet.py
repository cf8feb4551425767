"""The capability sheet of the family."""

from __future__ import annotations

from devices.contract import Sheet

FAMILY = "miva"

SHEET = Sheet(
    family=FAMILY,
    title="Zyno / InfuTronix MIVA event log",
    models="Nimbus II, CAPS (sum checksum), Nimbus unified H (XOR checksum)",
    transport="serial 9600 8N1, asked; files of the frames a pump sent",
    source="docs/pump-formats.md §4",
    identity="(pump, log epoch, ring index unwrapped); a ring that overran the last record read, or was reset, begins a new epoch",
    elapsed="seconds since the firmware was loaded (relative stamps); of old firmware the printed clock",
    gaps_visible=True,
    prime_targets=False,
    demands=True,
    limits=True,
    proof="none: a dose never proves that the basal rate runs",
    tells={
        "itself": "its serial number: a pump that nobody named is read under it",
        "starts and stops": "run, pause, completion, end of a delayed start; the rate is the programme's",
        "boluses": "demands granted and denied (with the number of the attempt), doses finished; a demanded dose's duration from its grant",
        "limits": "hourly and interval limit reached, cleared",
        "set-ups": "cassette detached",
        "programming": "each programme as it was run, with lockout; settings changed, old and new",
        "alarms": "occlusion up- and downstream, battery, system and firmware errors, unattended",
    },
    does_not_tell=(
        "primes and sites: a new site is never seen",
        "the volume of one delivery or dose: volumes infused may run on over pauses and boluses, and stand in `detail`",
        "when the doses of an intermittent programme run, nor when it falls to KVO",
        "changes of the clock of old firmware, and, without an anchor, when a relative stamp was",
    ),
    unknown=(
        "no captured log is public: the layout is that of the maker's own driver",
        "how a pump goes on by itself after an occlusion: it counts as stopped until the next run",
        "the form of an absolute RC reply (dd mm yy hh mm ss) is inferred from that of WC",
        "the sub-type of a cancelled dose; byte 15",
    ),
)
