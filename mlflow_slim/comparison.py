"""``compare``: the frontier of an experiment as a table, pictures and one HTML page, logged where asked for."""

from __future__ import annotations

import csv
import io
import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from .config import Options, split_words
from .errors import ConfigError, ExportError
from .html_report import conditions, html_report, summary
from .markdown import escape
from .measurement.carbon import carbon_intensity
from .measurement.report import Report
from .ranking import ALLOWABLE, DEFAULT_OBJECTIVES, Constraint, Frontier, Ranked, find_experiment_names, frontier, rank
from .schema import check_metrics

if TYPE_CHECKING:
    from .tracking.stored_points import StoredPoint

__all__ = ["CompareOptions", "Comparison", "compare", "overview", "render"]

logger = logging.getLogger(__name__)


class Choice(Options):
    """Which points, and by what they are ranked."""

    experiment: tuple[str, ...] = Field(
        (), description="Names or ids of experiments; default: MLflow's own choice, else mlflow_slim."
    )
    search: str = Field("", description="A further condition on runs, in MLflow's filter language.")
    objectives: tuple[str, ...] = Field(DEFAULT_OBJECTIVES, description="Figures to rank by: names or short names.")
    constraints: tuple[str, ...] = Field((), description="Limits, such as latency/p90_ms<=20 or quality>=0.8.")
    allow: tuple[str, ...] = Field((), description=f"Differences to overlook: {', '.join(ALLOWABLE)}.")

    _words = field_validator("experiment", "objectives", "constraints", "allow", mode="before")(split_words)

    @field_validator("objectives")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        check_metrics(value)
        return value

    @field_validator("constraints")
    @classmethod
    def _limits(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            Constraint.parse(text)
        return value

    def frontier(self) -> Frontier:
        """Reads and ranks the points."""
        return frontier(
            self.experiment or None,
            search=self.search,
            objectives=self.objectives,
            constraints=self.constraints,
            allow=self.allow,
        )


class CompareOptions(Choice):
    """What to compare, and how to show it."""

    region: str | None = Field(None, description="Country (ISO alpha-3) for the page's emissions.")
    carbon_intensity: float | None = Field(None, ge=0, le=5000, description="gCO2e/kWh for the page; not with region.")
    pue: float | None = Field(None, ge=1, le=5, description="Power usage effectiveness for the page.")
    price_per_hour: float | None = Field(None, gt=0, description="Price of the machine for the page, USD per hour.")
    utilisation: float | None = Field(None, gt=0, le=1, description="Share of paid time in use, for the page.")
    requests_per_day: float | None = Field(None, gt=0, description="Your traffic, for the page's break-even.")
    format: Literal["table", "csv", "json", "markdown"] = Field("table", description="What is printed.")
    output: str | None = Field(None, description="New file for the HTML page.")
    log: bool = Field(True, description="Log a run with table, pictures and page, and mark the points.")

    def world(self) -> dict[str, float | None]:
        """Where the page's what-if starts."""
        given = carbon_intensity(self.region, self.carbon_intensity)
        return {
            "intensity": given.value_gco2e_per_kwh if given else None,
            "pue": self.pue,
            "price": self.price_per_hour,
            "utilisation": self.utilisation,
            "requests": self.requests_per_day,
        }


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        frontier: The points by their worth.
        html: The page.
        run_id: The run it was logged to; None when it wasn't.
        ui_command: How to look at it in the MLflow UI; empty when it wasn't logged.
    """

    frontier: Frontier
    html: str
    run_id: str | None = None
    ui_command: str = ""


def compare(options: CompareOptions | Mapping[str, Any] | None = None, **more: Any) -> Comparison:
    """Ranks the points of experiments and shows them.

    Args:
        options: `CompareOptions`, or their values by name.
        **more: Further values by name.

    Raises:
        ConfigError: An option is wrong.
        InputNotFound: There is no such experiment.
        ExportError: ``output`` exists or can't be written.
        TrackingError: The store can't be read or written.
    """
    chosen = options if isinstance(options, CompareOptions) else CompareOptions.read({**(options or {}), **more})
    world = chosen.world()
    target = Path(chosen.output).expanduser() if chosen.output else None
    if target is not None and target.exists():
        raise ExportError(f"{target} exists already and is not overwritten. Remove it or name another file.")
    found = chosen.frontier()
    names = ", ".join(find_experiment_names(found)) or ", ".join(chosen.experiment) or "no points"
    ledger = _ledger(found)
    page = html_report(found, title=f"Comparison: {names}", ledger=ledger, world=world)
    if target is not None:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(page, encoding="utf-8")
        except OSError as error:
            raise ExportError(f"{target} can't be written: {error.strerror or error}.") from error
    if not chosen.log:
        return Comparison(found, page)
    run_id, link = _log(chosen, found, page, ledger)
    return Comparison(found, page, run_id, link)


def _log(options: CompareOptions, found: Frontier, page: str, ledger: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    from . import figures, tracking
    from .ledger import Line
    from .measurement.host import host

    reports = [as_report(ranked) for ranked in found.points]
    experiment = found.baseline.experiment_id if found.baseline is not None else None
    with tracking.open_recipe_run(
        {"name": "compare", **options.model_dump(mode="json")},
        experiment=_name_of(experiment) if experiment else (options.experiment or (None,))[0],
        name="compare",
        conditions={"host": host().to_dict()},
        tags={"slim.kind": "comparison"},
    ) as run:
        drawn = figures.make_figures(reports)
        if ledger:
            drawn["ledger"] = figures.waterfall_figure([Line(**dict(row)) for row in ledger])
        links = {
            one.point.variant: tracking.run_link(one.point.experiment_id, one.point.run_id, one.point.variant)
            for one in found.front
        }
        run.log_summary(
            rows=found.rows(),
            figures=drawn,
            card=tracking.recipe_card("Comparison", markdown(found), links, notes=[conditions(found)]),
            tables={"frontier": found.rows(), **({"ledger": ledger} if ledger else {})},
            metrics={"frontier/points": len(found.front), "frontier/hypervolume": found.hypervolume},
            texts={"report.html": page},
        )
        mark(run.client, found)
        return run.run_id, str(run.ui())


def _name_of(experiment_id: str) -> str:
    from .tracking import connect

    return str(connect().get_experiment(experiment_id).name)


def overview(
    client: Any, experiment_id: str, *, title: str, ledger: Sequence[Mapping[str, Any]] = ()
) -> tuple[Frontier, str]:
    """The frontier of one experiment by the default objectives, and its page; marks the points."""
    from .tracking.stored_points import read_points

    found = rank(read_points(client, [experiment_id]))
    mark(client, found)
    return found, html_report(found, title=title, ledger=ledger)


def mark(client: Any, found: Frontier) -> None:
    """Writes ``slim.front`` and the colour on the runs whose place has changed; a point no longer ranked loses it."""
    from .tracking.points import run_color

    for one in found.points:
        tags = {"slim.front": one.placed.front, "mlflow.runColor": run_color(one.point.variant, one.placed.front)}
        for key, value in tags.items():
            if one.point.tags.get(key) != value:
                client.set_tag(one.point.run_id, key, value)
    for other in found.rest:
        if "slim.front" in other.point.tags:
            client.delete_tag(other.point.run_id, "slim.front")


def as_report(ranked: Ranked) -> Report:
    """A ranked point as the pictures take it, with the figures that it was ranked by."""
    metrics = dict(ranked.point.metrics)
    for metric, figure in ranked.figures.items():
        metrics[metric] = figure.value
        if figure.lo is not None and figure.hi is not None and figure.lo < figure.hi:
            metrics |= {f"{metric}_lo": figure.lo, f"{metric}_hi": figure.hi}
    return Report(ranked.point.variant, metrics, ranked.point.tags, ranked.point.params)


def _ledger(found: Frontier) -> list[Mapping[str, Any]]:
    """The ledger of the longest chain among the ranked points' recipes; empty when there is none."""
    chains: dict[str, int] = {}
    for one in found.points:
        chains[one.point.session] = max(chains.get(one.point.session, 0), _steps(one.point))
    for session, steps in sorted(chains.items(), key=lambda item: -item[1]):
        if steps >= 2 and (rows := _read_table(session, "tables/ledger.json")):
            return rows
    return []


def _steps(point: StoredPoint) -> int:
    step = point.tags.get("slim.step", "0")
    return int(step) if step.isdigit() else 0


def _read_table(run_id: str, name: str) -> list[Mapping[str, Any]]:
    """A logged table; empty where it can't be read, since a comparison is complete without it."""
    from .tracking import download_artifacts

    try:
        with tempfile.TemporaryDirectory() as folder:
            path = download_artifacts(f"runs:/{run_id}/{name}", into=Path(folder))
            content = json.loads(path.read_text(encoding="utf-8"))
            return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
    except Exception as error:
        logger.debug("%s of run %s can't be read: %s", name, run_id, error)
        return []


# --- Forms ----------------------------------------------------------------------------------------------------------


def render(found: Frontier, form: str) -> str:
    """The frontier as text: ``csv``, ``json`` or ``markdown``."""
    rows = found.rows()
    if form == "json":
        return json.dumps({"summary": summary(found), "conditions": conditions(found), "points": rows}, indent=1)
    if form == "markdown":
        return markdown(found)
    if form != "csv":
        raise ConfigError(f"There is no format {form!r}. Write csv, json or markdown.")
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]) if rows else ["variant"], lineterminator="\n")
    writer.writeheader()
    # A name that begins like a formula would be run by a spreadsheet.
    writer.writerows({key: _harmless(value) for key, value in row.items()} for row in rows)
    return out.getvalue().rstrip("\n")


def _harmless(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def headers(found: Frontier) -> list[str]:
    """Column titles of the table for people."""
    return ["Point", "Front", *(f"{m.title} ({m.unit})" if m.unit else m.title for m in found.objectives)]


def cells(found: Frontier) -> list[tuple[str, ...]]:
    """Rows of the table for people, ranked points only."""
    rows = []
    for one in found.points:
        place = one.placed.front + (" (knee)" if one.point.run_id == found.knee else "")
        if one.placed.front == "possible":
            place += f" p {one.placed.p_front:.2f}"
        figures = []
        for m in found.objectives:
            figure = one.figures[m.metric]
            low, high = figure.ends
            value = _short(figure.value)
            figures.append(value if low == high else f"{value} ({_short(low)} to {_short(high)})")
        rows.append((one.point.title, place, *figures))
    return rows


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}" if abs(value) < 1 else f"{value:.3g}"


def markdown(found: Frontier) -> str:
    """The frontier as a markdown table, and what wasn't ranked."""
    lines = [summary(found), ""]
    if found.points:
        lines.append(f"| {' | '.join(escape(header) for header in headers(found))} |")
        lines.append(f"|:--|:--|{'--:|' * len(found.objectives)}")
        lines += [f"| {' | '.join(escape(cell) for cell in row)} |" for row in cells(found)]
    if found.rest:
        lines += ["", "Not ranked:", ""]
        lines += [
            f"- {escape(other.point.title)} ({other.point.run_id[:8]}): {escape(other.reason)}"
            for other in found.rest[:30]
        ]
        if len(found.rest) > 30:
            lines.append(f"- and {len(found.rest) - 30} more")
    return "\n".join(lines)


def print_frontier(found: Frontier) -> None:
    """The frontier on the terminal."""
    import sys

    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from .tables import is_plain

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(summary(found), markup=False)
    if conditions(found):
        console.print(conditions(found), markup=False, style="dim")
    if found.points:
        table = Table(box=box.ASCII2 if is_plain(sys.stdout) else box.SIMPLE_HEAD, pad_edge=False)
        for index, header in enumerate(headers(found)):
            table.add_column(Text(header), justify="left" if index < 2 else "right", overflow="fold")
        for row in cells(found):
            table.add_row(*(Text(cell) for cell in row))
        console.print(table)
    for other in found.rest[:30]:
        console.print(f"not ranked: {other.point.title} ({other.point.run_id[:8]}): {other.reason}", markup=False)
    if len(found.rest) > 30:
        console.print(f"not ranked: {len(found.rest) - 30} more (--format=csv lists all)", markup=False)
