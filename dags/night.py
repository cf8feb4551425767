"""Each night: docked pumps → store → raw captures → sessions and set-ups, then the asset that starts the billing.

A dead port stops nothing, but the run ends as failed, so that somebody looks. `day` names a UTC day whose captures are derived
again; without one it is the run's own. What changed since the night before is derived in any case.
"""

from __future__ import annotations

from datetime import date
from typing import Any

from airflow.sdk import CronTriggerTimetable, Param, TriggerRule, dag, task

from dags import COMMON, SESSIONS, lake, ranges

DAY = Param("", type="string", pattern=r"^(\d{4}-\d{2}-\d{2})?$", description="UTC day, as 2026-03-31; empty for the run's own day")


@dag(dag_id="pumpledger_night", schedule=CronTriggerTimetable("30 2 * * *", timezone="UTC"), params={"day": DAY}, doc_md=__doc__, **COMMON)
def pumpledger_night() -> None:
    """Syncs, drains, consolidates, and says so."""

    @task
    def ports() -> list[str]:
        from ingest import docks

        return docks.ports(lake())

    @task(map_index_template="{{ task.op_kwargs['port'] }}")
    def sync(port: str) -> dict[str, Any]:
        from ingest import docks

        return docks.sync(lake(), port)

    @task(trigger_rule=TriggerRule.ALL_DONE)
    def drain() -> dict[str, Any]:
        from ingest import night

        return night.drain(lake())

    @task
    def touched(params: Any = None, dag_run: Any = None) -> list[list[int]]:
        from ingest import night

        night.take_orders(lake())
        day = date.fromisoformat(params["day"] or (dag_run.logical_date or dag_run.run_after).strftime("%Y-%m-%d"))
        return ranges(sorted({*night.touched(lake(), day), *night.touched(lake(), None)}))

    @task(map_index_template="buckets {{ task.op_kwargs['buckets'] | join(', ') }}")
    def consolidate(buckets: list[int]) -> list[dict[str, Any]]:
        from ingest import night

        return [night.consolidate(lake(), bucket) for bucket in buckets]

    @task(trigger_rule=TriggerRule.NONE_FAILED, outlets=[SESSIONS])
    def publish() -> None:
        """Once a night, also when no pump had anything to say: orders, rules and decisions may have changed."""

    @task(trigger_rule=TriggerRule.NONE_FAILED)
    def every_port_answered() -> None:
        """Fails with any port, and the run with it."""

    synced, found = sync.expand(port=ports()), touched()
    synced >> every_port_answered()
    synced >> drain() >> found
    consolidate.expand(buckets=found) >> publish()


pumpledger_night()
