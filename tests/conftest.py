"""No test may use the network; tiny models, a real MLflow store and real child processes for those that want them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]

# Before any test module imports a library that reads them once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_EVALUATE_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["DO_NOT_TRACK"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("MPLBACKEND", "Agg")

_LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than cores: tests wait for child processes, locks and the disk."""
    return (os.cpu_count() or 1) + 1


class NetworkBlocked(OSError):
    """A test tried to leave this machine."""


def _is_local(sock: socket.socket, address: Any) -> bool:
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return True
    return isinstance(address, tuple) and str(address[0]).startswith(_LOOPBACK)


@pytest.fixture(autouse=True, scope="session")
def no_step_cache() -> Iterator[None]:
    """Every test does its steps itself; those of the cache name a folder of their own."""
    before = os.environ.get("MLFLOW_SLIM_CACHE")
    os.environ["MLFLOW_SLIM_CACHE"] = "off"
    yield
    os.environ.pop("MLFLOW_SLIM_CACHE")
    if before is not None:
        os.environ["MLFLOW_SLIM_CACHE"] = before


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Every connection that isn't to this machine, and every name that isn't its own, raises `NetworkBlocked`."""
    connect, connect_ex, getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def guarded(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: socket.socket, address: Any) -> Any:
            if not _is_local(self, address):
                raise NetworkBlocked(f"tests must not use the network: {address}")
            return method(self, address)

        return call

    def look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name and not name.startswith(_LOOPBACK) and name not in (socket.gethostname(), "::"):
            raise NetworkBlocked(f"tests must not use the network: {name}")
        return getaddrinfo(host, *args, **kwargs)

    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", guarded(connect))
    patch.setattr(socket.socket, "connect_ex", guarded(connect_ex))
    patch.setattr(socket, "getaddrinfo", look_up)
    yield
    patch.undo()


# A shell's background job starts with Ctrl-C ignored, and its children inherit that: tests of Ctrl-C need it heard.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


VOCABULARY = (  # noqa: SIM905
    "[PAD] [UNK] [CLS] [SEP] [MASK] . , ! ? - ' a b c d e f g h i j k l m n o p q r s t u v w x y z 0 1 2 3 4 5 6 7 8 "
    "9 ##a ##b ##c ##d ##e ##f ##g ##h ##i ##j ##k ##l ##m ##n ##o ##p ##q ##r ##s ##t ##u ##v ##w ##x ##y ##z "
    "the and is was this that it not very good bad great awful film book food movie story plot nice poor love hate "
    "animal plant person place red green blue small big fast slow one two three ##ing ##ed ##ly ##er ##s"
).split()


def make_tokenizer(vocabulary: Sequence[str] = VOCABULARY) -> Any:
    """A fast WordPiece tokenizer as BERT's, over a vocabulary of our own."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {token: i for i, token in enumerate(dict.fromkeys(vocabulary))}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=128,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def save_tiny_classifier(
    directory: Path,
    labels: Sequence[str] = ("negative", "positive"),
    *,
    head: str = "SequenceClassification",
    **config: Any,
) -> Path:
    """A two-layer BERT of width 32 with random weights and a head for ``labels``, saved as a user would have it."""
    import torch
    import transformers
    from transformers import BertConfig

    tokenizer = make_tokenizer()
    options = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
        "id2label": dict(enumerate(labels)),
        "label2id": {name: i for i, name in enumerate(labels)},
        **config,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"BertFor{head}")(BertConfig(**options)).eval()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def make_tiny_classifier(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Called with labels (and BertConfig options), gives a new folder with a tiny BERT for sequence classification."""

    def make(labels: Sequence[str] = ("negative", "positive"), **config: Any) -> Path:
        return save_tiny_classifier(tmp_path_factory.mktemp("tiny") / "model", labels, **config)

    return make


@pytest.fixture(scope="session")
def tiny_classifier_dir(make_tiny_classifier: Callable[..., Path]) -> Path:
    """A tiny BERT for two labels, negative and positive. Shared by all tests: copy it before changing anything."""
    return make_tiny_classifier()


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sqlite file with MLflow's tables: making them takes seconds, copying them nothing."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A store of the test's own, with an experiment; MLflow's defaults point to it."""
    import mlflow
    from tracking_store import Store

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient(uri)
    experiment_id = client.create_experiment("mlflow_slim", artifact_location=(tmp_path / "artifacts").as_uri())
    yield Store(uri, experiment_id, tmp_path, client)
    mlflow.set_tracking_uri("")


@pytest.fixture
def start_child(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts Python code in a process of its own, in its own session; those that still run are ended."""
    started = []

    def start(code: str, **environ: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true", **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def step_context(task: Any, data: Any, workdir: Path, source: Any, **changes: Any) -> Any:
    """What a step gets, on one thread of the CPU; any model that it asks for is ``source``."""
    from mlflow_slim.interfaces import Context

    options = {
        "task": task,
        "data": data,
        "seed": 0,
        "threads": 1,
        "device": "cpu",
        "workdir": workdir,
        "load_model": lambda _: source,
        "report": lambda *_: None,
        "original": source,
    }
    return Context(**{**options, **changes})


def make_language_model(folder: Path, kind: str = "llama", *, chat: bool = True, seed: int = 0, **changes: Any) -> Path:
    """A tiny decoder with random weights and a byte-level tokenizer of its own, saved as transformers does."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    texts = ["the quick brown fox jumps over the lazy dog and then runs home", "what is the name of the river"] * 5
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=340,
            special_tokens=["<|end|>", "<|user|>", "<|assistant|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    upstream: Any = transformers.PreTrainedTokenizerFast
    processor = upstream(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    if chat:
        processor.chat_template = (
            "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>{% endif %}"
        )
    ends = {"eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 0}
    if kind == "gpt2":
        config: Any = transformers.GPT2Config(
            vocab_size=len(processor), n_embd=64, n_layer=2, n_head=4, n_positions=256, **ends
        )
    else:
        classes = {
            "llama": transformers.LlamaConfig,
            "qwen2": transformers.Qwen2Config,
            "mistral": transformers.MistralConfig,
            "gemma": transformers.GemmaConfig,
        }
        shape = {
            "vocab_size": len(processor),
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "intermediate_size": 128,
            "max_position_embeddings": 256,
            "tie_word_embeddings": kind != "mistral",
        }
        config = classes[kind](**{**shape, **ends, **changes})
    torch.manual_seed(seed)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(str(folder))
    processor.save_pretrained(str(folder))
    return folder
