"""What pumps themselves say that they gave on a day, beside what their records add up to (docs/semantics.md §6, TOTALS_DISAGREE)."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_LEAST, _SHARE = 0.5, 0.02
"""Both must be exceeded: half a unit, and 2 % of what the pump says. Whole seconds and rounded amounts explain less than that."""


def disagreements(checks: pa.Table) -> list[dict[str, Any]]:
    """The rows of CHECKS (`devices.contract`) whose two figures differ by more than rounding explains, in their order."""
    apart = pc.abs(pc.subtract(checks["told"], checks["summed"]))
    allowed = pc.max_element_wise(pc.multiply(checks["told"], _SHARE), _LEAST)
    found: list[dict[str, Any]] = checks.filter(pc.greater(apart, allowed)).to_pylist()
    return found
