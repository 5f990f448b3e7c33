"""The gate before any model is loaded, and before any YAML is believed.

Loading a folder with transformers can run code from it (``auto_map``), fetch and run kernels from elsewhere
(``_attn_implementation`` naming a repository, CVE-2026-4372), load other repositories that a nested configuration
names, or unpickle weights. `check_model_directory` reads the folder's JSON itself, runs nothing, and refuses all of
these, so that a folder which passes holds data only. Loaders must still pass ``use_safetensors=True,
trust_remote_code=False, local_files_only=True``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import ConfigError, InputNotFound, ModelError, UnsafeModelError

__all__ = ["check_model_directory", "read_json", "safe_yaml"]

_MIB = 2**20
_CONFIG_LIMIT = 1 * _MIB
_VOCABULARY_LIMIT = 50 * _MIB
_SAFETENSORS_HEADER_LIMIT = 100_000_000  # the format's own limit
_YAML_LIMIT = 1 * _MIB
_YAML_DEPTH = 64

# Their keys are tokens or weights, not settings: any word may be one.
_VOCABULARIES = {"tokenizer.json", "vocab.json", "added_tokens.json"}
_TRANSFORMERS_READS = {"config.json", "special_tokens_map.json"}
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
# What a Trainer leaves beside the weights; nothing of ours opens them.
_TRAINER_LEFTOVERS = {
    "training_args.bin",
    "optimizer.pt",
    "scheduler.pt",
    "scaler.pt",
    "optimizer.bin",
    "scheduler.bin",
}
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_TOKENIZERS = (
    ("tokenizer.json",),
    ("vocab.txt",),
    ("vocab.json", "merges.txt"),
    ("spiece.model",),
    ("spm.model",),
    ("sentencepiece.bpe.model",),
    ("tokenizer.model",),
)
_CONVERT = (
    "Where you trust the file, convert it once: "
    "from safetensors.torch import save_model; from transformers import AutoModelForSequenceClassification as M; "
    "m = M.from_pretrained(folder); m.save_pretrained(new_folder, safe_serialization=True). Or, without transformers: "
    "import torch, safetensors.torch as s; "
    "s.save_file({k: v.clone().contiguous() for k, v in torch.load(file, weights_only=True).items()}, "
    "'model.safetensors', metadata={'format': 'pt'})."
)


def check_model_directory(
    directory: Path, *, root: Path | None = None, require_tokenizer: bool = True, require_weights: bool = True
) -> dict[str, Any]:
    """The folder's ``config.json``, when loading the folder runs no code and unpickles nothing.

    Args:
        directory: A folder as ``save_pretrained`` writes it.
        root: Where links may lead besides the folder itself; the hub's cache keeps files outside its snapshots.
        require_tokenizer: Refuse a folder with neither a tokenizer nor an image processor.
        require_weights: Refuse a folder without weights.

    Raises:
        InputNotFound: There is no such folder.
        UnsafeModelError: Loading it would run code, fetch code or unpickle data.
        ModelError: It isn't a whole model: no config, weights or tokenizer, or one of them is damaged.
    """
    directory = Path(directory)
    if not directory.exists():
        raise InputNotFound(f"There is no model folder {directory.absolute()}.")
    if not directory.is_dir():
        raise ModelError(f"{directory} is a file. Give the folder that holds config.json and model.safetensors.")
    _refuse_old_kernels()
    files = sorted(_walk(directory, root))
    names = {p.name for p in files if p.parent == directory}
    if "adapter_config.json" in names:
        raise ModelError(
            f"{directory} is a PEFT adapter, which needs another model. Merge it first: model.merge_and_unload(), then "
            "model.save_pretrained(new_folder), and give the new folder."
        )
    if "config.json" not in names:
        raise ModelError(_no_config(directory, files))
    if require_weights:
        _check_weights(directory, names)
    modules = {p.stem for p in files if p.suffix == ".py"}
    config: dict[str, Any] = {}
    for path in files:
        if path.suffix != ".json":
            continue
        content = _read_setting(path, directory)
        if path.name in _VOCABULARIES or path.name.endswith(".index.json"):
            continue
        _refuse_code(content, path.relative_to(directory).as_posix(), modules)
        if path == directory / "config.json":
            config = content
    _check_architecture(config)
    reads_images = "preprocessor_config.json" in names
    if require_tokenizer and not reads_images and not any(all(p in names for p in kind) for kind in _TOKENIZERS):
        looked_for = ", ".join(" with ".join(kind) for kind in _TOKENIZERS)
        raise ModelError(
            f"{directory} has no tokenizer (looked for {looked_for}). Save it there too: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(folder)."
        )
    return config


def _refuse_old_kernels() -> None:
    from importlib.metadata import PackageNotFoundError, version
    from importlib.util import find_spec

    try:
        numbers = tuple(int(n) for n in re.findall(r"\d+", version("transformers"))[:2])
    except PackageNotFoundError:
        return
    if numbers < (5, 3) and find_spec("kernels") is not None:
        raise UnsafeModelError(
            f"transformers {version('transformers')} beside the package kernels may run code named by a config "
            "(CVE-2026-4372). Install transformers>=5.3, or remove kernels."
        )


def _walk(directory: Path, root: Path | None) -> Iterator[Path]:
    """Files under a folder; links are followed only when they stay in it or in ``root``."""
    allowed = [directory.resolve(), *([root.resolve()] if root else [])]
    for folder, subfolders, names in os.walk(directory, followlinks=False):
        subfolders[:] = [s for s in subfolders if not s.startswith(".")]
        for name in (*subfolders, *names):
            path = Path(folder) / name
            if not path.is_symlink():
                continue
            target = path.resolve()
            if not any(target.is_relative_to(place) for place in allowed):
                raise UnsafeModelError(
                    f"{path} is a link to {target}, outside the model's folder. Replace it by the file itself."
                )
            if not target.exists():
                raise ModelError(f"{path} is a link to nothing ({target}). Download or copy the model again.")
        for name in names:
            path = Path(folder) / name
            if path.suffix in (".json", ".py") and not path.is_file():
                raise UnsafeModelError(f"{path} is not a regular file.")
            yield path


def _no_config(directory: Path, files: list[Path]) -> str:
    nested = sorted({p.parent.relative_to(directory).as_posix() for p in files if p.name == "config.json"})
    nested = [n for n in nested if (directory / n / "model.safetensors").exists()] or nested
    hint = f" Did you mean {directory / nested[-1]}?" if nested else " Give the folder that save_pretrained wrote."
    return f"{directory} has no config.json, so it is no model folder.{hint}"


def read_json(path: Path, *, limit: int = _CONFIG_LIMIT, unique: bool = True) -> Any:
    """The content of a JSON file of at most ``limit`` bytes.

    Raises:
        ModelError: It is larger, isn't JSON in UTF-8, or (with ``unique``) says one key twice.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if unique and len(result) < len(pairs):
            keys = [key for key, _ in pairs]
            raise ModelError(f"{path} says {next(k for k in keys if keys.count(k) > 1)!r} twice. Keep one.")
        return result

    try:
        size = path.stat().st_size
        if size > limit:
            raise ModelError(
                f"{path} has {size / _MIB:.1f} MiB; more than {limit // _MIB} is no ordinary file of its kind."
            )
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=once)
    except RecursionError as error:
        raise ModelError(f"{path} is nested too deeply to be a model's file.") from error
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error.strerror or error}.") from error
    except ValueError as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{path} is not JSON: {error}. Copy or download the model again.") from error


def _read_setting(path: Path, directory: Path) -> Any:
    known = path.parent == directory and (path.name in _TRANSFORMERS_READS or path.name.endswith("_config.json"))
    # data_config.json and trainer_state.json grow with training and are read by nobody here
    small = known and path.name != "data_config.json"
    vocabulary = path.name in _VOCABULARIES or path.name.endswith(".index.json")
    content = read_json(path, limit=_CONFIG_LIMIT if small else _VOCABULARY_LIMIT, unique=not vocabulary)
    if (small or path.name == "tokenizer.json") and not isinstance(content, dict):
        raise ModelError(f"{path} holds a {type(content).__name__}, not an object. Copy or download the model again.")
    return content


def _refuse_code(content: Any, where: str, modules: set[str], depth: int = 0) -> None:
    """Raises UnsafeModelError at the first setting that would run, fetch or unpickle something."""
    if isinstance(content, Mapping):
        if depth and "_name_or_path" in content and _is_strange_kind(content.get("model_type")):
            # LightGlue's way: a kind that transformers lacks is fetched from the repository it came from
            raise UnsafeModelError(
                f"{where} holds a configuration of the kind {content['model_type']!r} from "
                f"{content['_name_or_path']!r}, which transformers would fetch. Use a model of transformers' "
                "own architectures."
            )
        for key, value in content.items():
            if key in ("label2id", "id2label"):
                continue  # the names in them are the user's, whatever they are
            _refuse_setting(str(key), value, where)
            _refuse_code(value, where, modules, depth + 1)
    elif isinstance(content, list):
        for value in content:
            _refuse_code(value, where, modules, depth + 1)
    elif isinstance(content, str):
        module = re.split(r"[.\-]{1,2}(?=\w)", content.rsplit("/", 1)[-1], maxsplit=1)[0]
        if module in modules and re.fullmatch(r"(.*--)?[\w/]+(\.\w+)+", content):
            raise UnsafeModelError(
                f"{where} refers to {content!r}, code that lies in the model's folder ({module}.py). "
                "mlflow_slim runs no code from a model. Use a model of transformers' own architectures."
            )


def _refuse_setting(key: str, value: Any, where: str) -> None:
    why = None
    lowered = key.lower()
    if lowered in ("auto_map", "custom_pipelines", "model_file") and value not in (None, {}, [], ""):
        why = "names code to run"
    elif lowered == "trust_remote_code" and value not in (None, False):
        why = "asks to run code from elsewhere"
    elif lowered.lstrip("_").split("_implementation")[0] in ("attn", "experts", "attention") and (
        "_implementation" in lowered and any("/" in text or ":" in text for text in _strings(value))
    ):
        why = "names kernels to fetch and run"
    elif lowered in ("use_kernels", "kernel_config", "kernels") and value not in (None, False, {}, []):
        why = "asks for kernels from elsewhere"
    elif lowered == "transformers_weights" and not _is_plain_safetensors(value):
        why = "names a weights file that isn't safetensors in the folder"
    elif lowered in ("use_pretrained_backbone", "use_timm_backbone") and value not in (None, False):
        why = "asks for other weights from elsewhere"
    elif (lowered == "backbone" or lowered.endswith("_config")) and isinstance(value, str) and "/" in value:
        why = "names another model to load"
    if why:
        raise UnsafeModelError(
            f"{where} sets {key}={json.dumps(value)[:120]}, which {why}. mlflow_slim loads data only; remove the "
            "setting if the model is one of transformers' own architectures, else use another model."
        )


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _is_plain_safetensors(value: Any) -> bool:
    if value is None:
        return True
    plain = isinstance(value, str) and "/" not in value and "\\" not in value and not value.startswith(".")
    return plain and value.endswith((".safetensors", ".safetensors.index.json"))


def _check_architecture(config: Mapping[str, Any]) -> None:
    """The architecture and model type are of transformers' own."""
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(a, str) for a in architectures):
        raise ModelError(f"config.json has architectures={architectures!r}; it must be a list of class names.")
    import transformers

    known = set(dir(transformers))
    strange = [name for name in architectures if name not in known]
    if strange:
        raise UnsafeModelError(
            f"config.json names the architecture {strange[0]!r}, which transformers {transformers.__version__} lacks, "
            "so it would need code from elsewhere. Use one of transformers' own architectures, or a newer transformers."
        )
    kind = config.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise ModelError(
            "config.json has no model_type, so the model's kind isn't known. Save it again with transformers."
        )
    if _is_strange_kind(kind):
        raise UnsafeModelError(
            f"config.json has model_type={kind!r}, which transformers {transformers.__version__} lacks, so it would "
            "need code from elsewhere. Use one of transformers' own architectures, or a newer transformers."
        )


def _is_strange_kind(kind: Any) -> bool:
    """Whether a model type is named and isn't one of transformers' own."""
    if not isinstance(kind, str) or not kind:
        return False
    from transformers import CONFIG_MAPPING

    return kind not in CONFIG_MAPPING


def _check_weights(directory: Path, names: set[str]) -> None:
    """Weights are there, as safetensors, whole; pickles beside them are never opened."""
    if not any(name in names for name in _WEIGHTS):
        pickles = sorted(n for n in names if Path(n).suffix in _PICKLES and n not in _TRAINER_LEFTOVERS)
        pickles = [n for n in pickles if not n.startswith("rng_state")]
        if pickles:
            raise UnsafeModelError(
                f"{directory} has its weights only as a pickle ({', '.join(pickles[:3])}), which can run code when "
                f"it is opened. {_CONVERT}"
            )
        others = sorted(n for n in names if n.endswith((".safetensors", ".h5", ".msgpack", ".onnx", ".gguf")))
        found = f" It has {', '.join(others[:3])}, which transformers does not look for." if others else ""
        raise ModelError(f"{directory} has no weights (looked for {' or '.join(_WEIGHTS)}).{found}")
    if "model.safetensors" in names:
        _check_safetensors(directory / "model.safetensors")
        return
    index = read_json(directory / _WEIGHTS[1], limit=_VOCABULARY_LIMIT, unique=False)
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise ModelError(f"{directory / _WEIGHTS[1]} has no weight_map. Copy or download the model again.")
    for shard in sorted({str(s) for s in shards.values()}):
        if not _is_plain_safetensors(shard):
            raise UnsafeModelError(f"{_WEIGHTS[1]} names the shard {shard!r}, which isn't safetensors in the folder.")
        if shard not in names:
            raise ModelError(f"{directory} lacks {shard}, which {_WEIGHTS[1]} names. Copy or download the model again.")
        _check_safetensors(directory / shard)


def _check_safetensors(path: Path) -> None:
    """The header is whole and the file is as long as it says."""
    again = "Copy or download the model again."
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            if start == b"version ":
                raise ModelError(f"{path} is a Git LFS pointer, not the weights. Run: git lfs pull.")
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(_SAFETENSORS_HEADER_LIMIT, size - 8):
                raise ModelError(f"{path} is cut short or not safetensors ({size} bytes). {again}")
            header = json.loads(file.read(length).decode("utf-8"))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error.strerror or error}.") from error
    except ModelError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} has a damaged safetensors header. {again}") from error
    if size != expected:
        raise ModelError(
            f"{path} has {size} bytes, its header promises {expected}: it is cut short or damaged. {again}"
        )


def safe_yaml(text: str, *, where: str = "the recipe") -> Any:
    """The content of a YAML text: plain values only.

    Anchors and aliases are refused because a few hundred bytes of them grow to gigabytes when walked; a key said twice
    because one of the two would be dropped without a word.

    Args:
        text: At most 1 MiB.
        where: The text in words, for messages.

    Raises:
        ConfigError: Not so; says the line.

    >>> safe_yaml("steps: [{distill.logits: {alpha: 0.5}}]")
    {'steps': [{'distill.logits': {'alpha': 0.5}}]}
    """
    import yaml

    size = len(text.encode("utf-8", "surrogatepass"))
    if size > _YAML_LIMIT:
        raise ConfigError(f"{where} has {size / _MIB:.1f} MiB; the limit is 1 MiB. Keep data out of it.")

    class Loader(yaml.SafeLoader):
        """SafeLoader that wants every key once."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
            seen: set[str] = set()
            for key_node, _ in node.value:
                key = str(key_node.value)
                if key in seen:
                    line = key_node.start_mark.line + 1
                    raise ConfigError(f"{where}, line {line}: {key!r} is said twice. Keep one.")
                seen.add(key)
            return super().construct_mapping(node, deep=deep)

    try:
        depth = 0
        blocks = (yaml.BlockMappingStartToken, yaml.BlockSequenceStartToken)
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            # The scanner's time grows with the square of the depth: 20,000 brackets took it minutes.
            if isinstance(token, (yaml.FlowSequenceStartToken, yaml.FlowMappingStartToken, *blocks)):
                depth += 1
            elif isinstance(token, (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)):
                depth -= 1
            if depth > _YAML_DEPTH:
                raise ConfigError(f"{where}, line {token.start_mark.line + 1} is nested too deeply.")
            if isinstance(token, (yaml.AnchorToken, yaml.AliasToken)):
                mark = "&" if isinstance(token, yaml.AnchorToken) else "*"
                line = token.start_mark.line + 1
                raise ConfigError(
                    f"{where}, line {line}: {mark}{token.value} is an anchor or alias, which are not allowed. "
                    "Write the value out, or put it in quotes if it is text."
                )
        return yaml.load(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        position = error.problem_mark or error.context_mark
        at_line = f", line {position.line + 1}" if position else ""
        raise ConfigError(
            f"{where}{at_line} is not YAML that can be read: {error.problem or error.context}."
        ) from error
    except yaml.YAMLError as error:
        line_number = text.count("\n", 0, getattr(error, "position", 0)) + 1
        raise ConfigError(f"{where}, line {line_number} holds a character that YAML does not allow.") from error
    except RecursionError as error:
        raise ConfigError(f"{where} is nested too deeply.") from error
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{where} holds a value that can't be read: {error}.") from error
