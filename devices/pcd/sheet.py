"""The capability sheet of the family."""

from __future__ import annotations

from devices.contract import Sheet

FAMILY = "pcd"

SHEET = Sheet(
    family=FAMILY,
    title="IHE PCD-10 infusion pump events, PCD-04 alarms, PCD-01 snapshots",
    models="PCA, syringe and large-volume pumps whose gateway speaks HL7 v2.6 (IPEC Rev 1.5); samples seen: IHE's own, B. Braun",
    transport="HL7 messages in files, in MLLP frames, or one or more to an MQTT payload",
    source="docs/pump-formats.md §2, §6",
    identity="(sender MSH-3, control id MSH-10); the pump is pcd:OBX-18.1/OBX-18.3 of the MDS (of the alarm, in a PCD-04 without one)",
    elapsed="OBR-7 (PCD-04: OBX-14), as UTC; every message is its own clock anchor, unless it was sent a minute before its own time",
    gaps_visible=False,
    prime_targets=False,
    demands=False,
    limits=False,
    proof="none: a snapshot never starts a delivery",
    tells={
        "starts and stops": "primary, secondary, PCA, loading, clinician, intermittent, KVO, with reason, rate and volume of the segment",
        "rates": "a change of rate is a transitioning stop and a start",
        "boluses": "doses are deliveries of their own source",
        "alarms": "start and end, with their class; they never stop delivery by themselves, the stop says it",
        "clock": "UTC of every message; that the device's time was changed",
        "snapshots": "a PCD-01 that contradicts what runs shows that a message is missing: a hole before it",
    },
    does_not_tell=(
        "fills, sites, reservoir changes, demands granted or denied",
        "that a message is missing, but for what a snapshot contradicts",
        "that a message was damaged: HL7 has no checksum",
    ),
    unknown=(
        "the number of MDC_EVT_PUMP_DELIV_STOP: it is known by its name",
        "how a change of the device's time gives its old and new time: it is a loss of the clock",
        "whether a device number without its first letter in a PCD-04 is the same pump: it is taken as another",
        "two channels of one MDS count as one pump",
    ),
)

UNKNOWN_PUMP = f"{FAMILY}:unknown"
