"""Backend ``openvino``: the model as OpenVINO's own graph, on the CPU; an extra.

The graph is traced from torch, with batch and length free, and kept in float32; read from our ONNX export instead it
had no fused attention and was a tenth slower. Quantizing is NNCF's work. Neither sends telemetry when called from here.
"""

from __future__ import annotations

import importlib.util
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import bundle
from ..artifact import ExportedModel, OptimizedModel
from ..decoder_export import export_decoder
from ..errors import ConfigError, ExportError, IntegrityError, first_line
from ..graph_export import Traceable, export_graph
from ..interfaces import Kind, Scheme
from ..openvino_decoder import write_openvino
from ..openvino_quantization import quantize_model, weighted_nodes
from ..runtime import BundleError, Predictor, TextGenerator, tasks
from ..runtime import load as load_bundle
from ..runtime.bundle import read_bundle
from ..runtime.decoders import OpenVinoDecoder
from ..runtime.inputs import TOKENIZER, open_encoder
from ..runtime.openvino_engine import MODEL, OpenVinoEngine
from ..runtime.torch_engine import quiet_transformers

__all__ = ["BACKEND", "OpenVinoBackend"]


def _write(ready: Traceable, work: Path) -> dict[str, Any]:
    """Puts the graph into ``work``; what to note about it."""
    import openvino

    try:
        with quiet_transformers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracing: what it takes for constant is compared at several lengths
            graph = openvino.convert_model(ready.module, example_input=ready.tensors)
        for port, name in zip(graph.inputs, ready.example, strict=True):
            port.get_tensor().set_names({name})
        for port, name in zip(graph.outputs, ready.outputs, strict=True):
            port.get_tensor().set_names({name})
        openvino.save_model(graph, str(work / MODEL), compress_to_fp16=False)
    except OSError:
        raise
    except Exception as error:  # OpenVINO's frontend and torch's tracer raise many kinds of their own
        raise ExportError(
            f"OpenVINO can't convert {type(ready.model).__name__}: {first_line(error)}. Use another backend."
        ) from error
    engine = OpenVinoEngine(work / MODEL, outputs=ready.outputs, threads=1)
    difference = ready.difference(engine.forward, "The OpenVINO model")
    return {"openvino": openvino.__version__, "max_abs_diff": difference}


class OpenVinoBackend:
    """Writes and runs OpenVINO's format."""

    name = "openvino"
    kinds: tuple[Kind, ...] = ("static", "weight_only")

    def is_available(self) -> str | None:
        """None when openvino is installed, else what to install."""
        if importlib.util.find_spec("openvino") is None:
            return "Backend 'openvino' needs openvino. Install it with: pip install 'mlflow_slim[openvino]'"
        return None

    def export(self, source: OptimizedModel, directory: Path, sample: Sequence[Any]) -> ExportedModel:
        """Writes ``source`` into ``directory`` as an OpenVINO graph and compares its answers with the source's.

        Args:
            source: The model; it is left as it is.
            directory: Made here; must not exist.
            sample: A few real inputs, of different lengths if possible.

        Raises:
            ExportError: The folder exists or can't be written, or the model can't be converted or answers differently.
            ModelError: There is no fast tokenizer or no padding token, or ``max_length`` is beyond the model.
        """
        import torch

        if source.builds:
            return bundle.adopt(source, directory, backend=self.name)
        if tasks.find(source.task).KIND == "generator":
            return export_decoder(
                source,
                directory,
                sample,
                backend=self.name,
                threads=torch.get_num_threads(),
                write=write_openvino,
                open_graph=lambda folder: OpenVinoDecoder(folder / MODEL, threads=torch.get_num_threads()),
            )
        return export_graph(
            source,
            directory,
            sample,
            backend=self.name,
            write=_write,
            open_graph=lambda folder, outputs: OpenVinoEngine(folder / MODEL, outputs=outputs, threads=1).forward,
        )

    def quantizable(self, exported: ExportedModel, source: OptimizedModel, kind: Kind) -> list[str]:  # noqa: ARG002
        """Names of the modules of ``source.model`` whose matrices can be quantized, in the graph's order."""
        import openvino

        return list(weighted_nodes(openvino.Core().read_model(str(exported.directory / MODEL)), source.model))

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
            ConfigError: nncf is missing, or has no such calibration.
            ExportError: The folder exists or can't be written, or NNCF can't quantize the graph.
        """
        if importlib.util.find_spec("nncf") is None:
            raise ConfigError("Quantizing for openvino needs nncf. Install it: pip install 'mlflow_slim[openvino]'")
        import openvino

        content = read_bundle(exported.directory).content
        generates = tasks.find(source.task).KIND == "generator"
        if generates and scheme.kind != "weight_only":
            raise ConfigError(
                f"Language models aren't quantized with kind {scheme.kind!r} on openvino. Use quantize.weight_only."
            )
        with bundle.staged(Path(directory)) as work:
            if (tokenizer := exported.directory / TOKENIZER).is_file():
                shutil.copyfile(tokenizer, work / TOKENIZER)
            graph = openvino.Core().read_model(str(exported.directory / MODEL))
            nodes = weighted_nodes(graph, source.model)
            batches: list[Any] = []
            if scheme.kind == "static":
                encode = open_encoder(work, content["inputs"], source.spec)
                batches = [encode(rows[start : start + 8]) for start in range(0, len(rows), 8)]
            try:
                quantized = quantize_model(graph, scheme, nodes, batches)
            except (ConfigError, OSError):
                raise
            except Exception as error:  # NNCF raises many kinds of its own
                raise ExportError(f"NNCF can't quantize {type(source.model).__name__}: {error}") from error
            openvino.save_model(quantized, str(work / MODEL), compress_to_fp16=False)
            quantized_as = {**asdict(scheme), "keep_float": sorted(scheme.keep_float), "wide": sorted(scheme.wide)}
            notes = {**content["notes"], "quantized": quantized_as}
            if generates:
                notes["kernel"] = "OpenVINO's products with compressed weights"
            bundle.write(source, work, backend=self.name, inputs=content["inputs"], notes=notes)

    def load(self, directory: Path, *, threads: int) -> Predictor | TextGenerator:
        """A predictor over an exported folder, after comparing it with its manifest.

        Args:
            directory: The folder.
            threads: Threads of one inference, >= 1.

        Raises:
            IntegrityError: The folder is not what its manifest says, or can't be opened.
        """
        try:
            return load_bundle(directory, threads=threads)
        except BundleError as error:
            raise IntegrityError(str(error)) from error


BACKEND = OpenVinoBackend()
