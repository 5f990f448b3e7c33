"""Cold start and environment size of an ONNX point against a transformers pipeline over its torch twin.

Process start to first answer, in fresh processes that take turns. The slim environment is made new with what the
logged model's requirements name and nothing else; the other side is the environment this runs in.

Usage: python benchmarks/cold_start.py ONNX_MODEL TORCH_MODEL [--starts 7]   (MLflow model folders or models:/ URIs)
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from pathlib import Path

import mlflow

from mlflow_slim.measurement.host import host

TEXT = "strong coarse brandy"
RUNTIME = """
import sys
from pathlib import Path
model = Path(sys.argv[1])
sys.path.insert(0, str(model / "code"))
name = next(p.name for p in (model / "code").iterdir() if p.name.startswith("slim_runtime"))
runtime = __import__(name)
print(runtime.load(model / "bundle", threads=1).predict([sys.argv[2]]).shape)
"""
PYFUNC = """
import sys, mlflow.pyfunc
print(mlflow.pyfunc.load_model(sys.argv[1]).predict([sys.argv[2]]))
"""
PIPELINE = """
import sys
from transformers import pipeline
print(pipeline("text-classification", model=sys.argv[1] + "/bundle", device="cpu")(sys.argv[2]))
"""


def size_mib(folder: Path) -> float:
    """Files of an environment's packages, MiB."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("onnx")
    parser.add_argument("torch")
    parser.add_argument("--starts", type=int, default=7)
    options = parser.parse_args()
    onnx, torch = (mlflow.artifacts.download_artifacts(uri) for uri in (options.onnx, options.torch))
    with tempfile.TemporaryDirectory() as folder:
        env = Path(folder) / "env"
        venv.create(env, with_pip=True)
        slim_python = env / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        needs = ["-r", str(Path(onnx) / "requirements.txt")]
        subprocess.run([slim_python, "-m", "pip", "install", "--quiet", *needs], check=True)
        packages = subprocess.run(
            [slim_python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
            capture_output=True,
            text=True,
            check=True,
        )
        arms = {
            "runtime alone": [slim_python, "-c", RUNTIME, onnx, TEXT],
            "pyfunc": [slim_python, "-c", PYFUNC, onnx, TEXT],
            "transformers pipeline": [sys.executable, "-c", PIPELINE, torch, TEXT],
        }
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        for turn in range(options.starts + 1):  # the first fills the file cache and isn't counted
            for name, command in arms.items():
                start = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                if turn:
                    seconds[name].append(time.perf_counter() - start)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        whole = medians["transformers pipeline"]
        mib = {
            "slim": size_mib(Path(packages.stdout.strip())),
            "recipes": size_mib(Path(sysconfig.get_paths()["purelib"])),
        }
    print(
        json.dumps(
            {
                "host": host().to_dict(),
                "median_s": medians,
                "all_s": seconds,
                "runtime_over_pipeline": medians["runtime alone"] / whole,
                "pyfunc_over_pipeline": medians["pyfunc"] / whole,
                "environment_mib": mib,
                "environment_ratio": mib["slim"] / mib["recipes"],
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
