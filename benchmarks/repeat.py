"""Two measurements of the same two models, and a model against itself.

Usage: python benchmarks/repeat.py BASELINE CANDIDATE   (bundle folders or models:/ URIs; data: the demo)
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import mlflow_slim as slim
from mlflow_slim.measurement.host import host


def speed(against: str, model: str) -> dict[str, Any]:
    report = slim.measure(model, against=against, **{"measure.energy_s": 0, "measure.fresh_starts": 0})[1]
    keys = ("speedup/single", "speedup/offline")
    figures = {f"{key}{end}": report.metrics.get(f"{key}{end}") for key in keys for end in ("", "_lo", "_hi")}
    verdicts = {k: report.tags.get(k) for k in ("slim.speed.verdict", "slim.speed.offline.verdict")}
    return {**figures, **verdicts, "contended": report.tags["slim.measure.contended"]}


def overlap(first: dict[str, Any], second: dict[str, Any], key: str) -> bool | None:
    ends = [run[f"{key}{end}"] for run in (first, second) for end in ("_lo", "_hi")]
    return None if None in ends else ends[0] <= ends[3] and ends[2] <= ends[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("baseline")
    parser.add_argument("candidate")
    options = parser.parse_args()
    runs = [speed(options.baseline, options.candidate) for _ in range(2)]
    found = {
        "host": host().to_dict(),
        "runs": runs,
        "overlap": {key: overlap(*runs, key) for key in ("speedup/single", "speedup/offline")},
        "baseline_against_itself": speed(options.baseline, options.baseline),
        "candidate_against_itself": speed(options.candidate, options.candidate),
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
