"""Backend ``onnxruntime``: the model as one ONNX graph with free batch and length, run by onnxruntime.

The graph comes from torch.onnx's exporter (opset 18). Where the architecture is one of the BERT family,
onnxruntime's transformer optimizer then fuses its parts (GELU with bias, layer norm with skip). A fused graph
that answers differently is dropped for the plain one, with a note; a plain one that does is an error.

Half-precision weights are widened to float32, because onnxruntime's CPU kernels for them are few and slow.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .. import bundle
from ..artifact import ExportedModel, OptimizedModel
from ..catalog import load_task
from ..decoder_export import export_decoder
from ..decoder_graph import write_onnx
from ..decoder_quantization import block_for, linear_nodes, quantize_decoder
from ..errors import ConfigError, ExportError, IntegrityError, first_line
from ..gptq import Codes, input_moments, solve
from ..graph_export import Traceable, export_graph
from ..interfaces import Kind, Scheme
from ..onnx_quantization import quantize_graph, weighted_nodes
from ..runtime import BundleError, Predictor, TextGenerator, tasks
from ..runtime import load as load_bundle
from ..runtime.bundle import read_bundle
from ..runtime.decoders import OnnxDecoder
from ..runtime.inputs import TOKENIZER, open_encoder
from ..runtime.onnx_engine import MODEL, OnnxEngine

__all__ = ["BACKEND", "OnnxRuntimeBackend"]

logger = logging.getLogger(__name__)

_OPSET = 18
_FUSED_AS_BERT = frozenset(
    ("albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta")
)
# protobuf ends at 2 GiB; beyond this the weights go into a file beside the graph
_ONE_FILE_BYTES = 1_800_000_000
# onnxruntime's fusions log under their bare file names
_NOISY = (
    "torch.onnx",
    "torch.export",
    "torch._dynamo",
    "onnxscript",
    "onnx_ir",
    "onnxruntime.transformers",
    "fusion_",
    "onnx_model",
)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Warnings of the exporter's own insides off, and its loggers at ERROR, inside only.

    onnxruntime's quantizer logs through the root logger's functions, which give a root without a handler one that
    stays, and from then on every line of ours would come twice.
    """
    import onnxruntime.transformers.optimizer  # noqa: F401  (so that its loggers are there to be found)

    names = [name for name in list(logging.root.manager.loggerDict) if name.startswith(_NOISY)]
    levels = {name: logging.getLogger(name).level for name in {*names, *_NOISY}}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    nothing = logging.NullHandler()
    logging.root.addHandler(nothing)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # its calibrator prints
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.root.removeHandler(nothing)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _trace(ready: Traceable, target: Path) -> None:
    """Writes the plain graph of a model to ``target``."""
    import torch

    of_texts, of_images = {0: "batch", 1: "sequence"}, {0: "batch"}
    program: Any = torch.onnx.export(
        ready.module,
        ready.tensors,
        dynamo=True,
        opset_version=_OPSET,
        input_names=list(ready.example),
        output_names=list(ready.outputs),
        dynamic_shapes=(tuple(of_texts if array.ndim == 2 else of_images for array in ready.example.values()),),
        verbose=False,
    )
    size = sum(weight.numel() * weight.element_size() for weight in ready.model.parameters())
    program.save(str(target), external_data=size > _ONE_FILE_BYTES)


def _fuse(config: Any, plain: Path, target: Path) -> dict[str, int]:
    """Writes the fused form of ``plain`` to ``target``; how often each fusion was made."""
    from onnxruntime.transformers import optimizer
    from onnxruntime.transformers.fusion_options import FusionOptions
    from optimum.utils import NormalizedConfigManager

    normal = NormalizedConfigManager.get_normalized_config_class(config.model_type)(config)
    fused = optimizer.optimize_model(
        str(plain),
        model_type="bert",
        num_heads=int(normal.num_attention_heads),
        hidden_size=int(normal.hidden_size),
        optimization_options=FusionOptions("bert"),
        opt_level=0,
    )
    size = sum(path.stat().st_size for path in plain.parent.glob(f"{plain.name}*"))
    fused.save_model_to_file(str(target), use_external_data_format=size > _ONE_FILE_BYTES)
    return {name: int(count) for name, count in fused.get_fused_operator_statistics().items() if count}


@dataclass(frozen=True)
class _Known:
    """What is the same for every quantized form of one export: its nodes, and the ranges of its activations."""

    of: tuple[Path, Kind]
    nodes: dict[str, list[str]]
    rows: list[Any] = field(default_factory=list)
    ranges: dict[str, bytes] = field(default_factory=dict)
    moments: dict[str, Any] = field(default_factory=dict)
    codes: dict[tuple[str, int], Codes] = field(default_factory=dict)

    def solved(self, source: OptimizedModel, module: str, rows: Sequence[Any], block_size: int) -> Codes | None:
        """A module's weights in 4 bits by GPTQ; the same in every trial, so solved once."""
        weight = source.model.get_submodule(module).weight.detach().cpu()
        block = block_for(weight.shape[1], block_size)
        if block is None:
            return None
        if not self.moments:
            logger.info("GPTQ: looking at what %d matrices are fed on %d rows", len(self.nodes), len(rows))
            self.moments.update(input_moments(source, load_task(source.task), rows, self.nodes))
        if (module, block) not in self.codes:
            self.codes[module, block] = solve(weight, self.moments[module], bits=4, block_size=block)
        return self.codes[module, block]

    def ranges_on(self, rows: Sequence[Any]) -> dict[str, bytes]:
        """Those found on the same rows; other rows start anew."""
        if self.rows != list(rows):
            self.rows[:] = rows
            self.ranges.clear()
        return self.ranges


def _as_notes(scheme: Scheme) -> dict[str, Any]:
    return {**asdict(scheme), "keep_float": sorted(scheme.keep_float), "wide": sorted(scheme.wide)}


def _threads() -> int:
    import torch

    return torch.get_num_threads()


class OnnxRuntimeBackend:
    """Writes and runs ONNX."""

    name = "onnxruntime"
    kinds: tuple[Kind, ...] = ("dynamic", "static", "weight_only")

    def __init__(self) -> None:
        self._known: _Known | None = None

    def is_available(self) -> str | None:
        """None when onnxruntime and tokenizers are installed, else what to install."""
        missing = [name for name in ("onnxruntime", "tokenizers") if importlib.util.find_spec(name) is None]
        if missing:
            return f"Backend 'onnxruntime' needs {', '.join(missing)}. Install it with: pip install {' '.join(missing)}"
        return None

    def export(self, source: OptimizedModel, directory: Path, sample: Sequence[Any]) -> ExportedModel:
        """Writes ``source`` into ``directory`` as an ONNX graph and compares its answers with the source's.

        Args:
            source: The model; it is left as it is.
            directory: Made here; must not exist.
            sample: A few real inputs, of different lengths if possible.

        Raises:
            ExportError: The folder exists or can't be written, the model can't be traced, or the graph answers
                differently.
            ModelError: There is no fast tokenizer or no padding token, or ``max_length`` is beyond the model.
        """
        if source.builds:
            return bundle.adopt(source, directory, backend=self.name)
        if tasks.find(source.task).KIND == "generator":
            return export_decoder(
                source,
                directory,
                sample,
                backend=self.name,
                threads=_threads(),
                write=write_onnx,
                open_graph=lambda folder: OnnxDecoder(folder / MODEL, threads=_threads()),
            )
        return export_graph(
            source,
            directory,
            sample,
            backend=self.name,
            write=self._write,
            open_graph=lambda folder, outputs: OnnxEngine(folder / MODEL, outputs=outputs, threads=_threads()).forward,
        )

    def _write(self, ready: Traceable, work: Path) -> dict[str, Any]:
        """Puts the graph into ``work``; what to note about it."""
        with tempfile.TemporaryDirectory(prefix=".trace-", dir=work) as scratch, _quiet():
            plain = Path(scratch) / MODEL
            try:
                _trace(ready, plain)
            except OSError:
                raise
            except Exception as error:  # the exporter raises many kinds of its own
                raise ExportError(
                    f"torch.onnx can't export {type(ready.model).__name__}: {first_line(error)}. Use the torch backend."
                ) from error
            return {"opset": _OPSET, **self._place(ready, plain, work)}

    def quantizable(self, exported: ExportedModel, source: OptimizedModel, kind: Kind) -> list[str]:
        """Names of the modules of ``source.model`` whose matrices can be quantized, in the graph's order."""
        return list(self._known_of(exported, source, kind).nodes)

    def quantize(
        self,
        exported: ExportedModel,
        source: OptimizedModel,
        directory: Path,
        scheme: Scheme,
        rows: Sequence[Any],
    ) -> None:
        """Writes the quantized form of ``exported``, which came from ``source``, into ``directory`` (made here).

        Raises:
            ConfigError: The scheme asks for SmoothQuant, which onnxruntime does through a package that is no more.
            ExportError: The folder exists or can't be written, or onnxruntime can't quantize the graph.
        """
        if scheme.smooth is not None:
            raise ConfigError(
                "onnxruntime has no SmoothQuant of its own (smooth is set). Leave smooth out, or write "
                "export.backends=openvino."
            )
        content = read_bundle(exported.directory).content
        graph = exported.directory / MODEL
        known = self._known_of(exported, source, scheme.kind)
        if tasks.find(source.task).KIND == "generator":
            self._quantize_decoder(exported, source, directory, scheme, rows, known)
            return
        with bundle.staged(Path(directory)) as work:
            if (tokenizer := exported.directory / TOKENIZER).is_file():
                shutil.copyfile(tokenizer, work / TOKENIZER)
            encode = open_encoder(work, content["inputs"], source.spec)
            batches = (encode(rows[start : start + 8]) for start in range(0, len(rows), 8))
            with _quiet():
                try:
                    quantize_graph(graph, work / MODEL, scheme, known.nodes, batches, known.ranges_on(rows))
                except OSError:
                    raise
                except Exception as error:  # onnxruntime's quantizer raises many kinds of its own
                    raise ExportError(f"onnxruntime can't quantize {type(source.model).__name__}: {error}") from error
            notes = {**content["notes"], "quantized": _as_notes(scheme)}
            bundle.write(source, work, backend=self.name, inputs=content["inputs"], notes=notes)

    def _quantize_decoder(
        self,
        exported: ExportedModel,
        source: OptimizedModel,
        directory: Path,
        scheme: Scheme,
        rows: Sequence[Any],
        known: _Known,
    ) -> None:
        """The same for a language model."""
        if scheme.kind != "weight_only":
            raise ConfigError(
                f"Language models aren't quantized with kind {scheme.kind!r} on onnxruntime. Use quantize.weight_only."
            )
        content = read_bundle(exported.directory).content

        def solved(module: str) -> Codes | None:
            if scheme.solve == "nearest":
                return None
            return known.solved(source, module, rows, scheme.block_size)

        with bundle.staged(Path(directory)) as work:
            shutil.copyfile(exported.directory / "tokenizer.json", work / "tokenizer.json")
            quantize_decoder(exported.directory / MODEL, work / MODEL, scheme, known.nodes, solved)
            notes = {**content["notes"], "quantized": _as_notes(scheme), "kernel": "MatMulNBits, int8 products"}
            bundle.write(source, work, backend=self.name, inputs=content["inputs"], notes=notes)

    def _known_of(self, exported: ExportedModel, source: OptimizedModel, kind: Kind) -> _Known:
        """Kept for the last export: a search asks for it at every trial."""
        of = (exported.directory, kind)
        if self._known is None or self._known.of != of:
            graph, generates = exported.directory / MODEL, tasks.find(source.task).KIND == "generator"
            nodes = linear_nodes(graph, source.model) if generates else weighted_nodes(graph, source.model, kind)
            self._known = _Known(of, nodes)
        return self._known

    def _place(self, ready: Traceable, plain: Path, work: Path) -> dict[str, Any]:
        """Puts the fused graph, or else the plain one, into ``work``; what to note about it."""

        def difference(path: Path) -> float:
            engine = OnnxEngine(path, outputs=ready.outputs, threads=_threads())
            return ready.difference(engine.forward, "The ONNX model")

        kind = ready.model.config.model_type
        if kind in _FUSED_AS_BERT:
            try:
                counts = _fuse(ready.model.config, plain, work / MODEL)
                return {"fused": counts, "max_abs_diff": difference(work / MODEL)}
            except OSError:
                raise
            except Exception as error:  # fusing is an extra: whatever stops it, the plain graph is there
                logger.warning("Fusing the graph of %s failed (%s); the plain graph is kept.", kind, error)
                reason = f"fusing failed: {error}"
                for leftover in work.glob(f"{MODEL}*"):
                    leftover.unlink()
        else:
            reason = f"no fusion for the model type {kind}"
        for path in plain.parent.glob(f"{MODEL}*"):
            path.rename(work / path.name)
        return {"fused": {}, "not_fused": reason, "max_abs_diff": difference(work / MODEL)}

    def load(self, directory: Path, *, threads: int) -> Predictor | TextGenerator:
        """A predictor over an exported folder, after comparing it with its manifest.

        Args:
            directory: The folder.
            threads: Threads inside an operator, >= 1.

        Raises:
            IntegrityError: The folder is not what its manifest says, or can't be opened.
        """
        try:
            return load_bundle(directory, threads=threads)
        except BundleError as error:
            raise IntegrityError(str(error)) from error


BACKEND = OnnxRuntimeBackend()
