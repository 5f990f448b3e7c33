"""Tasks of lm-eval: what it finds of our models is what it finds of transformers' own, and changes are paired."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_language_model
from test_text_generation import load, recipe_of, rows_file

from mlflow_slim.catalog import load_backend
from mlflow_slim.config import Recipe
from mlflow_slim.errors import ConfigError, DataError
from mlflow_slim.measurement.harness import run_task, task_figures, tasks_fault

pytest.importorskip("lm_eval", reason="the extra 'lm-eval' is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # of lm-eval and what it stands on


def task_file(folder: Path, kind: str) -> Path:
    rows = [
        {
            "q": f"the river {i} is",
            "choices": ["wide and long", "a fox", "home"],
            "answer": i % 3,
            "text": f"a river {i}",
        }
        for i in range(12)
    ]
    data = folder / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    own = {
        "multiple_choice": (
            "doc_to_choice: choices\ndoc_to_target: answer\nmetric_list:\n  - metric: acc\n  - metric: acc_norm\n"
        ),
        "loglikelihood_rolling": 'doc_to_target: "{{text}}"\nmetric_list:\n  - metric: bits_per_byte\n',
        "generate_until": (
            'doc_to_target: "{{choices[answer]}}"\ngeneration_kwargs:\n  until: ["zz"]\n  max_gen_toks: 4\n'
            "metric_list:\n  - metric: exact_match\n"
        ),
    }[kind]
    prompt = '""' if kind == "loglikelihood_rolling" else '"{{q}}"'
    file = folder / f"{kind}.yaml"
    file.write_text(
        f"task: our_{kind}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\ntest_split: test\n"
        f"output_type: {kind}\ndoc_to_text: {prompt}\n{own}",
        encoding="utf-8",
    )
    return file


def test_figures_are_those_of_lm_eval_with_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    model = make_language_model(tmp_path / "lm")
    inputs = load(tmp_path, model=model)
    assert inputs.source is not None
    load_backend("torch").export(inputs.source, tmp_path / "torch", inputs.data.validation.inputs[:2])
    generator = load_backend("torch").load(tmp_path / "torch", threads=1)
    kinds = ("multiple_choice", "loglikelihood_rolling", "generate_until")
    files = [str(task_file(tmp_path, kind)) for kind in kinds]
    found = {kind: run_task(generator, file, rows=8, seed=0) for kind, file in zip(kinds, files, strict=True)}
    values: dict[str, float] = {}
    for one in found.values():
        figures, changes = task_figures(one, None)
        assert not changes
        values |= figures
    theirs = simple_evaluate(
        model=HFLM(pretrained=str(model), device="cpu", dtype="float32", batch_size=1),
        tasks=[f"our_{kind}" for kind in kinds],
        limit=8,
        bootstrap_iters=100,
        task_manager=TaskManager(include_path=str(tmp_path)),
    )
    assert theirs is not None
    for task, metric in (
        ("our_multiple_choice", "acc"),
        ("our_multiple_choice", "acc_norm"),
        ("our_loglikelihood_rolling", "bits_per_byte"),
        ("our_generate_until", "exact_match"),
    ):
        wanted = theirs["results"][task][f"{metric},none"]
        assert values[f"quality/lm_eval/{task}/{metric}"] == pytest.approx(wanted, rel=1e-4)
    assert [row["resps"] for row in found["generate_until"]["samples"]["our_generate_until"]] == [
        row["resps"] for row in theirs["samples"]["our_generate_until"]
    ]
    _, changes = task_figures(found["multiple_choice"], found["multiple_choice"])
    change = changes["quality/lm_eval/our_multiple_choice/acc_delta"]
    assert change.value == change.lo == change.hi == 0


def test_changes_are_paired_by_row() -> None:
    def outcome(right: list[float]) -> dict[str, Any]:
        samples = [{"doc_id": i, "filter": "none", "acc": value} for i, value in enumerate(right)]
        return {"results": {"t": {"alias": "t", "acc,none": float(np.mean(right))}}, "samples": {"t": samples[::-1]}}

    before, after = outcome([1, 0, 1, 1, 0, 1, 0, 1]), outcome([1, 0, 0, 1, 0, 1, 0, 1])
    values, changes = task_figures(after, before)
    assert values == {"quality/lm_eval/t/acc": 0.5}
    change = changes["quality/lm_eval/t/acc_delta"]
    assert change.value == pytest.approx(-0.125)
    assert change.lo < -0.125 < change.hi
    after["results"]["t"]["acc,none"] = 0.9  # no mean of what the rows say
    assert not task_figures(after, before)[1]


def test_tasks_are_named_with_commas_on_the_command_line() -> None:
    given = {"measure.lm_eval": "arc_easy, ./mine.yaml", "measure.lm_eval_rows": "20"}
    recipe = Recipe.load("quantize-llm", given)
    assert recipe.measure.lm_eval == ("arc_easy", "./mine.yaml")
    assert recipe.measure.lm_eval_rows == 20


def test_what_is_not_a_task_is_named_before_any_work(tmp_path: Path) -> None:
    assert "gone.yaml isn't there" in str(tasks_fault([str(tmp_path / "gone.yaml")]))
    nameless = tmp_path / "nameless.yaml"
    nameless.write_text("dataset_path: json\n", encoding="utf-8")
    assert "names no task" in str(tasks_fault([str(nameless)]))
    assert tasks_fault([str(task_file(tmp_path, "multiple_choice"))]) is None


@pytest.mark.slow  # reading the files of lm-eval's own tasks takes most of a minute
def test_tasks_of_lm_eval_are_known_by_name() -> None:
    assert "knows no task nonsense_task" in str(tasks_fault(["nonsense_task"]))
    assert tasks_fault(["arc_easy"]) is None


def test_a_recipe_logs_tasks_and_survives_those_it_cannot_reach(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow_slim.pipeline import run

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    model = make_language_model(tmp_path / "lm")
    good, lost = task_file(tmp_path, "multiple_choice"), tmp_path / "lost.yaml"
    lost.write_text(good.read_text().replace("our_", "lost_").replace("rows.jsonl", "no.jsonl"), encoding="utf-8")
    measure = {"timing_s": 4, "energy_s": 0, "fresh_starts": 0, "wait_s": 0, "lm_eval_rows": 6}
    outcome = run(
        recipe_of(
            model,
            rows_file(tmp_path),
            steps=[{"technique": "finetune.full", "epochs": 1}],
            measure={**measure, "lm_eval": [str(lost), str(good)]},
        )
    )
    last = store.client.get_run(outcome.points[-1].run_id).data
    assert 0 <= last.metrics["quality/lm_eval/our_multiple_choice/acc"] <= 1
    assert "quality/lm_eval/our_multiple_choice/acc_delta" in last.metrics
    assert "lm-eval can't do" in outcome.reports[-1].tags["slim.absent.quality/lm_eval/lost"]
    with pytest.raises(ConfigError, match="language models only"):
        run(recipe_of(model, rows_file(tmp_path), task="text-classification", measure={"lm_eval": [str(good)]}))
    with pytest.raises(DataError, match="isn't there"):
        run_task(None, "gone.yaml", rows=None, seed=0)
