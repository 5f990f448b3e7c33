from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlflow_slim.errors import ConfigError, InputNotFound, MeasurementError
from mlflow_slim.measurement import fresh_process
from mlflow_slim.measurement import helper as helper_module
from mlflow_slim.measurement.fresh_process import Served, fresh_starts, peak_rss_mib
from mlflow_slim.measurement.helper import Helper

FAKE = """
import json, os, sys, time
import numpy as np

class Predictor:
    def __init__(self, directory, threads):
        self.weights = json.loads((directory / "weights.json").read_text())
        self.threads = threads
        self.ballast = np.ones(self.weights.get("mib", 0) * 2**17)
        time.sleep(self.weights.get("seconds", 0))

    def predict(self, inputs, *, batch_size=32):
        if "die" in self.weights:
            sys.stderr.write("I looked for a kernel\\nand found none\\n")
            os._exit(3)
        if "kill" in self.weights:
            os.kill(os.getpid(), 9)
        if "hang" in self.weights:
            time.sleep(60)
        facts = [os.environ["HF_HUB_OFFLINE"], os.environ["OMP_NUM_THREADS"], str(self.threads)]
        heavy = [float(name in sys.modules) for name in ("torch", "transformers", "mlflow")]
        size = [float(len(x) if not isinstance(x, tuple) else 100 * len(x[0]) + len(x[1])) for x in inputs]
        return np.array([[s, float(batch_size), *map(float, facts), *heavy] for s in size], dtype=np.float32)

class Backend:
    def __init__(self, name): self.name = name
    def load(self, directory, *, threads): return Predictor(directory, threads)
"""
BACKENDS = "fake_backends:Backend"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "fake_backends.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


@pytest.fixture(params=[pytest.param(True, marks=pytest.mark.skipif(sys.platform != "linux", reason="forks")), False])
def helper(request: pytest.FixtureRequest, folder: Path) -> Iterator[Helper]:
    with Helper(threads=2, fork=request.param, imports=(), backends=BACKENDS) as helper:
        yield helper


def _model(folder: Path, text: str = "{}", name: str = "model") -> Served:
    (folder / name).mkdir()
    (folder / name / "weights.json").write_text(text)
    return Served(folder / name, "fake", threads=2)


def test_outputs_come_from_a_process_with_given_threads_and_offline(folder: Path, helper: Helper) -> None:
    inputs = ["abc", ("a", "bc"), b"\x00\xff\n", "ß\n'$(touch x)'"]
    outputs = helper.outputs(_model(folder), inputs, batch_size=7)
    assert outputs.dtype == np.float32
    assert outputs[:, 0].tolist() == [3, 102, 3, 14]
    assert outputs[:, 1].tolist() == [7] * 4
    assert outputs[0, 2:5].tolist() == [1, 2, 2]


def test_a_process_of_its_own_imports_nothing_heavy(folder: Path) -> None:
    with Helper(fork=False, backends=BACKENDS) as helper:
        assert helper.outputs(_model(folder), ["abc"])[0, 5:].tolist() == [0, 0, 0]


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_one_helper_is_forked_for_every_model_and_waits_for_the_next_block(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def process_of(helper: Helper) -> Any:
        assert helper._running is not None
        return helper._running.process

    given: Any = {"imports": ("wave", "not_there"), "backends": BACKENDS}
    with Helper(**given) as helper:
        helper.outputs(_model(folder, name="first"), ["a"])
        process = process_of(helper)
        with pytest.raises(MeasurementError, match="signal 9"):
            helper.outputs(_model(folder, '{"kill": 1}', "killed"), ["a"])
        helper.outputs(_model(folder, name="second"), ["a"])
        assert process_of(helper) is process
        process.kill()
        process.wait()
        helper.outputs(_model(folder, name="third"), ["a"])  # with another
        process = process_of(helper)
    assert process.poll() is None
    monkeypatch.setenv("MLFLOW_RUN_NAME", "of every run its own")
    with Helper(**given) as helper:
        helper.outputs(_model(folder, name="fourth"), ["a"])
        assert process_of(helper) is process
    with Helper(**{**given, "imports": ("wave",)}) as helper:
        helper.outputs(_model(folder, name="fifth"), ["a"])
        assert process_of(helper) is not process
    assert process.poll() is not None, "one idles at most"
    process = helper_module._idle.process  # type: ignore[union-attr]
    monkeypatch.setenv("OTHER", "surroundings")
    with Helper(**{**given, "imports": ("wave",)}) as helper:
        helper.outputs(_model(folder, name="sixth"), ["a"])
        assert process_of(helper) is not process
        process = process_of(helper)
        with pytest.raises(MeasurementError, match="within"):
            helper.outputs(_model(folder, '{"hang": 1}', "hang"), ["a"], timeout_s=0.5)
    assert process.poll() is not None, "one that hangs is of no use to the next"


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_a_request_brings_the_environment_of_its_minute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "tell.py").write_text(
        "import os\ndef tell(path): path.with_name('answer').write_text(os.environ.get('MLFLOW_OF_NOW', 'nothing'))"
    )
    for value in ("first", "second"):
        monkeypatch.setenv("MLFLOW_OF_NOW", value)
        with Helper(imports=(), backends=BACKENDS) as helper:
            helper.call("tell:tell", folder / "request", what="Telling")
        assert (folder / "answer").read_text() == value


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_an_idle_helper_ends_with_the_process_that_started_it(folder: Path) -> None:
    code = (
        "import sys; from mlflow_slim.measurement.helper import Helper\n"
        "if True:\n"
        "  with Helper(imports=(), backends='fake_backends:Backend') as helper:\n"
        "    helper.outputs(sys.argv[1], ['a'])\n"
        "    print(helper._running.process.pid, helper._running.folder.name)\n"
    )
    model = _model(folder).directory
    (model / "slim.json").write_text('{"backend": "fake"}')
    found = subprocess.run([sys.executable, "-c", code, str(model)], capture_output=True, text=True, check=True)
    pid, name = found.stdout.split()
    assert not Path(f"/proc/{pid}").exists()
    assert not Path(name).exists()


def test_peak_memory_holds_the_model_and_not_the_parents_memory(folder: Path) -> None:
    ballast = np.ones(300 * 2**17)  # 300 MiB that a child made carelessly would inherit as its peak
    models = [_model(folder, "{}", "small"), _model(folder, '{"mib": 128}', "large")]
    small, large = fresh_starts(models, ["a"], 1, backends=BACKENDS)
    assert ballast.nbytes == 300 * 2**20
    assert peak_rss_mib() > 300
    assert small.peak_mib.value < 150
    assert large.peak_mib.value - small.peak_mib.value == pytest.approx(128, abs=15)
    assert 5 < large.import_mib < large.peak_mib.value - 100


def test_cold_start_counts_from_the_start_of_the_process(folder: Path) -> None:
    models = [_model(folder, '{"seconds": 0.4}', "slow"), _model(folder, "{}", "fast")]
    slow, fast = fresh_starts(models, ["a", "b"], 2, backends=BACKENDS)
    assert len(slow.cold_starts_s) == len(fast.cold_starts_s) == 2
    assert slow.cold_start_s.n == 2
    assert slow.load_s >= 0.4
    assert min(slow.cold_starts_s) > 0.4
    assert min(slow.cold_starts_s) <= slow.cold_start_s.value <= max(slow.cold_starts_s)
    # the interpreter's own start is in it, and no part is larger than the whole
    assert max(fast.cold_starts_s) > fast.import_s + fast.load_s + fast.predict_s


def test_a_folder_names_its_own_backend(folder: Path) -> None:
    model = _model(folder).directory
    with Helper(threads=3, imports=(), backends=BACKENDS) as helper:
        with pytest.raises(InputNotFound, match=r"isn't an exported model.*slim\.json"):
            helper.outputs(model, ["a"])
        (model / "slim.json").write_text('{"backend": "fake"}')
        assert helper.outputs(model, ["abc"])[0, 3:5].tolist() == [3, 3]


def test_a_child_that_fails_says_its_last_words(folder: Path, helper: Helper) -> None:
    with pytest.raises(
        MeasurementError, match=r"exit code 3\)\. Its last words:\nI looked for a kernel\nand found none"
    ):
        helper.outputs(_model(folder, '{"die": 1}'), ["a"])
    with pytest.raises(MeasurementError, match=r"FileNotFoundError.*weights\.json"):
        (folder / "empty").mkdir()
        helper.outputs(Served(folder / "empty", "fake"), ["a"])
    with pytest.raises(MeasurementError, match="No module named 'nowhere'"):
        fresh_starts([Served(folder / "empty", "fake")], ["a"], 1, backends="nowhere:at_all")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_child_that_is_killed_or_hangs_is_told_apart(folder: Path, helper: Helper) -> None:
    with pytest.raises(MeasurementError, match=r"signal 9, perhaps out of memory\)\. It said nothing\."):
        helper.outputs(_model(folder, '{"kill": 1}', "kill"), ["a"])
    with pytest.raises(MeasurementError, match=r"within 1\.5 s"):
        helper.outputs(_model(folder, '{"hang": 1}', "hang"), ["a"], timeout_s=1.5)


def test_wrong_requests_start_no_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for way in ("run", "Popen"):
        monkeypatch.setattr(fresh_process.subprocess, way, lambda *a, **k: pytest.fail("a process was started"))
    model, helper = _model(folder), Helper()
    with pytest.raises(InputNotFound, match="missing' isn't a folder"):
        helper.outputs(Served(folder / "missing", "fake"), ["a"])
    with pytest.raises(ConfigError, match="0 inputs"):
        helper.outputs(model, [])
    with pytest.raises(ConfigError, match="threads=0"):
        helper.outputs(Served(model.directory, "fake", threads=0), ["a"])
    with pytest.raises(ConfigError, match="type object can't be sent"):
        helper.outputs(model, [object()])
    with pytest.raises(ConfigError, match="starts must be at least 1, got 0"):
        fresh_starts([model], ["a"], 0)


def test_the_working_folder_cannot_slip_a_module_in(
    folder: Path, helper: Helper, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sys.version_info < (3, 11):
        pytest.skip("the interpreter has no safe path")
    trap = folder / "cwd"
    trap.mkdir()
    (trap / "numpy.py").write_text("raise SystemExit('trapped')")
    monkeypatch.chdir(trap)
    assert len(helper.outputs(_model(folder), ["a"])) == 1
    assert [p.name for p in trap.iterdir()] == ["numpy.py"]
