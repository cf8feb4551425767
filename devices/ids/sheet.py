"""The capability sheet of the family."""

from __future__ import annotations

from devices.contract import Sheet

FAMILY = "ids"

SHEET = Sheet(
    family=FAMILY,
    title="Bluetooth Insulin Delivery Service history",
    models="any pump of the service 1.0.2; Medtronic 780G where its stream is already decrypted",
    transport="asked over RACP, through a BLE-to-MQTT bridge or any stream of lines; files of logged notifications",
    source="docs/pump-formats.md §5",
    identity="(pump, sequence number); the numbers leave no holes",
    elapsed="its own: seconds since the last reference time, summed over reference times; a loss of the clock is a cut",
    gaps_visible=True,
    prime_targets=False,
    demands=False,
    limits=True,
    proof="none: a rate or a bolus never proves that basal delivers",
    tells={
        "starts and stops": "therapy control state to and from run; standby and priming out of ready; on a 780G also stopped and restarted",
        "rates": "every change of the delivered basal rate, in U/h",
        "boluses": "programmed and delivered, in U, at their end, with their duration",
        "set-ups": "preparing (rewind, reservoir) and priming with amount and how it ended; not what was primed",
        "alarms": "annunciations, pending and confirmed, with their class; the limit of delivery",
        "clock": "reference times, set, periodic or lost, each with the seconds since the one before",
        "totals": "bolus and basal of each day",
    },
    does_not_tell=(
        'its serial number, nor its model: name the pump, and a Medtronic 780G as one (`model = "780g"` in its [[dock]])',
        "how wide its amounts are, but by their records: a download ends where they are not the model's; it finds E2E-CRC by asking",
        "which part a priming fills: tubing or cannula",
        "UTC: the clock is read beside the log, from Current Time, where the pump has it",
        "that a limit is over: a confirmation clears none",
        "whether a record was damaged, unless E2E-CRC is on",
    ),
    unknown=(
        "Reference Time Base Offset (0033) is read, but is no base: no log that has nothing else is known",
        "whose a maker's own records are: nothing in a history names the maker, and 32-bit amounts alone do not make it Medtronic",
        "of Medtronic's records only those of docs/pump-formats.md §5.2 are read; the others are kept as `other`",
    ),
)
