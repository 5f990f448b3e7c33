"""The demo over several seeds: accuracy kept, agreement of the runtimes, share of bookkeeping.

Usage: python benchmarks/seeds.py [--seeds 0 1 2] [--uri sqlite:///seeds.db]
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

import mlflow

import mlflow_slim as slim
from mlflow_slim.measurement.host import host

BOOKKEEPING = ("export", "log", "check")


def one_seed(seed: int) -> dict[str, Any]:
    """Figures of one run of the demo, measured for quality only, so that bookkeeping weighs more than it does."""
    cheap = {"measure.timing_s": 2, "measure.energy_s": 0, "measure.fresh_starts": 0, "quick": True}
    outcome = slim.run("distill", seed=seed, **cheap)
    teacher, student, exported = (report.metrics for report in outcome.reports)
    twins = slim.measure(outcome.points[2].model_uri, against=outcome.points[1].model_uri, **cheap)[1].metrics
    whole = sum(outcome.seconds.values())
    return {
        "seed": seed,
        "teacher_accuracy": teacher["quality/accuracy"],
        "student_accuracy": student["quality/accuracy"],
        "kept": student["quality/accuracy"] / teacher["quality/accuracy"],
        "onnx_accuracy": exported["quality/accuracy"],
        "onnx_agrees_with_torch": twins["quality/agreement"],
        "bookkeeping_share": sum(outcome.seconds[name] for name in BOOKKEEPING) / whole,
        "seconds": {name: round(value, 1) for name, value in outcome.seconds.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--uri", default="sqlite:///seeds.db")
    options = parser.parse_args()
    mlflow.set_tracking_uri(options.uri)
    runs = [one_seed(seed) for seed in options.seeds]
    kept = [run["kept"] for run in runs]
    print(
        json.dumps(
            {
                "host": host().to_dict(),
                "runs": runs,
                "kept_mean": statistics.mean(kept),
                "kept_range": [min(kept), max(kept)],
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
