"""What the log of a Medtronic Paradigm tells, and what it does not."""

from __future__ import annotations

from devices.contract import Sheet

FAMILY = "paradigm"

SHEET = Sheet(
    family=FAMILY,
    title="Medtronic Paradigm 5xx/7xx",
    models="508 to 754; the last two digits choose the layout: below 23 in 1/10 U, from 23 on in 1/40 U",
    transport="serial: CareLink USB stick, 9600 8N1; files: history pages, recorded dialogues",
    source="docs/pump-formats.md §3, measured on captured pages",
    identity="(pump, page start, offset in the page, record code); page numbers mean nothing across downloads",
    elapsed="the printed clock, with the clock changes that the log tells; after a battery reset it is lost",
    gaps_visible=True,
    prime_targets=True,
    demands=False,
    limits=False,
    proof="a bolus that starts after the halt, on every model; from x23 on a basal profile start (7b) above zero, "
    "which is written only while basal is delivered: nothing else tells that it resumed after a rewind or an alarm",
    tells={
        "starts and stops": "suspend and resume; alarms that stop delivery",
        "rates": "temporary basal; from x23 on each start of a basal profile segment",
        "boluses": "programmed and delivered amount, square or normal, at their start",
        "set-ups": "rewind, primes of tubing and cannula with their amounts",
        "clock": "changes with old and new time, losses by battery reset, the clock itself when the pump is asked",
        "checks": "daily totals: basal and bolus",
    },
    does_not_tell=(
        "when basal resumes after a rewind or an alarm, on models below x23 (until the next bolus)",
        "the end of a temporary basal, on models below x23",
        "how long a normal bolus took",
        "which new site an infusion has, other than by the prime of its cannula",
    ),
    unknown=(
        "the meaning of records that are kept as `other`",
        "whether square boluses are rewritten in place from x23 on: such a record is taken as an update",
    ),
)
