"""What each step of a chain did to quality, speed, size, memory and energy, and what doing it cost.

A step is compared with the point before it on the same runtime, where there is one, so that a runtime's effect is
a line of its own and not credited to the step that came with it. The figures are ratios of the session's own, which
were all taken in turns; their intervals are those of the points against the baseline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .markdown import escape

if TYPE_CHECKING:
    from .artifact import ExportedModel
    from .measurement.report import Report

__all__ = ["Line", "make_ledger", "markdown_ledger", "sentence"]


@dataclass(frozen=True)
class Line:
    """One step's own effect. A figure is None when a point lacks what it is made of.

    Attributes:
        step: Technique, or ``runtime <name>`` for the change of runtime alone.
        variant: The point that it led to.
        before: The point it is compared with.
        quality: Change of the headline metric.
        speedup: How many times faster one sample is answered, > 0.
        offline: How many times more samples a second, > 0.
        compression: How many times smaller on disk, > 0.
        memory: How many times less memory at the peak, > 0.
        energy: How many times less energy for a sample, > 0.
        duration_s: Wall time of doing it; None for a runtime.
        energy_kwh: Energy of doing it; None when it was not measured, and for a runtime.
        reused: True when it was taken from the cache: the cost is of when it was done.
    """

    step: str
    variant: str
    before: str
    quality: float | None
    speedup: float | None
    offline: float | None
    compression: float | None
    memory: float | None
    energy: float | None
    duration_s: float | None
    energy_kwh: float | None
    reused: bool

    def as_row(self) -> dict[str, Any]:
        """As plain values, for an artifact."""
        return dict(vars(self))


def make_ledger(models: Sequence[ExportedModel], reports: Sequence[Report]) -> list[Line]:
    """One line for each step and each runtime, in the points' order.

    Args:
        models: The points, the baseline first.
        reports: What was measured of them, in the same order.
    """
    lines = []
    for index in range(1, len(models)):
        before = _before(models, index)
        model, lineage = models[index], models[index].lineage
        cost = lineage[-1].cost if lineage else None
        old, new = reports[before].metrics, reports[index].metrics
        quality = f"quality/{reports[0].tags.get('slim.quality.metric', 'accuracy')}"
        lines.append(
            Line(
                step=lineage[-1].technique if lineage else f"runtime {model.backend}",
                variant=model.variant,
                before=models[before].variant,
                quality=new[quality] - old[quality] if quality in new and quality in old else None,
                speedup=_times(old, new, "latency/p50_ms"),
                offline=_times(new, old, "throughput/samples_per_s"),
                compression=_times(old, new, "size/disk_mib"),
                memory=_times(old, new, "memory/peak_mib"),
                energy=_times(old, new, "energy/wh_per_1k_samples"),
                duration_s=cost.duration_s if cost else None,
                energy_kwh=cost.energy_kwh if cost else None,
                reused=bool(cost and cost.reused),
            )
        )
    return lines


def _before(models: Sequence[ExportedModel], index: int) -> int:
    """The point one step earlier on the same runtime; else one step earlier; else the baseline."""
    model = models[index]
    steps = len(model.lineage)
    earlier = [i for i in range(index) if len(models[i].lineage) == steps - 1] if steps else [0]
    same = [i for i in earlier if models[i].backend == model.backend]
    return (same or earlier or [0])[0]


def _times(a: Mapping[str, float], b: Mapping[str, float], key: str) -> float | None:
    return a[key] / b[key] if a.get(key) and b.get(key) else None


def sentence(line: Line) -> str:
    """A line in words, for the terminal.

    >>> figures = (-0.004, 1.9, None, 1.3, None, None, 61.0, None, False)
    >>> sentence(Line("prune.depth", "prune.depth@torch", "baseline", *figures))
    'prune.depth: quality -0.0040, 1.90x faster, 1.30x smaller, took 61 s (against baseline)'
    """
    ratios = {"faster": line.speedup, "smaller": line.compression, "less energy": line.energy}
    words = [f"quality {line.quality:+.4f}"] if line.quality is not None else []
    words += [f"{ratio:.2f}x {word}" for word, ratio in ratios.items() if ratio is not None]
    if line.duration_s is not None:
        words.append(f"took {line.duration_s:.0f} s" + (" when it was done" if line.reused else ""))
    return f"{line.step}: {', '.join(words) or 'nothing measured'} (against {line.before})"


def markdown_ledger(lines: Sequence[Line]) -> str:
    """The ledger as a markdown table, for run descriptions; empty when there is none."""
    if not lines:
        return ""
    headers = ("Step", "Quality", "Faster", "Faster offline", "Smaller", "Less memory", "Less energy", "Took", "kWh")
    table = [f"| {' | '.join(headers)} |", f"|:--|{'--:|' * (len(headers) - 1)}"]
    for line in lines:
        ratios = (line.speedup, line.offline, line.compression, line.memory, line.energy)
        cells = [
            f"{escape(line.step)}<br>{escape(line.variant)}",
            "-" if line.quality is None else f"{line.quality:+.4f}",
            *("-" if ratio is None else f"{ratio:.2f}x" for ratio in ratios),
            "-" if line.duration_s is None else f"{line.duration_s:.0f} s{' (reused)' if line.reused else ''}",
            "-" if line.energy_kwh is None else f"{line.energy_kwh:.2g}",
        ]
        table.append(f"| {' | '.join(cells)} |")
    return "\n".join(["What each step did, against the point before it:", "", *table])
