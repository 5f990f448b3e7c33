"""How our exported language models stand against llama.cpp on the same weights: tokens a second, one thread, in turns.

    python benchmarks/peers/llama.py --gguf model.gguf --ours <exported folder> [<exported folder> ...]

llama.cpp comes from the package xllamacpp (pip install xllamacpp). Every arm writes the same number of tokens to the
same prompt, in a fresh random order each round; the first folder is the original that ratios are taken to. Prints one
JSON object. llama.cpp has no way here to score given texts, so its perplexity is not in it: its weights are the file's,
and its products are int8 as ours are.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_slim import bundle
from mlflow_slim.catalog import load_backend
from mlflow_slim.measurement.stats import ratio_interval

PROMPT = "Explain in a few sentences why the sky is blue during the day and red in the evening."


def ours(folder: Path, tokens: int) -> Callable[[], float]:
    """A call that gives seconds a token after the first."""
    exported = bundle.read(folder)
    model: Any = load_backend(exported.backend).load(folder, threads=1)
    batch = model.encode([(PROMPT, "")])

    def call() -> float:
        stamps = []
        start = time.perf_counter()
        for _ in model.tokens(batch["input_ids"][0]):
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--ours", type=Path, nargs="+", required=True)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=12)
    asked = parser.parse_args()
    arms = {folder.name: ours(folder, asked.tokens) for folder in asked.ours}
    original = next(iter(arms))
    arms["llama.cpp"] = llama(asked.gguf, asked.tokens)
    for call in arms.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    order = random.Random(0)
    for _ in range(asked.rounds):
        for name in order.sample(list(arms), len(arms)):
            seconds[name].append(arms[name]())
    figures = {}
    for name, taken in seconds.items():
        ratio = ratio_interval(np.array(seconds[original]), np.array(taken))
        figures[name] = {
            "tokens_per_s": round(1 / statistics.median(taken), 2),
            "speedup": [round(value, 3) for value in (ratio.value, ratio.lo, ratio.hi)],
        }
    print(json.dumps({"machine": platform.processor() or platform.machine(), "threads": 1, "arms": figures}, indent=1))


if __name__ == "__main__":
    main()
