"""The evaluator plug-in ``slim``: any pyfunc model, ours or not, measured for what it costs, and against a baseline.

    mlflow.models.evaluate(model, data, targets="label", model_type="classifier", evaluators="slim",
                           evaluator_config={"baseline": "models:/reviews@champion"})

Strictly opt-in. MLflow tries every registered evaluator when none is named, so this one answers only to a model type
that begins with ``slim`` or to options of its own. The module is imported when MLflow lists evaluators: nothing heavy
at its top.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow.models.evaluation.base import EvaluationResult, ModelEvaluator

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from .measurement.stats import Interval

__all__ = ["SlimEvaluator", "load_pyfunc"]

logger = logging.getLogger(__name__)
_OPTIONS = {
    "baseline": None,
    "timing_s": 12.0,
    "energy_s": 10.0,
    "fresh_starts": 3,
    "batch_size": 32,
    "threads": None,
    "quality_margin": 0.01,
    "region": None,
    "carbon_intensity": None,
    "price_per_hour": None,
    "utilisation": 0.5,
    "seed": 0,
}


class SlimEvaluator(ModelEvaluator):
    """Latency, throughput, size, memory, cold start, energy, emissions and cost; quality and speed-up by pairs."""

    @classmethod
    def can_evaluate(cls, *, model_type: str | None, evaluator_config: Mapping[str, Any] | None, **_: Any) -> bool:
        """True only when it was asked for by the model type, or by an option of its own."""
        asked = set(evaluator_config or {}) & (set(_OPTIONS) | {"slim"})
        return bool(asked) or str(model_type or "").startswith("slim")

    def evaluate(
        self,
        *,
        model_type: str | None,
        dataset: Any,
        run_id: str,
        evaluator_config: Mapping[str, Any] | None,
        model: Any = None,
        **kwargs: Any,
    ) -> EvaluationResult:
        """Measures; MLflow itself logs the metrics that come back, with the model and the data set.

        Raises:
            ConfigError: An option isn't known or out of its range, or there is no model.
        """
        del model_type
        options = _read(evaluator_config or {})
        if model is None:
            from .errors import ConfigError

            raise ConfigError("The evaluator slim measures a model; predictions alone have no speed. Pass model=...")
        model_id = kwargs.get("model_id") or getattr(model, "model_id", None)
        sheet = _measure(model, model_id, dataset, options)
        _log_words(run_id, sheet)
        make: Any = EvaluationResult  # untyped upstream
        found: EvaluationResult = make(metrics=sheet.metrics, artifacts={}, run_id=run_id)
        return found


@dataclass
class _Sheet:
    metrics: dict[str, float]
    tags: dict[str, str]
    params: dict[str, str]

    def interval(self, key: str, value: Interval) -> None:
        for end, number in (("", value.value), ("_lo", value.lo), ("_hi", value.hi)):
            if math.isfinite(number):
                self.metrics[f"{key}{end}"] = float(number)

    def absent(self, key: str, reason: str) -> None:
        self.tags[f"slim.absent.{key}"] = reason


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    from .errors import ConfigError, did_you_mean

    given = {key: value for key, value in config.items() if key != "slim"}
    faults = [
        f"Unknown option {key!r} of the evaluator slim. {did_you_mean(key, list(_OPTIONS))}"
        for key in given
        if key not in _OPTIONS
    ]
    options = {**_OPTIONS, **given}
    for key, least in (("timing_s", 0.01), ("batch_size", 1), ("energy_s", 0), ("fresh_starts", 0)):
        value = options[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= 3600:
            faults.append(f"{key} must be a number from {least:g} to 3600, got {value!r}.")
    if faults:
        raise ConfigError(faults)
    return options


def _measure(model: Any, model_id: str | None, dataset: Any, options: Mapping[str, Any]) -> _Sheet:
    import mlflow.pyfunc

    from .measurement.host import host, measure_slot, quiet_wait, watch

    threads = options["threads"] or host().cores
    frame = _frame(dataset.features_data)
    sheet = _Sheet({}, {}, {"slim.measure.threads": str(threads), "slim.measure.process": "the caller's"})
    arms = {"model": model}
    if options["baseline"]:
        arms = {"baseline": mlflow.pyfunc.load_model(options["baseline"]), **arms}
    _quality(arms, frame, dataset, options, sheet)
    with measure_slot(), _compute_threads(threads):
        ready = quiet_wait(min(60.0, options["timing_s"] * 5))
        with watch() as others:
            _timing(arms, frame, options, threads, sheet)
            _energy(arms, frame, options, sheet)
        busy = "" if ready.quiet else ready.reason
        busy = busy or others.load.disturbance()
        sheet.tags["slim.measure.contended"] = str(bool(busy)).lower()
        if busy:
            sheet.tags["slim.measure.contended_because"] = busy
        _folder(model_id, frame, options, threads, sheet)
    rate = sheet.metrics.get("throughput/samples_per_s")
    if options["price_per_hour"] and rate:
        from .measurement.cost import usd_per_1m_samples

        price, share = options["price_per_hour"], options["utilisation"]
        sheet.metrics["cost/usd_per_1m_samples"] = usd_per_1m_samples(price, rate, utilisation=share)
    return sheet


def _compute_threads(threads: int) -> Any:
    """Torch's threads where it is loaded already; a model of another library has its own."""
    import contextlib
    import sys

    if "torch" not in sys.modules:
        return contextlib.nullcontext()
    from .session_setup import compute_threads

    return compute_threads(threads)


def _frame(features: Any) -> pd.DataFrame:
    import pandas as pd

    return features.reset_index(drop=True) if isinstance(features, pd.DataFrame) else pd.DataFrame(features)


def _labels(answers: Any) -> np.ndarray:
    """One label a row, as text; see `answers_of`."""
    import numpy as np

    from .backends.pyfunc import answers_of

    return np.array([str(value) for value in answers_of(answers)])


def _quality(
    arms: Mapping[str, Any], frame: pd.DataFrame, dataset: Any, options: Mapping[str, Any], sheet: _Sheet
) -> None:
    import numpy as np

    from .measurement.stats import non_inferiority, paired_difference

    if dataset.labels_data is None:
        sheet.absent("quality/accuracy", "no targets were given")
        return
    given = np.asarray(dataset.labels_data)
    if given.dtype.kind == "f" and not np.all(given == np.round(given)):
        sheet.absent("quality/accuracy", "the targets are numbers, not labels; the default evaluator scores those")
        return
    right = np.array([str(value) for value in given.tolist()])
    size = options["batch_size"]
    hits = {}
    for name, arm in arms.items():
        parts = [_labels(arm.predict(frame.iloc[i : i + size])) for i in range(0, len(frame), size)]
        answers = np.concatenate(parts)
        hits[name] = answers == right
        if name == "model":
            sheet.metrics["quality/accuracy"] = float(hits[name].mean())
            sheet.tags["slim.quality.metric"] = "accuracy"
            own = answers
        else:
            theirs = answers
    if "baseline" in arms:
        change = paired_difference(hits["baseline"], hits["model"], confidence=0.90)
        sheet.interval("quality/accuracy_delta", change)
        sheet.metrics["quality/agreement"] = float((own == theirs).mean())
        sheet.metrics["quality/negative_flips"] = float((hits["baseline"] & ~hits["model"]).mean())
        sheet.tags["slim.quality.verdict"] = non_inferiority(change, options["quality_margin"])


def _timing(
    arms: Mapping[str, Any], frame: pd.DataFrame, options: Mapping[str, Any], threads: int, sheet: _Sheet
) -> None:
    from .errors import MeasurementError
    from .measurement.stats import Interval
    from .measurement.timing import Arm, compare, interleave, latency

    lengths = frame.astype(str).map(len).sum(axis=1).sort_values(kind="stable")
    middle = frame.loc[[lengths.index[len(lengths) // 2]]]
    count = min(options["batch_size"], len(frame))
    batch = frame.loc[[lengths.index[(2 * i + 1) * len(lengths) // (2 * count)] for i in range(count)]]
    for scenario, rows, figure in (
        ("single", middle, "latency/p50_ms"),
        ("offline", batch, "throughput/samples_per_s"),
    ):
        timed = [Arm(name, _call(arm, rows)) for name, arm in arms.items()]
        try:
            timings = interleave(
                timed,
                budget_s=options["timing_s"] * len(arms),
                threads=threads,
                seed=options["seed"],
                control=len(arms) > 1,
            )
            found = latency(timings, "model")
            if scenario == "single":
                for name, value in found.items():
                    sheet.interval(f"latency/{name}_ms", value)
            else:
                each, p50 = len(rows) * 1e3, found["p50"]
                rate = Interval(each / p50.value, each / p50.hi, each / p50.lo, p50.n, p50.confidence)
                sheet.interval(figure, rate)
            if "baseline" in arms:
                speed = compare(timings, "model")
                tag = "slim.speed" if scenario == "single" else "slim.speed.offline"
                sheet.tags.update({f"{tag}.verdict": speed.verdict, f"{tag}.because": speed.reason})
                if speed.noisy:
                    sheet.absent(f"speedup/{scenario}", speed.reason)
                else:
                    sheet.interval(f"speedup/{scenario}", speed.wall)
                sheet.params[f"slim.measure.{scenario}.rounds"] = str(timings.rounds)
        except MeasurementError as error:
            for missing in (figure, f"speedup/{scenario}") if "baseline" in arms else (figure,):
                if missing not in sheet.metrics:
                    sheet.absent(missing, str(error))


def _call(model: Any, rows: pd.DataFrame) -> Callable[[], object]:
    return lambda: model.predict(rows)


def _energy(arms: Mapping[str, Any], frame: pd.DataFrame, options: Mapping[str, Any], sheet: _Sheet) -> None:
    from .errors import MeasurementError
    from .measurement.arms import CountedArm
    from .measurement.carbon import carbon_intensity, gco2e_per_1k_samples
    from .measurement.energy import EnergyMeter
    from .measurement.energy_comparison import compare_energy

    key = "energy/wh_per_1k_samples"
    intensity = carbon_intensity(options["region"], options["carbon_intensity"])
    if options["energy_s"] == 0:
        sheet.absent(key, "energy was not asked for")
        return
    batch = frame.iloc[: options["batch_size"]]
    counted = [CountedArm(name, _call(arm, batch), len(batch)) for name, arm in arms.items()]
    try:
        with EnergyMeter() as meter:
            budget = max(options["energy_s"], 16.0 if meter.has_counter else 6.0)
            found = compare_energy(counted, meter=meter, budget_s=budget * len(arms))
    except MeasurementError as error:
        sheet.absent(key, str(error))
        return
    taken = found.arms["model"]
    sheet.interval(key, taken.wh_per_1k_samples)
    sheet.tags["slim.energy.grade"] = found.grade
    if "baseline" in arms:
        estimated = " (estimated)" if found.grade == "D" else ""
        sheet.tags["slim.energy.verdict"] = f"{taken.verdict}{estimated}"
        sheet.tags["slim.energy.claim"] = found.claim("model")
    if intensity is None:
        sheet.absent("emissions/gco2e_per_1k_samples", "no region or carbon_intensity was given")
    else:
        sheet.interval(
            "emissions/gco2e_per_1k_samples", taken.wh_per_1k_samples.scaled(gco2e_per_1k_samples(1.0, intensity))
        )


def _folder(model_id: str | None, frame: pd.DataFrame, options: Mapping[str, Any], threads: int, sheet: _Sheet) -> None:
    """Size, and cold start and memory in processes of their own, of the files that MLflow has."""
    import mlflow.artifacts

    from .errors import SlimError
    from .measurement.fresh_process import Served, fresh_starts
    from .measurement.size import folder_size

    missing = ("size/disk_mib", "load/cold_start_s", "memory/peak_mib")
    if not model_id:
        for key in missing:
            sheet.absent(key, "the model is in memory only; pass its URI to have its files measured")
        return
    with tempfile.TemporaryDirectory(prefix="slim-evaluate-", ignore_cleanup_errors=True) as folder:
        path = Path(mlflow.artifacts.download_artifacts(f"models:/{model_id}", dst_path=folder))
        sheet.metrics["size/disk_mib"] = folder_size(path).disk_mib
        if not options["fresh_starts"]:
            return
        rows = [row.to_json() for _, row in frame.iloc[: options["batch_size"]].iterrows()]
        try:
            (found,) = fresh_starts(
                [Served(path, "pyfunc", threads)],
                rows,
                int(options["fresh_starts"]),
                batch_size=options["batch_size"],
                backends=f"{__name__}:load_pyfunc",
            )
        except SlimError as error:
            for key in missing[1:]:
                sheet.absent(key, str(error))
            return
        sheet.interval("load/cold_start_s", found.cold_start_s)
        sheet.interval("memory/peak_mib", found.peak_mib)


def _log_words(run_id: str, sheet: _Sheet) -> None:
    from mlflow import MlflowClient

    from .tracking.fields import as_params, as_tags

    client = MlflowClient()
    known = client.get_run(run_id).data.params
    params = [param for param in as_params(sheet.params) if param.key not in known]
    client.log_batch(run_id, params=params, tags=as_tags({"slim.kind": "evaluation", **sheet.tags}))


# --- In processes of their own --------------------------------------------------------------------------------------


class _Pyfunc:
    """A pyfunc model as `fresh_starts` wants a predictor: rows come as JSON texts."""

    def __init__(self, directory: Path) -> None:
        import mlflow.pyfunc

        self._model = mlflow.pyfunc.load_model(str(directory))

    def predict(self, rows: Sequence[str], *, batch_size: int = 32) -> list[Any]:
        import pandas as pd

        found: list[Any] = []
        for start in range(0, len(rows), batch_size):
            frame = pd.DataFrame([json.loads(row) for row in rows[start : start + batch_size]])
            found.extend(_labels(self._model.predict(frame)))
        return found


class _Backend:
    def load(self, directory: Path, *, threads: int) -> _Pyfunc:
        del threads  # a model of any library; the environment variables say it
        return _Pyfunc(directory)


def load_pyfunc(name: str) -> _Backend:
    """The stand-in for a backend that `fresh_starts` asks for by name."""
    del name
    return _Backend()
