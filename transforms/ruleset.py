"""Rule sets: versioned, dated data that turns facts into candidate lines for one kind of payer (docs/billing.md §5)."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from functools import cache
from typing import Any, Literal

from devices.errors import InputError
from transforms.codes import SAYS

_RANGES: Mapping[str, tuple[float, float]] = {
    "long_infusion_hold_min": (1, 44_640),
    "unit_cap_96370": (0, 1_000),
    "setup_separation_min": (0, 1_440),
    "near_threshold_min": (0, 60),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """The policies of a rule set, each with its default (docs/semantics.md §6)."""

    long_infusion_hold_min: float = 480
    unit_cap_96370: float = 8
    setup_separation_min: float = 15
    near_threshold_min: float = 5
    encounter: Literal["service_day", "session"] = "service_day"
    midnight: Literal["start_date", "split_by_day"] = "start_date"


@dataclass(frozen=True, slots=True, kw_only=True)
class LineRule:
    """When a code is proposed, and with how many units; `role` is what other rules call it."""

    code: str
    from_minutes: int
    citation: str
    to_minutes: int | None = None
    role: str = ""
    units: int = 0
    units_after_minutes: int = 0
    minutes_per_unit: int = 0
    revenue_codes: Sequence[str] | None = None
    """Where they differ from those of the rule set."""

    def units_for(self, minutes: int) -> int:
        """Units for whole minutes of infusion; 0 outside its band."""
        if minutes < self.from_minutes or (self.to_minutes is not None and minutes > self.to_minutes):
            return 0
        return (minutes - self.units_after_minutes) // self.minutes_per_unit if self.minutes_per_unit else self.units


@dataclass(frozen=True, slots=True, kw_only=True)
class Therapy:
    """The codes of a therapy's days, by drug."""

    name: str
    drugs: tuple[str, ...]
    continuous: str
    intermittent: str
    citation: str


@cache
def _words(drug: str) -> frozenset[str]:
    """The words of a drug's name."""
    return frozenset(re.findall(r"[a-z0-9]+", drug.lower()))


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSet:
    """One rule set as read from its TOML."""

    name: str
    version: str
    basis: Literal["encounter", "day", "evidence"]
    in_force_from: date
    in_force_to: date | None
    routes: tuple[str, ...]
    revenue_codes: tuple[str, ...]
    excluded_drugs: tuple[str, ...]
    lines: tuple[LineRule, ...]
    therapies: tuple[Therapy, ...]
    policies: Policies
    holds: frozenset[str]
    therapy_limits_ml_h: Mapping[str, float]
    sha256: str

    def covers(self, route: str, drug: str) -> bool:
        """Whether it has lines for this route and drug at all; no routes named: for any."""
        return (not self.routes or route in self.routes) and not self.excludes(drug)

    def day_code(self, drug: str, *, continuous: bool) -> tuple[str, str] | None:
        """The code of a therapy day and its citation; None where no therapy names the drug: nothing is guessed."""
        words = _words(drug)
        for therapy in self.therapies:
            if words.intersection(therapy.drugs):
                return (therapy.continuous if continuous else therapy.intermittent), therapy.citation
        return None

    def in_force(self, day: date) -> bool:
        """Whether it holds on this service date."""
        return self.in_force_from <= day and (self.in_force_to is None or day <= self.in_force_to)

    def excludes(self, drug: str) -> bool:
        """Whether a drug is on its list: any listed word as a word of the drug's name. One that is not named may be on it."""
        words = _words(drug)
        return not words.isdisjoint(self.excluded_drugs) if words else bool(self.excluded_drugs)

    def limit_ml_h(self, drug: str) -> float | None:
        """The therapy's rate limit, where the rule set gives one."""
        return min((self.therapy_limits_ml_h[w] for w in _words(drug) if w in self.therapy_limits_ml_h), default=None)

    def units(self, minutes: int) -> dict[str, int]:
        """Role or code → units for whole minutes, set-ups apart."""
        return {rule.code: n for rule in self.lines if rule.role != "setup" and (n := rule.units_for(minutes))}

    def revenue_of(self, code: str) -> list[str]:
        """The revenue codes that a code is named with."""
        own = next((rule.revenue_codes for rule in self.lines if rule.code == code), None)
        return list(self.revenue_codes if own is None else own)

    def rule(self, role: str) -> LineRule | None:
        """The rule with this role."""
        return next((rule for rule in self.lines if rule.role == role), None)

    def policies_json(self, facts: Mapping[str, Any]) -> str:
        """All policies in force, those of the lake included, as JSON."""
        return json.dumps({**facts, **asdict(self.policies)}, sort_keys=True)


def parse(data: bytes, sha256: str, *, name: str) -> RuleSet:
    """Reads a rule set. Raises InputError where something is missing, unknown or out of range."""
    try:
        raw = tomllib.loads(data.decode())
        policies = Policies(**raw.get("policies", {}))
        rules = RuleSet(
            name=raw["name"],
            version=raw["version"],
            in_force_from=raw["in_force_from"],
            in_force_to=raw.get("in_force_to"),
            basis=raw["basis"],
            routes=tuple(raw.get("routes", ())),
            revenue_codes=tuple(raw.get("revenue_codes", ())),
            excluded_drugs=tuple(word.lower() for word in raw.get("excluded_drugs", ())),
            lines=tuple(LineRule(**line) for line in raw.get("line", ())),
            therapies=tuple(Therapy(**{**one, "drugs": tuple(one["drugs"])}) for one in raw.get("therapy", ())),
            policies=policies,
            holds=frozenset(raw["holds"]["codes"]),
            therapy_limits_ml_h={k: float(v) for k, v in raw.get("therapy_limits_ml_h", {}).items() if k != "citation"},
            sha256=sha256,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"The rule set {name} cannot be read: {error}.", do="Mend its TOML.", code="rule_set") from error
    if rules.basis not in ("encounter", "day", "evidence"):
        raise InputError(f"Rule set {name}: there is no basis {rules.basis!r}.", do="See docs/semantics.md §6.", code="rule_set")
    if unknown := sorted(rules.holds - SAYS.keys()):
        raise InputError(f"Rule set {name}: it holds on {unknown[0]!r}, which is no code.", do="See docs/semantics.md §6.", code="rule_set")
    for policy, (low, high) in _RANGES.items():
        value = getattr(policies, policy)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise InputError(f"Rule set {name}: {policy} is {value!r}.", do=f"Give a number from {low} to {high}.", code="policy")
    if policies.encounter not in ("service_day", "session") or policies.midnight not in ("start_date", "split_by_day"):
        raise InputError(f"Rule set {name}: there is no such encounter or midnight policy.", do="See docs/semantics.md §6.", code="policy")
    return rules
