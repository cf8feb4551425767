"""When and in what order: Airflow 3.3, no logic. What both DAGs share stands here; the lake is named by PUMPLEDGER_LAKE."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import Asset

from devices.errors import InputError

SESSIONS = Asset("pumpledger://sessions")
"""Sessions and set-ups of a whole night are published: what there is to bill may have changed."""

COMMON: dict[str, Any] = {
    "catchup": False,
    "max_active_runs": 1,
    "default_args": {"retries": 2, "retry_delay": timedelta(minutes=2), "execution_timeout": timedelta(hours=2)},
}

RANGES = 4
"""How many mapped tasks share the buckets: a task costs seconds whatever it does (docs/design.md §6)."""


def lake() -> Path:
    """The lake's root, from the environment. Raises InputError where it names none: Airflow's own folder is no place for a lake."""
    root = os.environ.get("PUMPLEDGER_LAKE")
    if not root:
        raise InputError("No lake is named.", do="Set PUMPLEDGER_LAKE where Airflow runs its tasks.", code="no_lake")
    return Path(root)


def ranges(buckets: list[int]) -> list[list[int]]:
    """Buckets dealt out to at most RANGES mapped tasks, none of them idle."""
    return [part for part in (buckets[first::RANGES] for first in range(RANGES)) if part]
