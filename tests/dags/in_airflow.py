"""Runs DAGs in a process of its own, for `conftest.Airflow`: Airflow reads its settings when it is imported, once.

A job a line on stdin, its result a line on the file descriptor named by the first argument; stdout and stderr are Airflow's.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import datetime, timedelta
from typing import Any

from airflow.utils.db import initdb

initdb()

from airflow.dag_processing.dagbag import DagBag  # noqa: E402
from airflow.models.asset import AssetEvent  # noqa: E402
from airflow.sdk.exceptions import ParamValidationError  # noqa: E402
from airflow.utils.session import create_session  # noqa: E402
from sqlalchemy import func, select  # noqa: E402

BAG = DagBag(os.environ["AIRFLOW__CORE__DAGS_FOLDER"])


def describe() -> dict[str, Any]:
    """What the DAG files say."""
    return {
        "errors": BAG.import_errors,
        "dags": {
            dag.dag_id: {
                "cron": [getattr(dag.timetable, name, None) for name in ("expression", "timezone")],
                "awaits": getattr(dag.timetable.asset_condition, "uri", None),
                "catchup": dag.catchup,
                "max_active_runs": dag.max_active_runs,
                "retries": {task.task_id: task.retries for task in dag.tasks},
                "bounded": all(task.execution_timeout for task in dag.tasks),
                "outlets": [asset.uri for task in dag.tasks for asset in task.outlets],
            }
            for dag in BAG.dags.values()
        },
    }


def takes(day: str) -> bool:
    """Whether the night takes this text for a day."""
    try:
        BAG.dags["pumpledger_night"].params.get_param("day").resolve(day)
    except ParamValidationError:
        return False
    return True


def run(dag_id: str, moment: str | None, conf: dict[str, Any] | None) -> dict[str, Any]:
    """One run of a DAG, its retries without their waits."""
    dag = BAG.dags[dag_id]
    for task in dag.tasks:
        task.retry_delay = timedelta()
    before = _assets()
    done = dag.test(logical_date=moment and datetime.fromisoformat(moment), run_conf=conf)
    tasks = done.get_task_instances()
    return {
        "state": done.state,
        "states": {f"{ti.task_id}[{ti.map_index}]" if ti.map_index >= 0 else ti.task_id: ti.state for ti in tasks},
        "names": sorted(ti.rendered_map_index for ti in tasks if ti.rendered_map_index),
        "results": {ti.task_id: ti.xcom_pull(ti.task_id) for ti in tasks if ti.map_index < 0},
        "assets": _assets() - before,
    }


def _assets() -> int:
    with create_session() as session:
        return session.scalar(select(func.count()).select_from(AssetEvent)) or 0


if __name__ == "__main__":
    jobs = {"describe": describe, "takes": takes, "run": run}
    with os.fdopen(int(sys.argv[1]), "w") as results:
        for line in sys.stdin:
            name, *arguments = json.loads(line)
            print(json.dumps(jobs[name](*arguments)), file=results, flush=True)
