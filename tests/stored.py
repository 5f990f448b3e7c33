"""A store with a measured original and candidates, made without training anything; for the tests of choosing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from test_backends import random_texts, tiny_source

from mlflow_slim import bundle, flavor
from mlflow_slim.artifact import ExportedModel, OptimizationCost, StepRecord
from mlflow_slim.catalog import load_backend
from mlflow_slim.measurement.report import Report
from mlflow_slim.probes import answers_to_probes
from mlflow_slim.tracking import open_recipe_run

EXPERIMENT = "choice"
CONDITIONS = {"threads": 1, "host": {"fingerprint": "aaaa", "cpu": "Some CPU"}}
PARAMS = {
    "slim.measure.protocol": "2",
    "slim.measure.test_digest": "d" * 36,
    "slim.measure.test_rows": "1600",
    "slim.measure.threads": "1",
    "slim.measure.quality_margin": "0.01",
}


def export(folder: Path, *, steps: tuple[str, ...] = (), number: int = 0) -> ExportedModel:
    """A tiny model in a folder, for torch; each ``number`` answers differently."""
    from dataclasses import replace

    lineage = tuple(StepRecord(name, {}, cost=OptimizationCost(12.0, 0.001, "C")) for name in steps)
    source = replace(tiny_source(layers=1), lineage=lineage)
    source.model.classifier.bias.data += float(number)
    return load_backend("torch").export(source, folder, random_texts(4, seed=1))


def report(
    variant: str, accuracy: float, ms: float, wh: float, mib: float, *, tags: dict[str, str] | None = None
) -> Report:
    """Figures as a measurement writes them."""
    metrics = {"quality/accuracy": accuracy, "size/disk_mib": mib, "throughput/samples_per_s": 1000 / ms}
    for key, value in {"latency/p50_ms": ms, "latency/p90_ms": 1.2 * ms, "energy/wh_per_1k_samples": wh}.items():
        metrics |= {key: value, f"{key}_lo": 0.98 * value, f"{key}_hi": 1.02 * value}
    words = {"slim.quality.metric": "accuracy", "slim.measure.contended": "false", "slim.energy.grade": "C"}
    if variant != "baseline":
        metrics |= {
            "quality/accuracy_delta": accuracy - 0.9,
            "quality/accuracy_delta_lo": accuracy - 0.905,
            "quality/accuracy_delta_hi": accuracy - 0.895,
            "quality/smallest_margin": 0.005,
            "speedup/single": 10 / ms,
            "size/compression": 90 / mib,
            "optimize/energy_kwh": 0.001,
        }
        words |= {
            "slim.quality.verdict": "non-inferior" if accuracy >= 0.895 else "worse",
            "slim.speed.verdict": "faster" if ms < 10 else "slower",
            "slim.energy.verdict": "greener" if wh < 2 else "hungrier",
        }
    return Report(variant, metrics, {**words, **(tags or {})}, PARAMS)


def log_points(folder: Path, candidates: list[tuple[ExportedModel, Report]], original: ExportedModel) -> list[str]:
    """Logs an original and candidates as one recipe does; the ids of their runs."""
    import mlflow

    if mlflow.MlflowClient().get_experiment_by_name(EXPERIMENT) is None:
        mlflow.create_experiment(EXPERIMENT, artifact_location=(folder / "artifacts").as_uri())
    runs: list[str] = []
    digest = bundle.content_digest(original.directory)
    with open_recipe_run({"name": "made"}, experiment=EXPERIMENT, conditions=CONDITIONS) as recipe_run:
        for exported, figures in [(original, report("baseline", 0.9, 10, 2, 90)), *candidates]:
            point = recipe_run.open_point(
                figures.variant, step=len(exported.lineage), baseline_run_id=runs[0] if runs else None
            )
            own = {"slim.model.digest": bundle.content_digest(exported.directory), "slim.baseline.digest": digest}
            point.log_model(
                flavor.log_model, exported, params={"slim.task": exported.task, "slim.backend": exported.backend, **own}
            )
            predictor = load_backend(exported.backend).load(exported.directory, threads=1)
            point.log_answers(*answers_to_probes(predictor, exported.spec))
            point.set_tags({"slim.reload": "same"})
            point.log_report(figures)
            point.finish()
            runs.append(point.run_id)
    return runs


def change(client: Any, run_id: str, **tags: str | None) -> None:
    """Sets (or with None deletes) tags named with dots as double underscores."""
    for name, value in tags.items():
        key = name.replace("__", ".")
        if value is None:
            client.delete_tag(run_id, key)
        else:
            client.set_tag(run_id, key, value)
