"""What MLflow is told of a model: its signature, as ``mlflow.transformers`` gives it for the task, and an example."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .artifact import ExportedModel
from .errors import ModelError
from .probes import probe_inputs

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

__all__ = ["default_example", "default_signature"]

Spec = Mapping[str, Any]


def default_signature(exported: ExportedModel) -> ModelSignature:
    """As ``mlflow.transformers`` gives it, so that original and candidate are interchangeable.

    Raises:
        ModelError: None is known for its task.
    """
    if exported.task not in _TASKS:
        raise ModelError(f"No default signature for the task {exported.task!r}. Pass signature=.")
    return _TASKS[exported.task][0](exported.spec)


def default_example(exported: ExportedModel) -> Any:
    """A made-up row of its task, as a person would send it."""
    return _TASKS[exported.task][1](exported.spec)


def _strings(*names: str | None) -> Any:
    from mlflow.types import ColSpec, Schema

    return Schema([ColSpec("string", name) for name in names])


def _of_classes(spec: Spec) -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    return ModelSignature(
        inputs=_strings(*(("text", "text_pair") if spec.get("pair") else (None,))),
        outputs=Schema([ColSpec("string", name="label"), ColSpec("double", name="score")]),
        params=ParamSchema([ParamSpec("top_k", "long", None)]),
    )


def _of_words(spec: Spec) -> ModelSignature:  # noqa: ARG001 - as of every task
    """MLflow's own has labels without their places."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import Array, DataType, Object, Property

    kinds = {"entity_group": DataType.string, "score": DataType.double, "word": DataType.string}
    kinds |= dict.fromkeys(("start", "end"), DataType.long)
    entity = Object([Property(name, kind) for name, kind in kinds.items()])
    return ModelSignature(inputs=_strings(None), outputs=Schema([ColSpec(Array(entity), "entities")]))


def _of_vectors(spec: Spec) -> ModelSignature:
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    kind = {"binary": "uint8"}.get(output := str(spec.get("output", "float32")), output)
    return ModelSignature(inputs=_strings(None), outputs=Schema([TensorSpec(np.dtype(kind), (-1, -1))]))


def _of_answers(spec: Spec) -> ModelSignature:  # noqa: ARG001
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec

    return ModelSignature(
        inputs=_strings("question", "context"),
        outputs=_strings(None),
        params=ParamSchema([ParamSpec("details", "boolean", False)]),
    )


def _of_texts(spec: Spec) -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec, llm

    if (form := spec.get("serve_as", "text")) != "text":
        kind = "CHAT" if form == "llm/v1/chat" else "COMPLETIONS"
        inputs, outputs = (getattr(llm, f"{kind}_MODEL_{side}_SCHEMA") for side in ("INPUT", "OUTPUT"))
        return ModelSignature(inputs=inputs, outputs=outputs)
    params = [ParamSpec("max_new_tokens", "long", None), ParamSpec("temperature", "double", 0.0)]
    params += [ParamSpec("top_p", "double", 1.0), ParamSpec("seed", "long", None)]
    params.append(ParamSpec("stop", "string", [], shape=(-1,)))
    return ModelSignature(inputs=_strings(None), outputs=_strings(None), params=ParamSchema(params))


def _text_to_classify(spec: Spec) -> Any:
    if spec.get("pair"):
        return [{"text": "This is one text.", "text_pair": "This is the other."}]
    return ["This is a text to classify."]


def _prompt(spec: Spec) -> Any:
    if spec.get("serve_as") == "llm/v1/chat":
        return {"messages": [{"role": "user", "content": "Name three colours."}], "max_tokens": 8}
    if spec.get("serve_as") == "llm/v1/completions":
        return {"prompt": "Name three colours:", "max_tokens": 8}
    return ["Name three colours:"]


def _question(spec: Spec) -> Any:  # noqa: ARG001
    context = "Ada Lovelace wrote to Charles Babbage in 1843."
    return [{"question": "Who wrote to Babbage?", "context": context}]


_TASKS: Mapping[str, tuple[Callable[[Spec], ModelSignature], Callable[[Spec], Any]]] = {
    "text-classification": (_of_classes, _text_to_classify),
    "image-classification": (_of_classes, lambda spec: probe_inputs(spec)[:1]),
    "token-classification": (_of_words, lambda _: ["Ada Lovelace wrote to Charles Babbage."]),
    "feature-extraction": (_of_vectors, lambda _: ["This is a text."]),
    "question-answering": (_of_answers, _question),
    "text-generation": (_of_texts, _prompt),
}
"""Signature and example by task."""
