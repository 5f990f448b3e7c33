"""How long the frontier over many runs takes: reading them from MLflow, and ranking them.

Usage: python benchmarks/frontier.py DATABASE [--runs 10000]   (a sqlite store with points of a recipe; it is copied)

The points of the store are copied row by row, with figures that differ, as logging that many would take hours.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sqlite3
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from mlflow_slim.measurement.host import host


def multiply(path: Path, runs: int) -> str:
    """Copies points until there are so many; the experiment they are in."""
    rnd = random.Random(0)
    with sqlite3.connect(path) as database:
        points = [
            row[0] for row in database.execute("SELECT run_uuid FROM tags WHERE key = 'slim.kind' AND value = 'point'")
        ]
        known = len(points)
        tables = {
            name: [column[1] for column in database.execute(f"PRAGMA table_info({name})")]
            for name in ("runs", "params", "tags", "latest_metrics")
        }
        rows = {
            name: {
                point: database.execute(f"SELECT * FROM {name} WHERE run_uuid = ?", (point,)).fetchall()
                for point in points
            }
            for name in tables
        }
        for number in range(runs - known):
            source, new = points[number % known], uuid.UUID(int=rnd.getrandbits(128)).hex
            for name, columns in tables.items():
                copies = []
                for row in rows[name][source]:
                    values: dict[str, Any] = dict(zip(columns, row, strict=True)) | {"run_uuid": new}
                    if name == "latest_metrics":
                        values["value"] *= 1 + 0.1 * rnd.random()
                    if name == "params" and values["key"] == "slim.model.digest":
                        values["value"] = new
                    copies.append(tuple(values[column] for column in columns))
                marks = ",".join("?" * len(columns))
                database.executemany(f"INSERT INTO {name} VALUES ({marks})", copies)
        (experiment,) = database.execute(
            "SELECT name FROM experiments WHERE experiment_id = (SELECT experiment_id FROM runs WHERE run_uuid = ?)",
            (points[0],),
        ).fetchone()
    return str(experiment)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("database", type=Path)
    parser.add_argument("--runs", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "mlflow.db"
        shutil.copyfile(options.database, copy)
        experiment = multiply(copy, options.runs)
        import mlflow

        mlflow.set_tracking_uri(f"sqlite:///{copy}")
        from mlflow_slim.ranking import rank
        from mlflow_slim.tracking import connect
        from mlflow_slim.tracking.stored_points import find_experiments, read_points

        client = connect()
        start = time.perf_counter()
        points = read_points(client, find_experiments(client, [experiment]))
        read = time.perf_counter()
        found = rank(points)
        done = time.perf_counter()
        seconds = {"read_s": read - start, "rank_s": done - read}
        print(json.dumps({"host": host().cpu, "points": len(points), "ranked": len(found.points), **seconds}, indent=1))


if __name__ == "__main__":
    main()
