"""Measures points in a clean process: the request is written to files, the reports are read from one.

Nothing is pickled: settings, rows and reports are JSON, the references an ``.npy`` file, the user's columns parquet.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .artifact import ExportedModel, OptimizationCost
from .measurement.report import Report

if TYPE_CHECKING:
    import pandas as pd

    from .config import Recipe
    from .inputs import Inputs
    from .interfaces import Split
    from .measurement.helper import Helper

__all__ = ["measure_apart", "measure_request"]


def measure_apart(
    points: Sequence[ExportedModel],
    recipe: Recipe,
    inputs: Inputs,
    threads: int,
    helper: Helper,
    *,
    prepared: OptimizationCost | None = None,
    rows: Split | None = None,
    changes: Mapping[str, Any] | None = None,
) -> list[Report]:
    """One report a point, in order; the first point is the baseline of the others.

    Args:
        points: Exported models.
        recipe: Says how to measure; its steps play no part.
        inputs: Task and data.
        threads: Threads of every arm.
        helper: Makes the process.
        prepared: What making the baseline took.
        rows: The rows to measure on, the test split by default.
        changes: Fields of `Session` that differ from what the recipe says.

    Raises:
        MeasurementError: The process failed; its last words are in the message.
    """
    split = rows or inputs.data.test
    with tempfile.TemporaryDirectory(prefix="slim-measure-") as name:
        folder = Path(name)
        _write_split(split, folder)
        request = {
            "recipe": {**recipe.resolved(), "steps": []},
            "threads": threads,
            "prepared": asdict(prepared) if prepared is not None else None,
            "changes": dict(changes or {}),
            "points": [str(Path(point.directory).resolve()) for point in points],
            "split": {"name": split.name, "digest": split.digest, "inputs": [_plain(one) for one in split.inputs]},
            "spec": dict(inputs.data.spec),
        }
        path = folder / "request.json"
        path.write_text(json.dumps(request, ensure_ascii=False), encoding="utf-8")
        helper.call(f"{__name__}:measure_request", path, what="Measuring")
        content = json.loads((folder / "reports.json").read_text(encoding="utf-8"))
        return [Report(**report) for report in content]


def _plain(row: Any) -> Any:
    return list(row) if isinstance(row, tuple) else row


def _write_split(split: Split, folder: Path) -> None:
    import numpy as np

    np.save(folder / "references.npy", split.references, allow_pickle=False)
    frame = split.frame.reset_index(drop=True)
    frame.columns = [str(column) for column in frame.columns]
    try:
        frame.to_parquet(folder / "frame.parquet")
    except Exception:  # a column of many kinds; slices are made from its texts all the same
        frame.astype(str).to_parquet(folder / "frame.parquet")


# --- In the other process -------------------------------------------------------------------------------------------


def measure_request(path: Path) -> None:
    """Does what the request says and writes ``reports.json`` beside it."""
    import numpy as np
    import pandas as pd

    from . import bundle
    from .catalog import load_task
    from .config import Recipe
    from .inputs import Inputs
    from .interfaces import Split, TaskData
    from .measurement.session import measure_points
    from .session_setup import compute_threads, energy_meter, make_session

    request = json.loads(path.read_text(encoding="utf-8"))
    recipe = Recipe.load(request["recipe"])
    given = request["split"]
    split = Split(
        name=given["name"],
        inputs=[tuple(one) if isinstance(one, list) else one for one in given["inputs"]],
        references=np.load(path.with_name("references.npy"), allow_pickle=False),
        frame=_read_frame(path.with_name("frame.parquet"), pd),
        digest=given["digest"],
    )
    data = TaskData(name="", source="", train=split, validation=split, test=split, spec=request["spec"], report={})
    changes = request["changes"]
    energy = energy_meter(recipe) if changes.get("energy_s", 1) else contextlib.nullcontext((None, "not asked for"))
    with compute_threads(request["threads"]), energy as (meter, reason):
        inputs = Inputs(task=load_task(recipe.task), data=data, source=None, notes=(), facts={})
        session = make_session(recipe, inputs, request["threads"], meter, reason)
        prepared = request["prepared"]
        session = replace(session, prepared=OptimizationCost(**prepared) if prepared else None, **changes)
        reports = measure_points([bundle.read(folder, verify=False) for folder in request["points"]], session)
    text = json.dumps([asdict(report) for report in reports], ensure_ascii=False, default=_number)
    path.with_name("reports.json").write_text(text, encoding="utf-8")


def _read_frame(path: Path, pandas: Any) -> pd.DataFrame:
    frame: pd.DataFrame = pandas.read_parquet(path)
    return frame


def _number(value: Any) -> Any:
    """Numpy's numbers and arrays, as JSON has them."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
