"""Whenever sessions are published: facts → candidate lines and the worklist, bucket by bucket."""

from __future__ import annotations

from typing import Any

from airflow.sdk import dag, task

from dags import COMMON, SESSIONS, lake, ranges


@dag(dag_id="pumpledger_billing", schedule=SESSIONS, is_paused_upon_creation=False, doc_md=__doc__, **COMMON)
def pumpledger_billing() -> None:
    """Bills every bucket; one whose inputs did not change costs nothing."""

    @task
    def buckets() -> list[list[int]]:
        from ingest import night

        return ranges(night.buckets(lake()))

    @task(map_index_template="buckets {{ task.op_kwargs['buckets'] | join(', ') }}")
    def bill(buckets: list[int]) -> list[dict[str, Any]]:
        from ingest import night

        return [night.bill(lake(), bucket) for bucket in buckets]

    @task
    def summary(billed: Any) -> dict[str, int]:
        done = [bucket for part in billed for bucket in part]
        return {"buckets": len(done), "patients": sum(bucket["patients"] for bucket in done)}

    summary(bill.expand(buckets=buckets()))


pumpledger_billing()
