"""Figures that other tools measured, as points beside ours: listed, compared by eye, and never ranked as measured here.

Read are Olive's footprints (``footprint*.json``: what each pass made, and its metrics) and optimum-benchmark's reports
(``benchmark_report.json`` or ``benchmark.json``). A figure whose meaning is the schema's has its name there; any other
keeps its own under ``imported/``. Units: Olive's latencies are milliseconds, optimum-benchmark's seconds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ConfigError, DataError, InputNotFound, did_you_mean
from .measurement.report import Report

__all__ = ["KINDS", "import_points"]

_LARGEST_BYTES = 64 * 2**20


@dataclass(frozen=True)
class _Found:
    """A model that the file tells of."""

    variant: str
    metrics: Mapping[str, float]
    params: Mapping[str, str]


def import_points(path: str | Path, kind: str, *, experiment: str | None = None) -> list[str]:
    """Logs what the file tells as points of an experiment; the ids of their runs.

    Args:
        path: The JSON file.
        kind: ``olive`` or ``optimum-benchmark``.
        experiment: Name; by default MLflow's own choice.

    Raises:
        ConfigError: There is no such kind.
        InputNotFound: There is no such file.
        DataError: It is no file of that kind, or tells no figures.
        TrackingError: MLflow can't be reached.
    """
    if kind not in KINDS:
        raise ConfigError(f"There is nothing to import called {kind!r}. {did_you_mean(kind, list(KINDS))}")
    found = list(KINDS[kind](_read(Path(path).expanduser(), kind), Path(path).stem))
    if not any(one.metrics for one in found):
        raise DataError(f"{path} tells no figures of any model, so there is nothing to import.")
    from .tracking import open_recipe_run

    runs = []
    with open_recipe_run(
        {"name": "import", "kind": kind, "file": Path(path).name},
        experiment=experiment,
        name="import",
        tags={"slim.kind": "import"},
    ) as recipe_run:
        for one in found:
            if not one.metrics:
                continue
            point = recipe_run.open_point(one.variant)
            point.log_params(one.params)
            tags = {
                "slim.imported": kind,
                "slim.absent.speedup/single": f"{kind} measured this model alone, not in turns with an original",
            }
            point.log_report(Report(one.variant, one.metrics, tags))
            point.finish()
            runs.append(point.run_id)
    return runs


def _read(path: Path, kind: str) -> Mapping[str, Any]:
    if not path.is_file():
        raise InputNotFound(f"There is no file {str(path)!r}.")
    if path.stat().st_size > _LARGEST_BYTES:
        raise DataError(f"{path} has more than {_LARGEST_BYTES >> 20} MiB, which no report of {kind} has.")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError) as error:
        raise DataError(f"{path} is no JSON file: {error}.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds {type(content).__name__}, not a report of {kind}.")
    return content


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


# --- Olive ----------------------------------------------------------------------------------------------------------


_OLIVE = {
    "p50": ("latency/p50_ms", 1.0),
    "p90": ("latency/p90_ms", 1.0),
    "p99": ("latency/p99_ms", 1.0),
}


def _olive(content: Mapping[str, Any], name: str) -> Iterator[_Found]:
    nodes = content.get("nodes", content)
    if not isinstance(nodes, Mapping) or not all(isinstance(node, Mapping) for node in nodes.values()):
        raise DataError(f"{name} is no footprint of Olive: it maps no models by their ids.")
    if not any("model_id" in node or "metrics" in node for node in nodes.values()):
        raise DataError(f"{name} is no footprint of Olive: its entries have neither model_id nor metrics.")
    for key, node in nodes.items():
        given = (node.get("metrics") or {}).get("value") or {}
        metrics: dict[str, float] = {}
        for metric, value in given.items() if isinstance(given, Mapping) else ():
            number = _number(value.get("value") if isinstance(value, Mapping) else value)
            if number is not None:
                metrics.update([_olive_figure(str(metric), number)])
        chain = _olive_chain(str(key), nodes)
        yield _Found(f"olive: {chain or 'input model'}", metrics, {"slim.imported.id": str(key)})


def _olive_figure(metric: str, value: float) -> tuple[str, float]:
    """``<name>-<sub type>`` in the schema's terms where those say the same."""
    name, _, kind = metric.partition("-")
    if name == "latency" and kind in _OLIVE:
        return _OLIVE[kind][0], value
    if (name, kind) in (("accuracy", "accuracy_score"), ("accuracy", "")):
        return "quality/accuracy", value
    if (name, kind) == ("size_on_disk", "bytes"):
        return "size/disk_mib", value / 2**20
    return f"imported/{metric}", value


def _olive_chain(key: str, nodes: Mapping[str, Any]) -> str:
    """Passes from the input model to this one."""
    passes: list[str] = []
    seen: set[str] = set()
    while key in nodes and key not in seen:
        seen.add(key)
        if made := nodes[key].get("from_pass"):
            passes.append(str(made))
        key = str(nodes[key].get("parent_model_id"))
    return "+".join(reversed(passes)) or ("" if len(seen) < 2 else f"model {len(seen) - 1} steps on")


# --- optimum-benchmark ----------------------------------------------------------------------------------------------


def _optimum_benchmark(content: Mapping[str, Any], name: str) -> Iterator[_Found]:
    report = content.get("report", content)
    config = content.get("config") if "report" in content else None
    if not isinstance(report, Mapping) or not any(isinstance(part, Mapping) for part in report.values()):
        raise DataError(f"{name} is no report of optimum-benchmark: it has no measured parts such as forward.")
    metrics: dict[str, float] = {}
    for target, part in report.items():
        if isinstance(part, Mapping):
            metrics.update(_benchmark_part(str(target), part))
    config = config if isinstance(config, Mapping) else {}
    backend = config.get("backend") if isinstance(config.get("backend"), Mapping) else {}
    assert isinstance(backend, Mapping)
    shown = {
        "slim.imported.model": str(backend.get("model", "")),
        "slim.imported.backend": str(backend.get("name", "")),
    }
    title = str(config.get("name") or name)
    yield _Found(f"optimum-benchmark: {title}", metrics, {key: value for key, value in shown.items() if value})


_SHOWN = {"model": "model", "backend": "name"}


def _benchmark_part(target: str, part: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    latency, throughput, memory = (part.get(key) or {} for key in ("latency", "throughput", "memory"))
    main = target == "forward"  # of one call with the benchmark's batch
    for key in ("p50", "p90", "p99"):
        if (value := _number(latency.get(key))) is not None and latency.get("unit", "s") == "s":
            yield (f"latency/{key}_ms" if main else f"imported/{target}_{key}_ms"), 1000 * value
    if (value := _number(throughput.get("value"))) is not None:
        same = main and throughput.get("unit") == "samples/s"
        yield ("throughput/samples_per_s" if same else f"imported/{target}_throughput"), value
    if (value := _number(memory.get("max_ram"))) is not None and memory.get("unit", "MB") == "MB":
        yield ("memory/peak_mib" if main else f"imported/{target}_peak_mib"), value * 1e6 / 2**20
    energy = part.get("energy") or {}
    if (value := _number(energy.get("total"))) is not None:
        yield f"imported/{target}_energy_kwh", value


KINDS: Mapping[str, Callable[[Mapping[str, Any], str], Iterator[_Found]]] = {
    "olive": _olive,
    "optimum-benchmark": _optimum_benchmark,
}
"""Readers by the name of what wrote the file."""
