"""What every runtime with a graph of its own needs of a torch model before, and is held to after, it is traced."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import bundle
from .errors import ModelError
from .runtime import tasks
from .runtime.inputs import Encoder, open_encoder
from .runtime.torch_engine import TorchEngine

if TYPE_CHECKING:
    import numpy as np

    from .artifact import ExportedModel, OptimizedModel

__all__ = ["Traceable", "export_graph"]

# of the outputs, against the float32 model; measured differences of fp32 exports are about 2e-6
_TOLERANCE = 1e-3
# against the source itself when its weights were half precision
_HALF_TOLERANCE = {"float16": 2e-2, "bfloat16": 1e-1}
_Forward = Callable[[Mapping[str, "np.ndarray"]], "np.ndarray"]


@dataclass(frozen=True)
class Traceable:
    """A model as tracers want it.

    Attributes:
        model: On the CPU, float32, in eval mode.
        outputs: The attributes of its answer that count, such as ``logits``.
        encode: Texts, or images, to its inputs.
        sample: A few real inputs.
        example: Encoded inputs of two rows, by name.
        max_length: Tokens of the longest input; None where inputs are images.
    """

    model: Any
    outputs: tuple[str, ...]
    encode: Encoder
    sample: Sequence[Any]
    example: Mapping[str, np.ndarray]
    max_length: int | None
    _engine: TorchEngine = field(repr=False)

    @property
    def module(self) -> Any:
        """A torch module with positional inputs, in the order of ``example``, and ``outputs``; one of them alone."""
        import torch

        model, names, outputs = self.model, list(self.example), self.outputs

        class Answer(torch.nn.Module):
            """The model."""

            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, *arrays: Any) -> Any:
                answer = self.model(**dict(zip(names, arrays, strict=True)))
                found = tuple(getattr(answer, output) for output in outputs)
                return found[0] if len(found) == 1 else found

        return Answer().eval()  # tracers put modules back into the wrapper's mode, recursively

    @property
    def tensors(self) -> tuple[Any, ...]:
        """``example`` as the module's positional inputs."""
        import torch

        return tuple(torch.from_numpy(array) for array in self.example.values())

    def difference(self, forward: _Forward, what: str) -> float:
        """Largest difference of a graph's outputs from the model's, over the sample at several lengths.

        Raises:
            ExportError: It is larger than float32 explains.
        """
        return self._compare(self._engine, forward, _TOLERANCE, what)

    def _compare(self, engine: TorchEngine, forward: _Forward, tolerance: float, what: str) -> float:
        def shown(compute: _Forward) -> Callable[[Sequence[Any]], np.ndarray]:
            """What is computed for a batch, but for padding, of which some graphs say something else."""

            def answer(texts: Sequence[Any]) -> np.ndarray:
                batch = self.encode(texts)
                outputs, mask = compute(batch), batch.get("attention_mask")
                if mask is None or outputs.shape[:2] != mask.shape:
                    return outputs
                return outputs * mask.reshape(mask.shape + (1,) * (outputs.ndim - 2))

            return answer

        return bundle.compare(
            shown(engine.forward),
            shown(forward),
            self.sample,
            max_length=self.max_length,
            tolerance=tolerance,
            what=what,
        )


def export_graph(
    source: OptimizedModel,
    directory: Path,
    sample: Sequence[Any],
    *,
    backend: str,
    write: Callable[[Traceable, Path], Mapping[str, Any]],
    open_graph: Callable[[Path, tuple[str, ...]], _Forward],
) -> ExportedModel:
    """An exported folder with what encodes and what ``write`` puts beside it.

    Half-precision weights are widened to float32, which CPUs compute best with.

    Args:
        source: The model; it is left as it is.
        directory: Made here; must not exist.
        sample: A few real inputs, of different lengths if possible.
        backend: Whose format it is.
        write: Writes the graph into a folder, having compared it by `Traceable.difference`; what to note about it.
        open_graph: Opens what was written, for these outputs.

    Raises:
        ExportError: The folder exists or can't be written, or ``write`` says so, or the answers differ from those of
            the half-precision source.
        ModelError: There is no fast tokenizer or no padding token, or ``max_length`` is beyond the model.
    """
    import torch

    bundle.check_labels(source)
    dtype = str(source.model.dtype).removeprefix("torch.")
    outputs, max_length = tasks.find(source.task).OUTPUTS, source.spec.get("max_length")
    threads = torch.get_num_threads()
    notes: dict[str, Any] = {"source_dtype": dtype, "torch": torch.__version__}
    with bundle.staged(Path(directory)) as work, bundle.evaluating(source.model):
        inputs = bundle.save_processor(source, work, sample, whole=False)
        encode = open_encoder(work, inputs, source.spec)
        model = source.model
        if dtype != "float32" or model.device.type != "cpu":
            model = copy.deepcopy(model).to("cpu", torch.float32)
            notes["widened"] = f"{dtype} to float32"
        engine = TorchEngine(model, outputs=outputs, threads=threads)
        if max_length is not None:
            _check_length(source, engine, encode, sample)
        example = encode(list(sample[:2]) or [""])
        if len(next(iter(example.values()))) == 1:  # tracers take an axis of length 1 for a constant
            example = encode([*sample[:1], *sample[:1]])
        ready = Traceable(model, outputs, encode, sample, example, max_length, engine)
        notes |= write(ready, work)
        if dtype in _HALF_TOLERANCE:
            own = TorchEngine(source.model, outputs=outputs, threads=threads)
            notes["max_abs_diff_to_source"] = ready._compare(
                own, open_graph(work, outputs), _HALF_TOLERANCE[dtype], f"The {backend} model"
            )
        bundle.write(source, work, backend=backend, inputs=inputs, notes=notes)
    return bundle.read(directory, verify=False)


def _check_length(source: OptimizedModel, engine: TorchEngine, encode: Encoder, sample: Sequence[Any]) -> None:
    max_length = int(source.spec["max_length"])
    long = bundle.lengthened(sample[0] if len(sample) else "a", max_length)
    try:
        engine.forward(encode([long]))
    except (IndexError, RuntimeError) as error:
        raise ModelError(
            f"{type(source.model).__name__} can't take max_length={max_length} tokens ({error}). "
            "Write a smaller max_length."
        ) from error
