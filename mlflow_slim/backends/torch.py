"""Backend ``torch``: the folder that transformers itself reads, run by torch.

The weights are safetensors and the folder loads with ``from_pretrained`` as it stands, unless it has shapes that
transformers' configuration can't express (a layer with fewer heads): those are written beside it for our own loader.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import bundle
from ..artifact import ExportedModel, OptimizedModel
from ..errors import ConfigError, ExportError, IntegrityError, ModelError
from ..interfaces import Kind, Scheme
from ..runtime import BundleError, Predictor, TextGenerator, tasks
from ..runtime import load as load_bundle
from ..runtime.bundle import read_bundle
from ..runtime.narrowed import KEY
from ..runtime.prompts import shown
from ..runtime.torch_engine import TorchEngine, load_model, quiet_transformers, torch_encoder
from ..structure import narrowed_shapes

__all__ = ["BACKEND", "TorchBackend"]

# Reloaded weights are the same bits; what remains is another attention kernel's order of summation.
_TOLERANCE = {"float64": 1e-4, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}


def _complete(config: Path, source: OptimizedModel) -> None:
    """Puts the task's labels, for transformers' own pipeline, and narrowed shapes into ``config.json``."""
    content = json.loads(config.read_text(encoding="utf-8"))
    if content.get("auto_map"):
        raise ModelError(
            f"{source.source or 'The model'} needs code of its own (auto_map); only transformers' are exported."
        )
    content.pop("_name_or_path", None)
    if "labels" in source.spec:
        _put_labels(content, [str(label) for label in source.spec["labels"]], source.spec)
    content.pop(KEY, None)  # of the model this one was made from
    if shapes := narrowed_shapes(source.model):
        content[KEY] = shapes
    config.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _put_labels(content: dict[str, Any], labels: Sequence[str], spec: Mapping[str, Any]) -> None:
    content["id2label"] = {str(index): label for index, label in enumerate(labels)}
    content["label2id"] = {label: index for index, label in enumerate(labels)}
    if "multi_label" not in spec:
        return
    if spec.get("multi_label"):
        content["problem_type"] = "multi_label_classification"
    elif content.get("problem_type") != "single_label_classification":
        content["problem_type"] = "single_label_classification" if len(labels) > 1 else None


class TorchBackend:
    """Writes and runs transformers' own format."""

    name = "torch"
    kinds: tuple[Kind, ...] = ("dynamic",)

    def is_available(self) -> str | None:
        """None when torch and transformers are installed, else what to install."""
        missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
        if missing:
            return f"Backend 'torch' needs {', '.join(missing)}. Install it with: pip install mlflow_slim"
        return None

    def export(self, source: OptimizedModel, directory: Path, sample: Sequence[Any]) -> ExportedModel:
        """Writes ``source`` into ``directory`` as safetensors and tokenizer, loads it again and compares.

        Args:
            source: The model; it is left as it is.
            directory: Made here; must not exist.
            sample: A few real inputs.

        Raises:
            ExportError: The folder exists or can't be written, or what was loaded answers differently.
            ModelError: There is no fast tokenizer or no padding token, or the model needs code of its own.
        """
        import torch

        if source.builds:
            return bundle.adopt(source, directory, backend=self.name)
        task = tasks.find(source.task)
        if task.KIND == "generator":  # the weights are looked at here, and any text will do for it
            sample = [(shown(prompt), text) for prompt, text in sample]
        dtype = str(source.model.dtype).removeprefix("torch.")
        threads = torch.get_num_threads()
        max_length = source.spec.get("max_length")
        bundle.check_labels(source)
        with bundle.staged(Path(directory)) as work:
            with quiet_transformers():
                source.model.save_pretrained(str(work))
            inputs = bundle.save_processor(source, work, sample, whole=True)
            _complete(work / "config.json", source)
            encode = torch_encoder(work, inputs, source.spec)
            try:
                reloaded = load_model(work, task.LIBRARY_CLASS).to(source.model.device).eval()
            except (ValueError, RuntimeError) as error:
                raise ExportError(
                    f"transformers can't load what it saved of {type(source.model).__name__}: {error}. "
                    "Its configuration has no words for this shape; export to onnxruntime instead."
                ) from error
            found = TorchEngine(reloaded, outputs=task.OUTPUTS, threads=threads)
            with bundle.evaluating(source.model):
                expected = TorchEngine(source.model, outputs=task.OUTPUTS, threads=threads)
                difference = bundle.compare(
                    lambda texts: expected.forward(encode(texts)),
                    lambda texts: found.forward(encode(texts)),
                    sample,
                    max_length=max_length,
                    tolerance=_TOLERANCE.get(dtype, 5e-2),
                    what="The saved model",
                )
            notes = {"dtype": dtype, "max_abs_diff": difference, "torch": torch.__version__}
            bundle.write(source, work, backend=self.name, inputs=inputs, notes=notes)
        return bundle.read(directory, verify=False)

    def quantizable(self, exported: ExportedModel, source: OptimizedModel, kind: Kind) -> list[str]:  # noqa: ARG002
        """Names of the linear modules of ``source.model``; embeddings stay float here."""
        import torch

        return [name for name, module in source.model.named_modules() if isinstance(module, torch.nn.Linear)]

    def quantize(
        self,
        exported: ExportedModel,
        source: OptimizedModel,
        directory: Path,
        scheme: Scheme,
        rows: Sequence[Any],  # noqa: ARG002
    ) -> None:
        """Writes a copy of ``exported`` whose weights become int8 when it is loaded: they stay float on disk.

        Raises:
            ConfigError: torchao is asked for and missing.
            ExportError: The folder exists or can't be written.
        """
        if scheme.engine == "torchao" and importlib.util.find_spec("torchao") is None:
            raise ConfigError("engine 'torchao' needs torchao. Install it: pip install torchao; or write torch.ao.")
        content = read_bundle(exported.directory).content
        modules = [n for n in self.quantizable(exported, source, scheme.kind) if n not in scheme.keep_float]
        with bundle.staged(Path(directory)) as work:
            shutil.copytree(exported.directory, work, dirs_exist_ok=True)
            notes = {**content["notes"], "quantized": {**asdict(scheme), "keep_float": sorted(scheme.keep_float)}}
            engine = {"int8": {"engine": scheme.engine, "modules": modules}}
            bundle.write(source, work, backend=self.name, inputs=content["inputs"], notes=notes, engine=engine)

    def load(self, directory: Path, *, threads: int, device: str = "cpu") -> Predictor | TextGenerator:
        """A predictor over an exported folder, after comparing it with its manifest.

        Args:
            directory: The folder.
            threads: Threads of torch, >= 1.
            device: ``cpu`` or ``cuda``.

        Raises:
            IntegrityError: The folder is not what its manifest says, or can't be opened.
        """
        try:
            return load_bundle(directory, threads=threads, device=device)
        except BundleError as error:
            raise IntegrityError(str(error)) from error


BACKEND = TorchBackend()
