"""The capability sheet of the family."""

from __future__ import annotations

from devices.contract import Sheet

FAMILY = "tandem"

SHEET = Sheet(
    family=FAMILY,
    title="Tandem t:slim X2 event log",
    models="t:slim X2 (BLE form, little-endian: verified on captured records; cloud form, big-endian: layout only)",
    transport="files and MQTT batches: records or BLE stream messages, raw, hex or base64",
    source="docs/pump-formats.md §7",
    identity="(pump, sequence number); the numbers leave no holes",
    elapsed="the record's seconds, with the clock changes that the log tells removed; no elapsed time of its own",
    gaps_visible=True,
    prime_targets=True,
    demands=False,
    limits=False,
    proof="none: a rate or a bolus never proves that basal delivers",
    tells={
        "starts and stops": "suspended (user, alarm, malfunction, algorithm) and resumed; the rate of the resume from the same second",
        "rates": "every change and every commanded rate of the basal, in U/h",
        "boluses": "requested, activated, completed: amounts in U, duration from activation to completion, extended ones too",
        "set-ups": "cartridge filled, tubing filled, cannula filled (a new site), each with how it ended",
        "alarms": "alarms, alerts, malfunctions, raised and cleared",
        "clock": "time and date changes with old and new value",
        "totals": "basal since midnight; the day's is the last before the new day",
    },
    does_not_tell=(
        "UTC or a time zone: seconds are the pump's local clock",
        "whether a bare record was damaged: only BLE messages carry a checksum",
        "a programmed amount of a fill",
    ),
    unknown=(
        "no sample of the cloud's big-endian log is public beyond single records, some of them composed",
        "no sample of a tubing or cannula fill was at hand; shut down (53) and start-up (99) are inferred",
        "a bare record with a source above 1, or an event above 1023, was never seen: it is quarantined",
        "279 with source 0 (suspended) and a commanded rate above zero was never seen: it would be read as rate 0",
    ),
)
