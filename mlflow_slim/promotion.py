"""``promote``: chooses a point, proves that its model is what was measured, registers it once and moves an alias.

The order makes it safe to kill at any time: the version is created first and carries what it replaces; the alias moves
last, in one request. Until then the old one serves; after it the new one does.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from . import bundle
from .comparison import Choice
from .config import split_words
from .errors import ConfigError, InputNotFound, IntegrityError, MeasurementError, PromotionRefused, did_you_mean
from .gate import WAIVABLE, Case, Refusal, figure_of, refusals
from .markdown import escape
from .probes import probe_inputs
from .ranking import Constraint as Limit
from .ranking import Frontier, default_experiment, find_point, rank
from .schema import Meaning, meaning

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from .tracking.registry import Registry
    from .tracking.stored_points import StoredPoint

__all__ = ["Decision", "PromoteOptions", "promote"]

logger = logging.getLogger(__name__)
_REPLACED = "slim.replaced."
_NONE = "absent"


class PromoteOptions(Choice):
    """What to promote, by which rules, to where."""

    name: str = Field(
        "", max_length=200, pattern=r"^[^/:]*$", description="Registered model; default: named as the experiment."
    )
    alias: str = Field("champion", pattern=r"^[\w-]{1,100}$", description="Alias to move: champion, challenger, ...")
    objective: str = Field("energy", description="Figure to choose by, at the bad end of its interval.")
    max_quality_drop: float | None = Field(
        None, ge=0, lt=1, description="Largest loss of quality; default: the margin it was measured with."
    )
    point: str | None = Field(None, description="This point and no other: run id, run name or variant.")
    accept: tuple[str, ...] = Field((), description=f"Rules to waive, recorded: {', '.join(WAIVABLE)}.")
    expect_current: str | None = Field(
        None, description="Version that the alias must be on, or absent; anything else is refused."
    )
    dry_run: bool = Field(False, description="Only say what would be done.")
    rollback: bool = Field(False, description="Move the alias back to what its version replaced.")

    _accepted_words = field_validator("accept", mode="before")(split_words)

    @field_validator("accept")
    @classmethod
    def _rules(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in WAIVABLE:
                raise ValueError(f"There is no rule {name!r} to waive. {did_you_mean(name, WAIVABLE)}")
        return value

    @field_validator("objective")
    @classmethod
    def _figure(cls, value: str) -> str:
        meaning(value)
        return value

    @field_validator("alias")
    @classmethod
    def _alias(cls, value: str) -> str:
        if value == "latest" or (value[:1] == "v" and value[1:].isdigit()):
            raise ValueError(f"MLflow keeps {value!r} for itself. Choose another alias.")
        return value


@dataclass(frozen=True)
class Decision:
    """What was decided.

    Attributes:
        name, alias: Where to.
        point: The point that was chosen; None for a rollback.
        version: Version that the alias is on afterwards (or would be, after a dry run: None when it isn't there yet).
        before: Version that it was on; None when there was none.
        changed: True when the alias moved.
        refused: What keeps each other point out, by run.
        waived: Rules that the chosen point breaks and that were waived.
        record: All of it as plain values.
    """

    name: str
    alias: str
    point: StoredPoint | None
    version: str | None
    before: str | None
    changed: bool
    refused: Mapping[str, Sequence[Refusal]]
    waived: Sequence[Refusal]
    record: Mapping[str, Any]

    def __str__(self) -> str:
        place = f"models:/{self.name}@{self.alias}"
        was = f"version {self.before}" if self.before else "nothing"
        if self.point is None:
            return f"{place} is back on version {self.version}." if self.version else f"{place} is gone, as before."
        what = f"{self.point.title} (run {self.point.run_id[:8]})"
        if self.record["dry_run"]:
            here = f"version {self.version}" if self.version else "a new version"
            return f"Would put {what} as {here} at {place}, which is on {was}. Nothing was changed."
        if not self.changed:
            return f"{place} is on version {self.version}, {what}, already. Nothing was changed."
        return f"{place} is on version {self.version} now, {what}; it was on {was}."


def promote(options: PromoteOptions | Mapping[str, Any] | None = None, **more: Any) -> Decision:
    """Puts the best point that passes every rule behind an alias of the registry.

    Args:
        options: `PromoteOptions`, or their values by name.
        **more: Further values by name.

    Raises:
        ConfigError: An option is wrong.
        InputNotFound: There is no such experiment or point, or nothing to go back to.
        PromotionRefused: No point passes, or the alias isn't where ``expect_current`` says; every reason is named.
        IntegrityError: The model's files are not those that were logged, or it answers differently.
        TrackingError: The store or the registry can't be used.
    """
    chosen = options if isinstance(options, PromoteOptions) else PromoteOptions.read({**(options or {}), **more})
    from .tracking import connect
    from .tracking.registry import Registry

    client = connect()
    if not chosen.name:
        chosen = chosen.model_copy(update={"name": _experiment_name(client, chosen)})
    registry = Registry(client, chosen.name)
    with registry.one_at_a_time():
        before = registry.current(chosen.alias)
        _check_expected(chosen, before)
        if chosen.rollback:
            return _roll_back(registry, chosen, before)
        found, pick, waived, refused = _choose(registry, chosen)
        record = _record(chosen, found, pick, waived, refused)
        version = registry.holding(pick.models[-1])
        if version is None or version != before:
            _verify(pick)
            if not chosen.dry_run:
                version = _put(registry, chosen, pick, record, version, before)
        changed = version != before and not chosen.dry_run
        return Decision(chosen.name, chosen.alias, pick, version, before, changed, refused, waived, record)


def _experiment_name(client: MlflowClient, options: PromoteOptions) -> str:
    """What the registered model is called when nobody says."""
    from .tracking.stored_points import find_experiments

    found = [client.get_experiment(one).name for one in find_experiments(client, _experiments(options))]
    if len(found) != 1 or not re.fullmatch(r"[^/:]{1,200}", found[0]):
        raise ConfigError(
            f"name is missing, and {' and '.join(map(repr, found))} can't be the name of a registered model. Add it."
        )
    return str(found[0])


def _experiments(options: PromoteOptions) -> Sequence[str]:
    return options.experiment or default_experiment()


def _check_expected(options: PromoteOptions, current: str | None) -> None:
    if options.expect_current is not None and (current or _NONE) != options.expect_current:
        raise PromotionRefused(
            f"{options.name}@{options.alias} is on {'version ' + current if current else 'no version'}, not on "
            f"{options.expect_current} (expect_current). Somebody moved it; look again before you promote."
        )


def _put(
    registry: Registry,
    options: PromoteOptions,
    pick: StoredPoint,
    record: Mapping[str, Any],
    version: str | None,
    before: str | None,
) -> str:
    """Registers the model where it isn't yet, says what it replaces, and moves the alias last."""
    model_id = pick.models[-1]
    if version is None:
        tags = {"slim.run": pick.run_id, "slim.variant": pick.variant, "slim.model.digest": pick.digest}
        version = registry.register(model_id, pick.run_id, tags=tags, card=card(pick, record))
    else:
        registry.link(model_id, version)  # a promotion that was killed may not have come so far
    tags = {
        f"{_REPLACED}{options.alias}": before or _NONE,
        "slim.objective": options.objective,
        "slim.waived": ", ".join(record["waived"]) or "nothing",
        "slim.decision": json.dumps(record, ensure_ascii=False)[:5000],
    }
    registry.tell(version, tags)
    _check_expected(options, registry.current(options.alias))
    registry.move(options.alias, version)
    return version


def _roll_back(registry: Registry, options: PromoteOptions, current: str | None) -> Decision:
    place = f"{options.name}@{options.alias}"
    if current is None:
        raise InputNotFound(f"{place} is on no version, so there is nothing to go back from.")
    target = registry.tag(current, f"{_REPLACED}{options.alias}")
    if target is None:
        raise InputNotFound(
            f"Version {current} of {options.name} does not say what it replaced as {options.alias}. "
            "Only what promote put there can be rolled back."
        )
    version = None if target == _NONE else target
    if version is not None:
        registry.tag(version, _REPLACED)  # raises when it was deleted meanwhile
    record = {"dry_run": options.dry_run, "rollback": True, "from": current, "to": target}
    if not options.dry_run:
        registry.move(options.alias, version)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        registry.tell(current, {f"slim.rolled_back.{options.alias}": stamp})
    return Decision(options.name, options.alias, None, version, current, not options.dry_run, {}, (), record)


# --- Choosing -------------------------------------------------------------------------------------------------------


def _choose(
    registry: Registry, options: PromoteOptions
) -> tuple[Frontier, StoredPoint, list[Refusal], dict[str, list[Refusal]]]:
    """The best point that breaks no rule but waived ones; the frontier is for the card."""
    from .tracking.stored_points import find_experiments, read_points

    client = registry.client
    points = read_points(client, find_experiments(client, _experiments(options)), options.search)
    found = rank(points, options.objectives, (), options.allow)
    goal = meaning(options.objective, headline=found.baseline.headline if found.baseline is not None else "accuracy")
    by_run = {point.run_id: point for point in points}
    unranked = {other.point.run_id: other.reason for other in found.rest}
    if options.point is not None:
        candidates = [find_point(points, options.point)]
    else:
        candidates = [point for point in points if not point.is_baseline]
    if not candidates:
        raise PromotionRefused("There is no point to promote: the experiments hold no candidate beside originals.")
    limits = [Limit.parse(text) for text in options.constraints]
    waivable: dict[str, list[Refusal]] = {}
    refused: dict[str, list[Refusal]] = {}
    passing: list[StoredPoint] = []
    for point in candidates:
        case = Case(
            point=point,
            baseline=by_run.get(point.baseline_run) if not point.is_baseline else None,
            model_status=registry.status(point.models[-1]) if point.models else "",
            objective=goal,
            max_quality_drop=_margin(options, point),
            unranked=unranked.get(point.run_id, "") if not _repeats(unranked.get(point.run_id, "")) else "",
        )
        broken = refusals(case)
        over = [Refusal("constraint", reason) for limit in limits if (reason := _over(point, limit))]
        waivable[point.run_id] = [one for one in broken if one.rule in options.accept]
        left = [one for one in broken if one.rule not in options.accept] + over
        if left:
            refused[point.run_id] = left
        else:
            passing.append(point)
    if not passing:
        raise PromotionRefused(_why(candidates, refused), refused=refused)
    pick = min(passing, key=lambda point: (_badness(point, goal, by_run, found), -point.started))
    return found, pick, waivable[pick.run_id], refused


def _repeats(reason: str) -> bool:
    """A model that was measured again is no worse for it."""
    return reason.startswith("the same model was measured again")


def _margin(options: PromoteOptions, point: StoredPoint) -> float:
    if options.max_quality_drop is not None:
        return options.max_quality_drop
    return float(point.params.get("slim.measure.quality_margin", 0.01))


def _over(point: StoredPoint, limit: Limit) -> str:
    metric = f"quality/{point.headline}" if limit.metric == "quality" else limit.metric
    figure = figure_of(point.metrics, metric)
    if figure is None:
        return f"{metric} is limited ({limit}) and was not measured"
    low, high = figure.ends
    return (
        f"its {metric} is {figure.value:.4g} ({low:.4g} to {high:.4g}), asked for {limit}"
        if limit.broken_by(figure)
        else ""
    )


def _badness(point: StoredPoint, goal: Meaning, by_run: Mapping[str, StoredPoint], found: Frontier) -> float:
    """The objective at the bad end of its interval, lower is better; through the own baseline where sessions differ."""
    figure = figure_of(point.metrics, goal.metric)
    if figure is None:  # its absence was waived
        return float("inf")
    scale = 1.0
    own = by_run.get(point.baseline_run)
    if goal.of_a_session and own is not None and found.baseline is not None:
        there, here = own.metrics.get(goal.metric), found.baseline.metrics.get(goal.metric)
        scale = here / there if here and there else 1.0
    return -figure.ends[0] * scale if goal.higher_is_better else figure.ends[1] * scale


def _why(candidates: Sequence[StoredPoint], refused: Mapping[str, Sequence[Refusal]]) -> str:
    lines = ["No point may be promoted:"]
    for point in candidates[:20]:
        reasons = "; ".join(f"[{one.rule}] {one.reason}" for one in refused[point.run_id])
        lines.append(f"- {point.title} (run {point.run_id[:8]}): {reasons}")
    if len(candidates) > 20:
        lines.append(f"- and {len(candidates) - 20} more")
    lines.append("A rule is waived by its name, and that is recorded: accept=<rule>.")
    return "\n".join(lines)


# --- Proving and registering ----------------------------------------------------------------------------------------


def _verify(point: StoredPoint) -> None:
    """Fetches the model and raises IntegrityError unless it is, and answers, what was logged."""
    import numpy as np

    from .measurement.helper import Helper
    from .tracking import download_artifacts
    from .tracking.points import ANSWERS

    with tempfile.TemporaryDirectory(prefix="mlflow_slim-promote-", ignore_cleanup_errors=True) as folder:
        fetched = download_artifacts(f"models:/{point.models[-1]}", into=Path(folder) / "model")
        exported = bundle.read(bundle.find(fetched))
        digest = bundle.content_digest(exported.directory)
        if point.digest and digest != point.digest:
            raise IntegrityError(
                f"The model of {point.variant} (run {point.run_id[:8]}) is not the one that was measured: its digest "
                f"is {digest[:12]}, not {point.digest[:12]}. It was changed after it was logged; nothing was promoted."
            )
        threads = int(point.params.get("slim.measure.threads", "1"))
        inputs = probe_inputs(exported.spec)
        try:
            with Helper(threads=threads, fork=False) as helper:
                found = helper.outputs(exported.directory, inputs, batch_size=1)
        except MeasurementError as error:
            raise IntegrityError(
                f"The model of {point.variant} can't be loaded: {error} Nothing was promoted."
            ) from error
        try:
            path = download_artifacts(f"runs:/{point.run_id}/{ANSWERS}", into=Path(folder) / "answers")
            kept = json.loads(path.read_text(encoding="utf-8"))
        except Exception as error:
            raise IntegrityError(
                f"What {point.variant} (run {point.run_id[:8]}) answered when it was logged ({ANSWERS}) can't be read: "
                f"{error}. Measure it again with `mlflow run . -e evaluate`."
            ) from error
        expected = np.asarray(kept["outputs"], dtype=np.float32)
        found = found.reshape(len(found), -1)  # as they are kept; of a model without scores there is one a row
        if expected.shape != found.shape or not np.allclose(expected, found, rtol=1e-2, atol=1e-2):
            raise IntegrityError(
                f"The model of {point.variant} answers differently from when it was measured. Nothing was promoted. "
                "Another CPU or version of its runtime can do that to 8-bit models: measure it again here."
            )


def _record(
    options: PromoteOptions,
    found: Frontier,
    pick: StoredPoint,
    waived: Sequence[Refusal],
    refused: Mapping[str, Sequence[Refusal]],
) -> dict[str, Any]:
    return {
        "dry_run": options.dry_run,
        "rollback": False,
        "chosen": pick.run_id,
        "variant": pick.variant,
        "objective": options.objective,
        "max_quality_drop": _margin(options, pick),
        "constraints": list(options.constraints),
        "waived": {one.rule: one.reason for one in waived},
        "ranked": len(found.points),
        "refused": {run_id[:8]: [one.rule for one in reasons] for run_id, reasons in list(refused.items())[:40]},
    }


def card(point: StoredPoint, record: Mapping[str, Any]) -> str:
    """The version's description: what it is, against what, its figures, and how it was chosen."""
    from .measurement.report import Report
    from .tracking.cards import point_card, run_link

    report = Report(point.variant, point.metrics, point.tags, point.params)
    waived = record["waived"]
    lines = [
        f"**{escape(point.title)}**, chosen by {escape(str(record['objective']))} at a quality drop of at most "
        f"{record['max_quality_drop']:g}; measured against "
        f"{run_link(point.experiment_id, point.baseline_run, 'its original')} in "
        f"{run_link(point.experiment_id, point.run_id, 'this run')} on "
        f"{escape(point.params.get('slim.host.cpu', '?'))}.",
        "",
        "Waived: " + "; ".join(f"**{escape(rule)}** ({escape(why)})" for rule, why in waived.items())
        if waived
        else "Every rule of the gate was kept.",
        "",
        point_card(report),
        "",
        f"Test rows: {escape(point.params.get('slim.measure.test_digest', '?')[:12])} "
        f"({escape(point.params.get('slim.measure.test_rows', '?'))}). Made by the recipe in "
        f"{run_link(point.experiment_id, point.session, 'this run')} (artifact recipe.yaml): "
        "`mlflow-slim run recipe.yaml` (for a sweep, `mlflow-slim sweep recipe.yaml`) makes it again.",
    ]
    return "\n".join(lines)[:7000]
