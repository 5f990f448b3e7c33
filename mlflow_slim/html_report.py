"""One self-contained HTML page of a comparison: charts, a sortable table, and what another region or price changes.

The page has no link to anywhere and asks for nothing. Everything a user named is data in it, and its script writes it
as text, so a label that looks like markup stays a label.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from .schema import meaning

if TYPE_CHECKING:
    from .ranking import Frontier, Ranked

__all__ = ["conditions", "html_report", "summary"]

_COLUMNS = (
    "latency/p50_ms",
    "latency/p90_ms",
    "speedup/single",
    "throughput/samples_per_s",
    "size/disk_mib",
    "memory/peak_mib",
    "load/cold_start_s",
    "energy/wh_per_1k_samples",
    "emissions/gco2e_per_1k_samples",
    "cost/usd_per_1m_samples",
)


def html_report(
    frontier: Frontier,
    *,
    title: str,
    ledger: Sequence[Mapping[str, Any]] = (),
    world: Mapping[str, float | None] | None = None,
) -> str:
    """The page as text.

    Args:
        frontier: What to show.
        title: Its heading.
        ledger: Rows of a chain's ledger, see `mlflow_slim.ledger.Line`.
        world: Where the page starts: ``intensity`` (gCO2e/kWh), ``pue``, ``price`` (USD per hour), ``utilisation``,
            ``requests`` (a day); None for what isn't known.
    """
    text = json.dumps(_data(frontier, title, ledger, world or {}), ensure_ascii=False, allow_nan=False)
    # Inside a script element only these could end it or start a comment.
    safe = text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    safe = safe.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    page = resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    return page.replace("{{DATA}}", safe)


def _data(
    frontier: Frontier, title: str, ledger: Sequence[Mapping[str, Any]], world: Mapping[str, float | None]
) -> dict[str, Any]:
    baseline = frontier.baseline
    headline = f"quality/{baseline.headline}" if baseline is not None else "quality/accuracy"
    shown = {headline, *_COLUMNS, *(found.metric for found in frontier.objectives)}
    shown |= {metric for ranked in frontier.points for metric in ranked.figures}
    metrics = {}
    for metric in sorted(shown, key=lambda name: (name != headline, name)):
        found = meaning(metric)
        metrics[metric] = {"title": found.title, "unit": found.unit, "up": found.higher_is_better}
    costs = [found.metric for found in frontier.objectives if not found.metric.startswith("quality/")]
    ups = [found.metric for found in frontier.objectives if found.metric.startswith("quality/")]
    params = baseline.params if baseline is not None else {}
    start = {
        "intensity": _float(params.get("slim.carbon.intensity_gco2e_per_kwh")),
        "pue": _float(params.get("slim.carbon.pue")) or 1.0,
        "price": _float(params.get("slim.cost.price_per_hour")),
        "utilisation": _float(params.get("slim.cost.utilisation")) or 0.5,
        "requests": None,
    }
    return {
        "title": title,
        "summary": summary(frontier),
        "conditions": conditions(frontier),
        "metrics": metrics,
        "columns": list(dict.fromkeys([headline, *costs, *_COLUMNS])),
        "across": costs[0] if costs else "latency/p50_ms",
        "up": ups[0] if ups else headline,
        "points": [_point(ranked, frontier) for ranked in frontier.points],
        "rest": [
            {"variant": other.point.variant, "run": other.point.run_id, "reason": other.reason}
            for other in frontier.rest[:500]
        ],
        "ledger": [dict(row) for row in ledger],
        "regions": _regions(),
        "world": {**start, **{key: value for key, value in world.items() if value is not None}},
    }


def _point(ranked: Ranked, frontier: Frontier) -> dict[str, Any]:
    point, tags = ranked.point, ranked.point.tags
    runtime = point.params.get("slim.backend", point.variant.rpartition("@")[2] or "torch")
    making = point.metrics.get("optimize/energy_kwh")
    found: dict[str, Any] = {
        "run": point.run_id,
        "variant": point.variant,
        "runtime": runtime,
        "baseline": point is frontier.baseline,
        "front": ranked.placed.front,
        "p_front": ranked.placed.p_front,
        "knee": point.run_id == frontier.knee,
        "figures": {metric: [figure.value, *figure.ends] for metric, figure in ranked.figures.items()},
        "grade": tags.get("slim.energy.grade"),
        "verdict_quality": tags.get("slim.quality.verdict"),
        "verdict_speed": tags.get("slim.speed.verdict"),
        "energy": tags.get("slim.energy.verdict"),
        "choices": point.choices,
        "contended": tags.get("slim.measure.contended") == "true",
        "quick": point.params.get("slim.measure.quick") == "true",
    }
    if making is not None and point is not frontier.baseline:
        found["making_kwh"] = making
    return found


def _float(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _regions() -> dict[str, float]:
    from .errors import MeasurementError
    from .measurement.carbon import known_regions

    try:
        return known_regions()
    except MeasurementError:
        return {}


def summary(frontier: Frontier) -> str:
    """One sentence: how many points, how many are worth keeping, and which stands out."""
    if not frontier.points:
        return f"No point could be ranked; {len(frontier.rest)} are listed below with the reason."
    sure = sum(one.placed.front == "sure" for one in frontier.points)
    possible = sum(one.placed.front == "possible" for one in frontier.points)
    words = f"{len(frontier.points)} points ranked: {sure} on the front, {possible} perhaps"
    words += f", {len(frontier.points) - sure - possible} dominated; {len(frontier.rest)} not ranked."
    knee = next((one.point.title for one in frontier.points if one.point.run_id == frontier.knee), None)
    return words + (f" The knee is {knee}." if knee else "")


def conditions(frontier: Frontier) -> str:
    """What the ranked points have in common."""
    if frontier.baseline is None:
        return ""
    params, tags = frontier.baseline.params, frontier.baseline.tags
    parts = [
        f"{params.get('slim.task', 'unknown task')} on {params.get('slim.measure.test_rows', '?')} test rows",
        f"{params.get('slim.host.cpu', 'unknown CPU')} ({params.get('slim.host.fingerprint', '?')})",
        f"{params.get('slim.measure.threads', '?')} threads",
        f"protocol {params.get('slim.measure.protocol', '?')}",
    ]
    if grade := tags.get("slim.energy.grade"):
        words = {"A": "counter", "B": "counter and assumed parts", "C": "modelled", "D": "assumed power"}
        parts.append(f"energy of grade {grade} ({words.get(grade, '?')})")
    if any(one.point.session != frontier.baseline.session for one in frontier.points):
        parts.append("times and energy of other sessions are taken through their own baselines")
    return "; ".join(parts) + "."
