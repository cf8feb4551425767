"""When and in what order: Airflow 3.3, no logic."""
