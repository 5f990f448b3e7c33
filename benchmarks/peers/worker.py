"""One peer: loads the model in its own way and answers the driver's questions, one JSON line each. See run.py."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

NAME, MODEL, WORK = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
ROWS = json.loads((WORK.parent / "rows.json").read_text())
Forward = Callable[[dict[str, np.ndarray]], np.ndarray]
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def size_of(*paths: Path) -> float:
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    return round(sum(file.stat().st_size for file in files) / 2**20, 2)


def torch_forward(model: Any) -> Forward:
    import torch

    torch.set_num_threads(1)

    def forward(batch: dict[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            logits: np.ndarray = model(**{k: torch.from_numpy(v) for k, v in batch.items()}).logits.numpy()
            return logits

    return forward


def load_torch() -> Any:
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(str(MODEL)).eval()


def fp32() -> tuple[Forward, float]:
    return torch_forward(load_torch()), size_of(MODEL)


def torch_ao() -> tuple[Forward, float]:
    import torch
    from torch.ao.quantization import quantize_dynamic

    model = quantize_dynamic(load_torch(), {torch.nn.Linear}, dtype=torch.qint8)
    torch.save(model.state_dict(), WORK / "weights")
    return torch_forward(model), size_of(WORK)


def onnx_session(path: Path) -> Forward:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = {item.name for item in session.get_inputs()}

    def forward(batch: dict[str, np.ndarray]) -> np.ndarray:
        return np.asarray(session.run(None, {k: v for k, v in batch.items() if k in names})[0])

    return forward


def ours() -> tuple[Forward, float]:
    return recipe_step("quantize.dynamic", "onnxruntime")


def ours_openvino() -> tuple[Forward, float]:
    return recipe_step("quantize.static", "openvino")


def recipe_step(technique: str, runtime: str) -> tuple[Forward, float]:
    from mlflow_slim.catalog import load_backend, load_technique
    from mlflow_slim.config import Recipe
    from mlflow_slim.inputs import load_inputs
    from mlflow_slim.interfaces import Context

    recipe = Recipe.load("quantize", {"model": str(MODEL)})
    inputs = load_inputs(recipe, WORK, lambda _: WORK)
    backend = load_backend(runtime)
    context = Context(
        task=inputs.task, data=inputs.data, seed=0, threads=1, device="cpu", workdir=WORK / "steps",
        load_model=lambda _: inputs.source, report=lambda *_: None, backends={runtime: backend},
    )  # fmt: skip
    assert inputs.source is not None
    outcome = load_technique(technique)().apply(inputs.source, context)
    exported = backend.export(outcome, WORK / "out", ROWS["validation"][:32])
    predictor = backend.load(exported.directory, threads=1)
    return predictor.forward, size_of(WORK / "out")


def nncf() -> tuple[Forward, float]:
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # nncf sends what it does otherwise
    import nncf as library
    import openvino
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(MODEL))
    example = dict(tokenizer(ROWS["validation"][:2], padding=True, return_tensors="pt"))
    model = openvino.convert_model(load_torch(), example_input=example)
    rows = [dict(tokenizer([text], truncation=True, return_tensors="np")) for text in ROWS["validation"][:300]]
    quantized = library.quantize(model, library.Dataset(rows), model_type=library.ModelType.TRANSFORMER)
    openvino.save_model(quantized, str(WORK / "model.xml"))
    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": "1", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(quantized, "CPU", settings)
    return lambda batch: np.array(compiled(batch)[0]), size_of(WORK)


def optimum_onnx() -> tuple[Forward, float]:
    from optimum.onnxruntime import ORTModelForSequenceClassification, ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    ORTModelForSequenceClassification.from_pretrained(str(MODEL), export=True).save_pretrained(str(WORK / "float"))
    quantizer = ORTQuantizer.from_pretrained(str(WORK / "float"))
    config = AutoQuantizationConfig.avx2(is_static=False, per_channel=True)
    quantizer.quantize(save_dir=str(WORK / "int8"), quantization_config=config)
    return onnx_session(WORK / "int8" / "model_quantized.onnx"), size_of(WORK / "int8")


def encode(texts: list[str]) -> dict[str, np.ndarray]:
    encoded = TOKENIZER(texts, padding=True, truncation=True, max_length=128, return_tensors="np")
    return {name: np.asarray(encoded[name], dtype=np.int64) for name in INPUTS if name in encoded}


def of_length(length: int) -> dict[str, np.ndarray]:
    """Real text of exactly so many tokens: rows put together and cut."""
    batch = encode([" ".join(ROWS["test"][:40])])
    cut = {name: array[:, :length].copy() for name, array in batch.items()}
    cut["input_ids"][0, -1] = TOKENIZER.sep_token_id
    return cut


def labels() -> list[int]:
    found: list[int] = []
    for start in range(0, len(ROWS["test"]), 32):
        found += FORWARD(encode(ROWS["test"][start : start + 32])).argmax(-1).tolist()
    return found


def seconds(length: int, count: int) -> float:
    batch = of_length(length)
    taken = []
    for _ in range(count):
        start = time.perf_counter()
        FORWARD(batch)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def versions() -> dict[str, str]:
    found = {}
    for name in ("torch", "transformers", "onnxruntime", "optimum-onnx", "openvino", "nncf"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    from transformers import AutoTokenizer

    TOKENIZER = AutoTokenizer.from_pretrained(str(MODEL))
    (WORK / "steps").mkdir()
    FORWARD, SIZE = globals()[NAME]()
    for line in sys.stdin:
        question = json.loads(line)
        answer: Any = {
            "ready": lambda _: True,
            "labels": lambda _: labels(),
            "size": lambda _: SIZE,
            "versions": lambda _: versions(),
            "time": lambda asked: seconds(asked["length"], asked["count"]),
        }[question["do"]](question)
        print("ANSWER " + json.dumps(answer), flush=True)
