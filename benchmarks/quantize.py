"""int8 on ONNX Runtime against the float32 torch original, on the demo and on two other real data sets, one thread.

Usage: python benchmarks/quantize.py [--sets demo tweets movies] [--cache FOLDER]

The two others are ratings of sentiment by people (Hutto and Gilbert 2014, ICWSM; MIT licence): 4,200 tweets and 10,605
sentences of film reviews, which the source package of vaderSentiment 2.5 holds. They are fetched with pip and not kept
in this repository. A text is positive or negative by the sign of its mean rating; those between -0.5 and 0.5 are left
out. The demo's encoder is fine-tuned on each, quantized by the recipe `quantize`, and timed here in turns.
"""

from __future__ import annotations

import argparse
import csv
import html
import json
import random
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import mlflow
import numpy as np

import mlflow_slim as slim
from mlflow_slim import bundle, tracking
from mlflow_slim.catalog import load_backend
from mlflow_slim.config import Recipe
from mlflow_slim.inputs import load_inputs
from mlflow_slim.measurement.host import host

FILES = {"tweets": "tweets_GroundTruth.txt", "movies": "movieReviewSnippets_GroundTruth.txt"}
LENGTHS = (16, 64)


def fetch(name: str, cache: Path) -> str:
    """The CSV of a data set, made once; ``demo`` is in the package."""
    if name == "demo":
        return "demo"
    target = cache / f"{name}.csv"
    if target.exists():
        return str(target)
    cache.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
    subprocess.run([*pip, "-d", str(cache), "vaderSentiment==2.5"], check=True)
    with tarfile.open(cache / "vaderSentiment-2.5.tar.gz") as outer:
        inner = outer.extractfile("vaderSentiment-2.5/additional_resources/hutto_ICWSM_2014.tar.gz")
        assert inner is not None
        with tarfile.open(fileobj=inner) as archive:
            file = archive.extractfile(f"hutto_ICWSM_2014/{FILES[name]}")
            assert file is not None
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    rows = []
    for line in lines:
        _, rating, text = line.split("\t", 2)
        if abs(float(rating)) >= 0.5 and text.strip():
            rows.append((html.unescape(text), "positive" if float(rating) > 0 else "negative"))
    with target.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([("text", "label"), *dict.fromkeys(rows)])
    return str(target)


def of_length(predictor: Any, texts: list[str], length: int) -> dict[str, np.ndarray]:
    """Real text of exactly so many tokens: rows put together and cut; the last token closes it."""
    batch = predictor.encode([" ".join(texts)])
    cut = {name: array[:, :length].copy() for name, array in batch.items()}
    cut["input_ids"][0, -1] = batch["input_ids"][0, -1]
    return cut


def interval(ratios: list[float]) -> list[float]:
    """95 % bootstrap interval of the median."""
    rnd = random.Random(0)
    medians = sorted(statistics.median(rnd.choices(ratios, k=len(ratios))) for _ in range(2000))
    return [round(medians[50], 2), round(medians[1949], 2)]


def one_set(name: str, cache: Path) -> dict[str, Any]:
    cheap = {"measure.timing_s": 5, "measure.energy_s": 0, "measure.fresh_starts": 0, "quick": True}
    outcome = slim.run(
        "quantize", model="demo", data=fetch(name, cache), threads=1, **{"track.experiment": "quantize", **cheap}
    )
    last = outcome.reports[-1]
    folders = {
        point.exported.variant: (
            point.exported.backend,
            bundle.find(tracking.download_artifacts(point.model_uri, into=Path(tempfile.mkdtemp()))),
        )
        for point in outcome.points
    }
    with tempfile.TemporaryDirectory() as scratch:
        recipe = Recipe.load("quantize", {"model": "demo", "data": fetch(name, cache)})
        texts = list(load_inputs(recipe, Path(scratch), lambda _: Path()).data.test.inputs[:60])
    found: dict[str, Any] = {
        "accuracy": {report.variant: round(report.metrics["quality/accuracy"], 4) for report in outcome.reports},
        "agreement": round(last.metrics["quality/agreement"], 4),
        "delta": [round(last.metrics[f"quality/accuracy_delta{end}"], 4) for end in ("", "_lo", "_hi")],
        "verdict": last.tags.get("slim.quality.verdict"),
        "headline": last.tags.get("slim.quality.metric"),
        "mib": {report.variant: round(report.metrics["size/disk_mib"], 1) for report in outcome.reports},
        "test_rows": int(last.params["slim.measure.test_rows"]),
    }
    # torch is up to a tenth slower where models were trained before, so a process that did nothing else does the timing
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as clean:
        return {**found, **clean.submit(speedups, folders, texts).result()}


def speedups(folders: dict[str, tuple[str, Path]], texts: list[str]) -> dict[str, list[float]]:
    """How much faster than the first each of the others is, with a 95 % interval, at each length; in turns."""
    found: dict[str, list[float]] = {}
    predictors = {variant: load_backend(name).load(folder, threads=1) for variant, (name, folder) in folders.items()}
    for length in LENGTHS:
        batches = {variant: of_length(predictor, texts, length) for variant, predictor in predictors.items()}
        times: dict[str, list[float]] = {variant: [] for variant in predictors}
        rnd = random.Random(0)
        for turn in range(60):
            for variant in rnd.sample(list(predictors), len(predictors)):
                taken = []
                for _ in range(8):
                    start = time.perf_counter()
                    predictors[variant].forward(batches[variant])
                    taken.append(time.perf_counter() - start)
                if turn >= 10:
                    times[variant].append(statistics.median(taken))
        first = times[next(iter(predictors))]
        for variant in list(predictors)[1:]:
            ratios = [a / b for a, b in zip(first, times[variant], strict=True)]
            found[f"{variant} at {length} tokens"] = [round(statistics.median(ratios), 2), *interval(ratios)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=["demo", *FILES])
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "mlflow_slim" / "benchmarks")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.create_experiment("quantize", artifact_location=f"{folder}/artifacts")
        found = {name: one_set(name, options.cache) for name in options.sets}
    print(json.dumps({"host": host().to_dict(), "sets": found}, indent=1))


if __name__ == "__main__":
    main()
