"""The step cache: what was done on the same inputs is taken again, and nothing else is."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_backends import random_texts, tiny_source
from test_pipeline import options, reviews, store  # noqa: F401  (fixtures)
from test_prune_techniques import TASK, context

import mlflow_slim as slim
from mlflow_slim import manifest
from mlflow_slim.artifact import OptimizationCost, OptimizedModel
from mlflow_slim.cache import StepCache, content_key
from mlflow_slim.cached_steps import do_cached, step_key
from mlflow_slim.catalog import load_backend, load_technique
from mlflow_slim.cli import main
from mlflow_slim.errors import ConfigError
from mlflow_slim.scoring import outputs_of

torch = pytest.importorskip("torch")
KEY = content_key({"a": 1})


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("MLFLOW_SLIM_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def source() -> OptimizedModel:
    return tiny_source()


def put(cache: StepCache, key: str = KEY, size: int = 10) -> None:
    def write(folder: Path) -> None:
        (folder / "weights").write_bytes(b"x" * size)

    with cache.locked(key):
        cache.store(key, {"technique": "prune.depth"}, write, size=size)


def do(step: Any, source: OptimizedModel, folder: Path, **changes: Any) -> tuple[OptimizedModel, int]:
    """The step through the cache, and how often it was really done."""
    folder.mkdir(exist_ok=True)
    ctx = context(source, folder, **changes)
    done = []

    def work() -> OptimizedModel:
        done.append(1)
        outcome = step.apply(source, ctx)
        record = replace(outcome.lineage[-1], cost=OptimizationCost(2.5, 0.001, "D"))
        return replace(outcome, lineage=(*outcome.lineage[:-1], record))

    return do_cached(step, source, ctx, work), len(done)


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("finetune.full", {"epochs": 1}),
        ("prune.heads", {"recovery": "none"}),
        ("prune.width", {"hidden_sparsity": 0.5, "recovery": "none"}),
        ("prune.vocabulary", {}),
        ("quantize.cast", {}),
    ],
)
def test_the_second_time_gives_the_same_model_without_doing_it(
    name: str, chosen: dict[str, Any], source: OptimizedModel, root: Path, tmp_path: Path
) -> None:
    step = load_technique(name)(**chosen)
    first, done = do(step, source, tmp_path / "1")
    again, redone = do(step, source, tmp_path / "2")
    assert (done, redone) == (1, 0)
    old, new = first.model.state_dict(), again.model.state_dict()
    assert old.keys() == new.keys()
    assert all(torch.equal(old[key], new[key]) and old[key].dtype == new[key].dtype for key in old)
    assert again.spec == first.spec
    assert again.variant == first.variant
    assert again.processor.get_vocab() == first.processor.get_vocab()
    cost = again.lineage[-1].cost
    assert cost == OptimizationCost(2.5, 0.001, "D", reused=True)
    rows = TASK.encode(first.processor, random_texts(5, seed=1), first.spec)
    assert (outputs_of(first.model, first.processor, rows) == outputs_of(again.model, again.processor, rows)).all()
    following = load_technique("prune.depth")(recovery="none")
    keys = {step_key(following, model, context(source, tmp_path), None) for model in (first, again)}
    assert len(keys) == 1, "the next step is found too"


def test_builds_come_back_for_their_runtime(source: OptimizedModel, root: Path, tmp_path: Path) -> None:
    backends = {"onnxruntime": load_backend("onnxruntime")}
    step = load_technique("quantize.dynamic")(max_drop=None, reduce_range=True)
    first, _ = do(step, source, tmp_path / "1", backends=backends)
    again, redone = do(step, source, tmp_path / "2", backends=backends)
    assert redone == 0
    exported = backends["onnxruntime"].export(again, tmp_path / "out", random_texts(3, seed=1))
    wanted = manifest.sha256_of(first.builds["onnxruntime"] / "model.onnx")
    assert manifest.sha256_of(exported.directory / "model.onnx") == wanted


def test_everything_that_decides_the_outcome_is_in_the_key(source: OptimizedModel, tmp_path: Path) -> None:
    import copy

    step = load_technique("prune.depth")
    ctx = context(source, tmp_path)
    other = copy.deepcopy(source.model)
    with torch.no_grad():
        other.classifier.bias[0] += 1e-7
    moved = replace(source, model=other)

    def with_digest(name: str) -> Any:
        data = copy.copy(ctx.data)
        changed = copy.copy(getattr(data, name))
        changed.digest = "other"
        setattr(data, name, changed)
        return replace(ctx, data=data)

    variants = [
        (step(), source, ctx),
        (step(layers=1), source, ctx),
        (step(epochs=7), source, ctx),
        (load_technique("prune.heads")(), source, ctx),
        (step(), moved, ctx),
        (step(), replace(source, spec={**source.spec, "max_length": 9}), ctx),
        (step(), source, replace(ctx, seed=1)),
        (step(), source, replace(ctx, threads=2)),
        (step(), source, replace(ctx, device="cuda")),
        (step(), source, replace(ctx, metric="mcc")),
        (step(), source, replace(ctx, original=moved)),
        (step(), source, with_digest("train")),
        (step(), source, with_digest("validation")),
    ]
    keys = [step_key(*variant, None) for variant in variants]
    assert len(set(keys)) == len(variants)
    assert step_key(*variants[0], None) == keys[0]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "missing", "extra", "no manifest", "entry"])
def test_a_damaged_entry_is_done_again_and_set_aside(
    damage: str, source: OptimizedModel, root: Path, tmp_path: Path
) -> None:
    step = load_technique("prune.depth")(recovery="none")
    first, _ = do(step, source, tmp_path / "1")
    (entry,) = StepCache(root).entries()
    weights = entry.folder / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        weights.write_bytes(content)
    elif damage == "cut":
        weights.write_bytes(content[:-1])
    elif damage == "empty":
        weights.write_bytes(b"")
    elif damage == "missing":
        weights.unlink()
    elif damage == "extra":
        (entry.folder / "more").touch()
    elif damage == "no manifest":
        (entry.folder / manifest.NAME).unlink()
    else:
        (entry.folder / "entry.json").write_text("{}")
    again, redone = do(step, source, tmp_path / "2")
    assert redone == 1
    old, new = first.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(old[key], new[key]) for key in old)
    assert [path.name[:5] for path in root.iterdir() if path.name.startswith(".bad")] == [".bad-"]
    assert do(step, source, tmp_path / "3")[1] == 0


def test_off_means_off(source: OptimizedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    step = load_technique("prune.depth")(recovery="none")
    assert [do(step, source, tmp_path / str(i))[1] for i in (1, 2)] == [1, 1]
    assert not (tmp_path / "home").exists()


def test_a_full_disk_costs_the_entry_and_not_the_step(
    source: OptimizedModel, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(manifest, "write", full)
    _, done = do(load_technique("prune.depth")(recovery="none"), source, tmp_path / "1")
    assert done == 1
    assert "not cached" in caplog.text
    assert [path.name for path in root.iterdir()] == ["locks"]


def test_little_space_is_seen_before_writing(root: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    from mlflow_slim import cache as module

    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: os.terminal_size((0, 0)) and type("U", (), {"free": 5}))
    put(StepCache(root))
    assert "less than 256 MiB are free" in caplog.text
    assert StepCache(root).entries() == []


def test_a_cache_that_others_can_write_is_refused(root: Path) -> None:
    root.mkdir(mode=0o777)
    root.chmod(0o777)
    with pytest.raises(ConfigError, match=r"written by others.*chmod 700"):
        StepCache(root)


def test_a_fresh_cache_is_for_its_owner_alone(root: Path) -> None:
    StepCache(root)
    assert root.stat().st_mode & 0o077 == 0


CHILD = """
import sys, time
from pathlib import Path
from mlflow_slim.cache import StepCache
cache = StepCache(Path(sys.argv[1]))
def write(folder):
    (folder / "weights").write_bytes(b"x" * 100)
    print("writing", flush=True)
    time.sleep(float(sys.argv[3]))
with cache.locked(sys.argv[2]):
    if cache.find(sys.argv[2]) is None:
        print("doing", flush=True)
        cache.store(sys.argv[2], {"technique": "t"}, write, size=100)
"""


def start(root: Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(root), KEY, str(seconds)], stdout=subprocess.PIPE, text=True
    )


def test_a_process_that_is_killed_while_writing_leaves_no_entry_and_no_lock(root: Path) -> None:
    child = start(root, 60)
    assert child.stdout is not None
    assert [child.stdout.readline() for _ in range(2)] == ["doing\n", "writing\n"]
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    cache = StepCache(root)
    with cache.locked(KEY):
        assert cache.find(KEY) is None
    put(cache)
    with cache.locked(KEY):
        assert cache.find(KEY) is not None


def test_two_processes_do_the_same_step_once(root: Path) -> None:
    children = [start(root, 1), start(root, 1)]
    said = [child.communicate(timeout=60)[0] for child in children]
    assert sorted(text.count("doing") for text in said) == [0, 1]


def test_clearing_goes_by_last_use_and_leaves_what_is_in_use(root: Path) -> None:
    cache = StepCache(root)
    keys = [content_key({"n": n}) for n in range(4)]
    for age, key in enumerate(keys):
        put(cache, key, size=1000)
        os.utime(root / key, (time.time() - age * 86400,) * 2)
    assert [entry.key for entry in cache.entries()] == keys
    planned = cache.collect(older_than_s=2.5 * 86400, dry_run=True)
    assert [name for name, _ in planned] == [keys[3]]
    assert len(cache.entries()) == 4
    with cache.locked(keys[3]):
        assert cache.collect(older_than_s=2.5 * 86400) == []
    assert [name for name, _ in cache.collect(older_than_s=2.5 * 86400)] == [keys[3]]
    size = max(entry.size for entry in cache.entries())
    assert [name for name, _ in cache.collect(max_bytes=2 * size)] == [keys[2]]
    cache.collect()
    assert cache.entries() == []


def test_the_command_lists_verifies_and_clears(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(StepCache(root))
    assert main(["cache", "ls"]) == 0
    assert "prune.depth" in capsys.readouterr().out
    assert main(["cache", "verify"]) == 0
    (root / KEY / "weights").write_bytes(b"y" * 10)
    assert main(["cache", "verify"]) == 1
    assert "damaged, set aside" in capsys.readouterr().out
    assert main(["cache", "gc", "--max-size", "1.5GiB", "--older-than", "30d"]) == 0
    assert [path.name for path in root.iterdir()] == ["locks"]
    assert main(["cache", "gc", "--older-than", "soon"]) == 2
    assert "Write it as 30d" in capsys.readouterr().err


def test_a_recipe_goes_on_where_it_was(
    store: Any,  # noqa: F811
    reviews: Path,  # noqa: F811
    make_tiny_classifier: Callable[..., Path],
    root: Path,
) -> None:
    model = make_tiny_classifier(labels=("a", "b", "c"))
    chain = {"steps.distill.epochs": 1, "baseline.epochs": 1, "export.backends": "torch"}
    first = slim.run("distill", **options(model, reviews, **chain))
    again = slim.run("distill", **options(model, reviews, **chain))
    costs = [point.exported.lineage[-1].cost for outcome in (first, again) for point in outcome.points[1:]]
    assert [cost.reused for cost in costs if cost] == [False, True]
    assert [line.reused for line in again.ledger] == [True]
    quality = [outcome.reports[-1].metrics["quality/accuracy"] for outcome in (first, again)]
    assert quality[0] == quality[1]
    for point in again.points:
        assert store.get_run(point.run_id).data.tags["slim.emissions.reused"] == "true"
    for point in first.points:
        assert "slim.step.reused" not in store.get_run(point.run_id).data.tags
