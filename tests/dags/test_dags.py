"""Both DAGs in a real Airflow, on a real lake."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tests.dags.conftest import EVENING, Site, infusion

NIGHT, BILLING = "pumpledger_night", "pumpledger_billing"


def test_both_dags_are_read_without_errors_and_their_tasks_are_retried_and_bounded(site: Site) -> None:
    with site.airflow() as airflow:
        told = airflow("describe")
        assert [airflow("takes", day) for day in ("", "2026-03-31", "31.3.2026", "yesterday")] == [True, True, False, False]
    assert told["errors"] == {}
    assert set(told["dags"]) == {NIGHT, BILLING}
    assert told["dags"][NIGHT]["cron"] == ["30 2 * * *", "UTC"]
    assert told["dags"][NIGHT]["outlets"] == [told["dags"][BILLING]["awaits"]] == ["pumpledger://sessions/"]
    for dag in told["dags"].values():
        assert dag["catchup"] is False
        assert dag["max_active_runs"] == 1
        assert min(dag["retries"].values()) >= 2
        assert dag["bounded"]


def test_a_night_and_its_billing_make_lines_and_running_the_day_again_changes_no_file_of_the_lake(site: Site) -> None:
    moment = datetime.now(UTC).replace(hour=2, minute=30, second=0, microsecond=0)
    with site.airflow() as airflow:
        first = airflow.run(NIGHT, moment)
        assert (first["state"], first["assets"]) == ("success", 1), first
        assert first["results"]["drain"] == {"received": 1, "refused": 0}
        (touched,) = first["results"]["touched"]
        assert first["names"] == [f"buckets {touched[0]}"]
        assert [row["pump_id"] for row in site.rows("sessions")] == ["canonical:A17"]
        billed = airflow.run(BILLING)
        assert billed["state"] == "success", billed
        assert billed["results"]["summary"] == {"buckets": 8, "patients": 1}
        assert {row["patient_id"] for row in site.rows("lines")} == {"P1"}
        before = site.files()

        again = airflow.run(NIGHT, moment)
        assert (again["state"], again["assets"]) == ("success", 1), again
        assert again["results"]["touched"] == [touched], "a day names the captures received on it, however often it is run"
        assert airflow.run(BILLING)["results"]["summary"] == {"buckets": 8, "patients": 0}
        assert site.files() == before

        other = airflow.run(NIGHT, moment, day="2020-01-01")
        assert other["results"]["touched"] == []
        assert other["states"]["consolidate"] == "skipped"
        assert (other["state"], other["assets"]) == ("success", 1), "what there is to bill may have changed without any capture"
        assert site.files() == before


def test_a_dead_port_stops_nothing_but_the_run_says_so(site: Site) -> None:
    dead = str(site.folder / "no-such-port")
    site.write("pumpledger.toml", f'orders = "orders.csv"\n\n[[dock]]\nport = "{dead}"\n')
    site.load(*infusion(6, EVENING + timedelta(days=1)))
    with site.airflow() as airflow:
        night = airflow.run(NIGHT)
        assert night["states"]["sync[0]"] == "failed"
        assert dead in night["names"]
        assert night["states"]["publish"] == "success"
        assert (night["state"], night["assets"]) == ("failed", 1)
        assert airflow.run(BILLING)["state"] == "success"
    assert len(site.rows("sessions")) == 2
    assert site.rows("lines")
