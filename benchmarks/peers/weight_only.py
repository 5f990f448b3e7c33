"""Weights of a language model in 8 and 4 bits: ours on each runtime, what others offer, and llama.cpp, in one run.

    python benchmarks/peers/weight_only.py --model demo-llm --data demo [--gguf model.gguf] [--arms torch,ort-8,...]

One thread; every arm writes the same number of tokens after the same prompt, in turns, in a fresh random order each
round; ratios are to torch in float32 by rounds, with 95 % intervals. Perplexity is on test rows nothing was decided
on, and its change has a 90 % interval over rows. Prints one JSON object.

Arms of packages that aren't installed are left out and named: torchao, bitsandbytes, and xllamacpp for llama.cpp, whose
own clock of the decoding phase is taken. llama.cpp has no way here to score given texts, so its perplexity is missing:
its weights are the file's, and its products are int8 as onnxruntime's are here.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import logging
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_slim.catalog import load_backend, load_technique
from mlflow_slim.config import Recipe
from mlflow_slim.inputs import load_inputs
from mlflow_slim.interfaces import Context
from mlflow_slim.measurement.size import folder_size
from mlflow_slim.measurement.stats import ratio_interval
from mlflow_slim.runtime.decoders import TorchDecoder
from mlflow_slim.runtime.generation import TextGenerator

PROMPT = "Explain in a few sentences why the sky is blue during the day and red in the evening."
# backend and options of quantize.weight_only; None: as it is
OURS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "ort-float": ("onnxruntime", None),
    "ort-8": ("onnxruntime", {"bits": 8, "block_size": 64}),
    "ort-8-and-4": ("onnxruntime", {"bits": 4, "block_size": 32, "max_drop": 0.0125}),
    "ort-4": ("onnxruntime", {"bits": 4, "block_size": 32, "max_drop": 0.045}),
    "openvino-float": ("openvino", None),
    "openvino-8": ("openvino", {"bits": 8}),
    "openvino-4": ("openvino", {"bits": 4, "block_size": 64, "max_drop": None}),
}


def torchao_weights(model: Any) -> Any:
    """int8 weights, computed with as floats."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model, Int8WeightOnlyConfig())
    return model


def torchao_dynamic(model: Any) -> Any:
    """int8 weights, activations scaled as the model runs."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return model


def torch_dynamic(model: Any) -> Any:
    """The same by torch's own quantizer."""
    import torch

    return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)


def bitsandbytes_with(bits: int) -> Callable[[Any], Any]:
    """Linear layers but the head in bitsandbytes' 8 or 4 bits."""

    def change(model: Any) -> Any:
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        eight = bits == 8
        config = BitsAndBytesConfig(
            load_in_8bit=eight, load_in_4bit=not eight, **({} if eight else {"bnb_4bit_quant_type": "nf4"})
        )
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, device_map="cpu").eval()

    return change


OTHERS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "torch.ao-dynamic-8": ("torch", torch_dynamic),
    "torchao-8": ("torchao", torchao_weights),
    "torchao-dynamic-8": ("torchao", torchao_dynamic),
    "bitsandbytes-8": ("bitsandbytes", bitsandbytes_with(8)),
    "bitsandbytes-nf4": ("bitsandbytes", bitsandbytes_with(4)),
}


def decoding(model: Any, tokens: int) -> Callable[[], float]:
    """A call that gives seconds a token after the first."""
    (ids,) = model.encode([(PROMPT, "")])["input_ids"]

    def call() -> float:
        stamps = []
        start = time.perf_counter()
        for _ in model.tokens(ids):
            stamps.append(time.perf_counter() - start)
            if len(stamps) == tokens:
                break
        return (stamps[-1] - stamps[0]) / (len(stamps) - 1)

    return call


def llama(path: Path, tokens: int) -> Callable[[], float]:
    """The same of llama.cpp, by its own clock of the decoding phase."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup = 512, 1, True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.verbosity = -1
    server = xllamacpp.Server(params)

    def call() -> float:
        asked = {
            "messages": [{"role": "user", "content": PROMPT}],
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
        }
        found = server.handle_chat_completions(asked)
        answer = json.loads(found) if isinstance(found, (str, bytes)) else found
        timings = answer["timings"]
        assert timings["predicted_n"] == tokens, timings
        return float(timings["predicted_ms"]) / 1e3 / (tokens - 1)

    return call


def arms(asked: argparse.Namespace, work: Path, left_out: dict[str, str]) -> Iterator[tuple[str, Any, float, Any]]:
    """Name, loaded model, MiB on disk (0: as large as the float one) and notes of every arm, torch in float32 first."""
    recipe = Recipe.load(
        {
            "model": asked.model,
            "data": asked.data,
            "label": None,
            "task": "text-generation",
            "generate": {"max_new_tokens": asked.tokens, "eval_rows": asked.rows},
        }
    )
    inputs = load_inputs(recipe, work, Path)
    source, rows = inputs.source, inputs.data.validation.inputs[:4]
    assert source is not None
    wanted = asked.arms.split(",") if asked.arms else [*OURS, *OTHERS]
    original: Any = load_backend("torch")
    folder = original.export(source, work / "torch", rows).directory
    yield "torch", (original.load(folder, threads=1), inputs), folder_size(folder).disk_mib, {}
    for name in wanted:
        if name in OURS:
            backend_name, options = OURS[name]
            backend: Any = load_backend(backend_name)
            if reason := backend.is_available():
                left_out[name] = reason
                continue
            made, notes = source, {}
            if options is not None:
                (work / f"{name}-search").mkdir()
                context = Context(
                    task=inputs.task,
                    data=inputs.data,
                    seed=0,
                    threads=1,
                    device="cpu",
                    workdir=work / f"{name}-search",
                    load_model=lambda _: source,
                    report=lambda *_: None,
                    backends={backend_name: backend},
                )
                made = load_technique("quantize.weight_only")(**options).apply(source, context)
                notes = dict(made.lineage[-1].notes)
            folder = backend.export(made, work / name, rows).directory
            yield name, backend.load(folder, threads=1), folder_size(folder).disk_mib, {"options": options, **notes}
        elif importlib.util.find_spec(OTHERS[name][0]) is None:
            left_out[name] = f"{OTHERS[name][0]} is not installed"
        else:
            model = OTHERS[name][1](copy.deepcopy(source.model))
            plain = original.load(work / "torch", threads=1)
            yield name, TextGenerator(plain.bundle, plain._prompts, TorchDecoder(model, threads=1), 1), 0.0, {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo-llm")
    parser.add_argument("--data", default="demo")
    parser.add_argument("--gguf", type=Path, help="the same model as llama.cpp reads it")
    parser.add_argument("--arms", help="which of ours and of others, with commas; default: all")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rows", type=int, default=200, help="validation and test rows")
    parser.add_argument("--rounds", type=int, default=12)
    asked = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("mlflow_slim").setLevel(logging.INFO)
    left_out: dict[str, str] = {}
    figures: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[], float]] = {}
    with tempfile.TemporaryDirectory(prefix="weight-only-") as folder:
        baseline: Any = None
        for name, model, mib, notes in arms(asked, Path(folder), left_out):
            if name == "torch":
                model, inputs = model
            test, spec = inputs.data.test, inputs.source.spec
            outputs = model.scores(test.inputs)
            baseline = outputs if baseline is None else baseline
            change = inputs.task.difference("log_likelihood", baseline, outputs, test.references, spec, seed=0)
            rise = [round(100 * float(np.expm1(-end)), 2) for end in (change.value, change.hi, change.lo)]
            figures[name] = {
                "perplexity": round(inputs.task.quality(outputs, test.references, spec)["perplexity"], 3),
                "perplexity_rise_percent": rise,
                "agreement": round(inputs.task.agreement(baseline, outputs, spec), 4),
                "mib": round(mib, 1) or None,
                "smaller": round(figures.get("torch", {"mib": mib})["mib"] / mib, 2) if mib else None,
                "notes": notes,
            }
            calls[name] = decoding(model, asked.tokens)
            print(f"{name}: {json.dumps(figures[name])}", flush=True)
        if asked.gguf is not None:
            if importlib.util.find_spec("xllamacpp") is None:
                left_out["llama.cpp"] = "xllamacpp is not installed"
            else:
                calls["llama.cpp"] = llama(asked.gguf, asked.tokens)
                figures["llama.cpp"] = {"mib": round(asked.gguf.stat().st_size / 2**20, 1)}
        for call in calls.values():
            call()
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        order = random.Random(0)
        for _ in range(asked.rounds):
            for name in order.sample(list(calls), len(calls)):
                seconds[name].append(calls[name]())
        for name, taken in seconds.items():
            ratio = ratio_interval(np.array(seconds["torch"]), np.array(taken))
            figures[name] |= {
                "tokens_per_s": round(1 / statistics.median(taken), 2),
                "decode_speedup": [round(value, 3) for value in (ratio.value, ratio.lo, ratio.hi)],
            }
    machine = platform.processor() or platform.machine()
    print(json.dumps({"machine": machine, "threads": 1, "arms": figures, "left_out": left_out}, indent=1, default=str))


if __name__ == "__main__":
    main()
