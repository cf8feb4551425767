"""What each code of docs/semantics.md §6 says to a person, and what it suggests to do next."""

from __future__ import annotations

from collections.abc import Iterable

SAYS: dict[str, tuple[str, str]] = {
    "NO_STOP": (
        "A delivery has no recorded stop.",
        (
            "Where it runs into a hole of the log it is counted to its last record: no stop can be confirmed there, only this cleared. "
            "Else find when it ended, from volume and rate or the visit record, and confirm a stop."
        ),
    ),
    "NO_START": ("A stop was recorded for a delivery whose start is not in the log.", "Look for an earlier download of this pump."),
    "SESSION_OPEN": ("The infusion was still running at the end of the log.", "Sync the pump again after the infusion has ended."),
    "LOG_GAP": ("Records are missing from the pump's log.", "Download the pump again; an earlier capture may hold them."),
    "CLOCK_UNCERTAIN": (
        "The pump's clock was lost or cannot be tied to UTC here.",
        "Confirm the clock from the visit record, or sync again.",
    ),
    "RECORD_CONFLICT": ("The same record was read twice with different content.", "Compare both readings; download the pump again."),
    "ORDER_BOUNDARY": ("A delivery ran past the end of its order.", "Check the order's stop, and which order the delivery belongs to."),
    "OVER_8H": ("The infusion is longer than the policy allows without a look.", "Consider per-diem billing, or confirm the duration."),
    "OVER_UNIT_CAP": ("More further hours than the cap.", "Consider per-diem billing, or confirm the units."),
    "IV_SAME_ENCOUNTER": (
        "The patient has an intravenous infusion on this date.",
        "Decide which service is billed; see the payer's rules.",
    ),
    "OVERLAPPING_PUMPS": ("Two pumps of this order infused at the same time.", "Check which pump was on the patient."),
    "SECOND_ORDER_SAME_DAY": (
        "Another order of this patient has lines on this date or infused at the same time.",
        "Decide which order is billed.",
    ),
    "DEMAND_ONLY": ("All delivery was by boluses; there was no basal infusion.", "Consider per-diem billing."),
    "LOCKOUT_VIOLATION": ("Two demands were granted within the lockout.", "Check the pump's clock and the decoding of its log."),
    "VOLUME_MISMATCH": ("The volume the pump told differs from rate x time.", "Compare with the reservoir, and check the rates."),
    "AMENDED_AFTER_RELEASE": (
        "What a released line rests on has changed since it was released, or a further line came to it.",
        "Compare the revisions (pumpledger amendments). Once this is cleared, the next release takes what nothing else holds.",
    ),
    "REVIEWER_HOLD": ("A reviewer holds this.", "Look at the reviewer's note; take the decision back when it is settled."),
    "DECISION_LAPSED": (
        "A reviewer's decision no longer holds: what it was taken on has changed.",
        "Decide anew, or take the old decision back.",
    ),
    "NOT_IN_FORCE": ("The order's rule set is not in force on this date.", "Check the date; choose a rule set that covers it."),
    "NO_CODE": (
        "No therapy of this rule set names the drug, and no code is guessed.",
        "Choose the code by hand, or add the drug to the rule set.",
    ),
    "LE_15_MIN": ("15 minutes or less of infusion.", "Reported as an injection; nothing to do if that is right."),
    "NEAR_THRESHOLD": ("A few minutes from another number of units.", "Look at the ledger before it is billed."),
    "CROSS_MIDNIGHT": ("A session passes midnight.", "All units stand on the date it started."),
    "GAP_OVER_LIMIT": ("Several sessions were summed.", "Look at the gaps between them."),
    "KVO_EXCLUDED": ("Keep-vein-open time was not counted.", "Nothing, if that is right."),
    "ALARM_PAUSE_EXCLUDED": ("Time stopped by an alarm was not counted.", "Nothing, if that is right."),
    "SECOND_96371": ("Two or more further set-ups count, but only one is billed.", "Nothing, if that is right."),
    "SITE_CHANGE_NO_PUMP_SETUP": ("A new site was made without a pump set-up.", "Check the visit record."),
    "POSSIBLE_SITE_CHANGE": ("A further set-up may have had a new site.", "Confirm the site from the visit record."),
    "ADDON_WITHOUT_INITIAL": (
        "A further code stands without its initial hour.",
        "Nothing is billed for it; decide on the initial line first.",
    ),
    "SITE_DWELL_LONG": ("More than 72 hours on one site.", "Check whether a site change was not recorded."),
    "RATE_ABOVE_THERAPY_LIMIT": ("A rate above what this therapy usually allows.", "Check the programme and the order's drug."),
    "DELIVERED_GT_DEMANDED": ("More patient boluses than granted demands.", "Check the log for missing records."),
    "UNASSIGNED_PUMP": ("The pump delivered without an order in force.", "Add its order to orders.csv, or correct the times there."),
    "NOT_SYNCED": ("An order is in force, but no capture of its pump reaches these dates.", "Sync the pump."),
    "EXCLUDED_DRUG": (
        "The drug is not billed by this rule set, or the order names none.",
        "Bill it as equipment and supplies, or choose another rule set; name the drug in orders.csv.",
    ),
    "ROUTE_NOT_SC": ("The order's route is not subcutaneous.", "Choose the rule set of its route."),
    "HOME_SETTING_USE_PER_DIEM": ("Place of service 12: the home.", "Most payers want per-diem or equipment billing; the contract wins."),
    "TOTALS_DISAGREE": (
        "The daily total that the pump tells is not what its records add up to.",
        "Download the pump again; if that changes nothing, compare the date with the visit record.",
    ),
    "GAPS_INVISIBLE": ("This pump's log cannot show that a record is missing.", "Compare with the visit record."),
}
"""Code → what was found, what to do next."""

BIT = {code: 1 << place for place, code in enumerate(SAYS)}
"""Code → its bit in a set of codes that is kept as a number."""


def named(bits: int) -> list[str]:
    """The codes of such a set, in the order of the table."""
    return [code for code, bit in BIT.items() if bits & bit]


def bits_of(codes: Iterable[str]) -> int:
    """The inverse of `named`."""
    return sum(BIT[code] for code in set(codes))
