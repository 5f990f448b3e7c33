"""Our int8 against peers': one fine-tuned model, the same rows, one thread each, every peer in its own environment.

Usage: python benchmarks/peers/run.py MODEL [--envs FOLDER] [--rounds 40] [--only ours,torch_ao]

MODEL is a folder that transformers reads (the output of a recipe's torch point). Each peer is a process that loads its
model once and answers on a pipe; the driver asks one at a time, in random order within a round, so that all of them
meet the same minutes. Timed is the forward pass from token ids, without tokenizing, in the peer's own process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PEERS = {
    "fp32": "torch float32, the original",
    "ours": "mlflow_slim quantize.dynamic on onnxruntime",
    "ours_openvino": "mlflow_slim quantize.static on openvino",
    "torch_ao": "torch.ao.quantization.quantize_dynamic",
    "nncf": "nncf.quantize on OpenVINO",
    "optimum_onnx": "optimum-onnx ORTQuantizer, avx2, dynamic, per channel",
}
LENGTHS = (16, 64)


def python_of(peer: str, envs: Path) -> str:
    """The peer's interpreter: this one, unless it has a requirements file of its own."""
    requirements = HERE / f"{peer}.txt"
    if not requirements.exists():
        return sys.executable
    folder = envs / peer
    interpreter = folder / "bin" / "python"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([str(interpreter), "-m", "pip", "install", "-q", "-r", str(requirements)], check=True)
        (folder / "ready").touch()
    return str(interpreter)


class Peer:
    """A worker process."""

    def __init__(self, name: str, interpreter: str, model: Path, work: Path) -> None:
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [interpreter, str(HERE / "worker.py"), name, str(model), str(work)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ)

    def ask(self, **question: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("ANSWER "):
                return json.loads(line.removeprefix("ANSWER "))
        raise RuntimeError(f"a worker ended with {self.process.wait()}")


def interval(ratios: list[float], seed: int = 0) -> list[float]:
    """95 % bootstrap interval of the median."""
    rnd = random.Random(seed)
    medians = sorted(statistics.median(rnd.choices(ratios, k=len(ratios))) for _ in range(2000))
    return [round(medians[50], 3), round(medians[1949], 3)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--envs", type=Path, default=Path.home() / ".cache" / "mlflow_slim" / "peers")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--only", default=",".join(PEERS))
    options = parser.parse_args()
    names = ["fp32", *(name for name in options.only.split(",") if name != "fp32")]
    from mlflow_slim.config import Recipe
    from mlflow_slim.inputs import load_inputs
    from mlflow_slim.measurement.host import host

    recipe = Recipe.load("quantize", {"model": str(options.model)})
    with tempfile.TemporaryDirectory() as folder:
        data = load_inputs(recipe, Path(folder), lambda _: Path()).data
        rows = {"validation": list(data.validation.inputs), "test": list(data.test.inputs)}
        Path(folder, "rows.json").write_text(json.dumps(rows))
        Path(folder, "labels.json").write_text(json.dumps(data.validation.references.tolist()))
        peers = {}
        for name in names:
            work = Path(folder) / name
            work.mkdir()
            peers[name] = Peer(name, python_of(name, options.envs), options.model.absolute(), work)
            print(name, peers[name].ask(do="ready"), file=sys.stderr)
        found: dict[str, Any] = {}
        answers = {name: peer.ask(do="labels") for name, peer in peers.items()}
        for name, peer in peers.items():
            right = [a == b for a, b in zip(answers[name], data.test.references.tolist(), strict=True)]
            same = [a == b for a, b in zip(answers[name], answers["fp32"], strict=True)]
            found[name] = {
                "what": PEERS[name],
                "accuracy": round(statistics.mean(right), 4),
                "agreement": round(statistics.mean(same), 4),
                "mib": peer.ask(do="size"),
                "versions": peer.ask(do="versions"),
            }
        rnd = random.Random(0)
        for length in LENGTHS:
            for peer in peers.values():
                peer.ask(do="time", length=length, count=40)
            times: dict[str, list[float]] = {name: [] for name in peers}
            for _ in range(options.rounds):
                for name in rnd.sample(list(peers), len(peers)):
                    times[name].append(peers[name].ask(do="time", length=length, count=10))
            for name in peers:
                ratios = [a / b for a, b in zip(times["fp32"], times[name], strict=True)]
                found[name][f"ms_at_{length}"] = round(1e3 * statistics.median(times[name]), 3)
                found[name][f"speedup_at_{length}"] = round(statistics.median(ratios), 3)
                found[name][f"speedup_at_{length}_95"] = interval(ratios)
        for peer in peers.values():
            peer.process.kill()
            peer.process.wait()
    print(json.dumps({"host": host().to_dict(), "rounds": options.rounds, "peers": found}, indent=1))


if __name__ == "__main__":
    main()
