"""Backend ``pyfunc``: models that were made elsewhere, run as MLflow would serve them; to measure, not to make.

Loading such a model runs code and unpickles objects that came with it, so it is refused until its digest is allowed;
see `mlflow_slim.foreign`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifact import ExportedModel, OptimizedModel
from ..errors import ExportError, IntegrityError, ModelError
from ..foreign import check_allowed
from ..runtime import BundleError, read_bundle

if TYPE_CHECKING:
    import numpy as np

__all__ = ["BACKEND", "PyfuncBackend", "answers_of"]

_PROBES = ("A first text.", "And a second one, somewhat longer.")


class PyfuncBackend:
    """Runs any MLflow model that gives one label a text, or a pair of texts."""

    name = "pyfunc"

    def is_available(self) -> str | None:
        """Why nothing is exported to it."""
        return "Backend 'pyfunc' only measures models that were made elsewhere. Name another in export.backends."

    def export(self, source: OptimizedModel, directory: Path, sample: Sequence[Any]) -> ExportedModel:
        """Refuses.

        Raises:
            ExportError: Always.
        """
        del source, directory, sample
        raise ExportError(str(self.is_available()))

    def load(self, directory: Path, *, threads: int) -> PyfuncPredictor:
        """A predictor over a folder that `mlflow_slim.foreign.adopt` made.

        Args:
            directory: The folder.
            threads: What the surroundings were told (``OMP_NUM_THREADS``); the model's library may have its own mind.

        Raises:
            IntegrityError: The folder is not what its manifest says.
            UnsafeModelError: The code in it isn't allowed.
            ModelError: MLflow can't load it, or it doesn't give an answer a text.
        """
        try:
            content = read_bundle(directory).content
        except BundleError as error:
            raise IntegrityError(str(error)) from error
        check_allowed(Path(directory), str(content["notes"].get("name", directory)))
        return PyfuncPredictor(Path(directory), content["spec"], threads)


class PyfuncPredictor:
    """A loaded model whose raw outputs are its answers: label ids ``(rows,)`` int64.

    A label that the data doesn't have gets the id after the last.
    """

    def __init__(self, directory: Path, spec: Mapping[str, Any], threads: int) -> None:
        import mlflow.pyfunc

        try:
            self._model = mlflow.pyfunc.load_model(str(directory))
        except Exception as error:  # whatever its library raises
            raise ModelError(f"MLflow can't load {directory}: {type(error).__name__}: {error}") from error
        self.threads = threads
        self.settings = {"answers": "labels"}
        self._labels = [str(label) for label in spec["labels"]]
        self._names = ["text", "text_pair"] if spec.get("pair") else ["text"]
        self._form = self._find_form()

    def encode(self, inputs: Sequence[Any]) -> dict[str, np.ndarray]:
        """Columns of texts; what else is to be done the model does itself, when it answers."""
        import numpy as np

        rows = [(row,) if isinstance(row, str) else tuple(row) for row in inputs]
        return {name: np.array([row[place] for row in rows], dtype=object) for place, name in enumerate(self._names)}

    def forward(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """``(rows,)`` label ids of one batch.

        Raises:
            ModelError: There are more or fewer answers than texts.
        """
        count = len(batch[self._names[0]])
        found = answers_of(self._model.predict(self._form(batch)))
        if len(found) != count:
            raise ModelError(f"The model gave {len(found)} answers to {count} texts.")
        return self._ids(found)

    def predict(self, inputs: Sequence[Any], *, batch_size: int = 32) -> np.ndarray:
        """``(rows,)`` label ids for any number of inputs, in their order.

        Raises:
            ModelError: It gives other labels than the data has.
        """
        import numpy as np

        parts = [self.forward(self.encode(inputs[i : i + batch_size])) for i in range(0, len(inputs), batch_size)]
        ids = np.concatenate(parts)
        if len(ids) >= 32 and (ids == len(self._labels)).all():
            given = answers_of(self._model.predict(self._form(self.encode(inputs[:32]))))
            raise ModelError(
                f"The model answers {', '.join(sorted(set(map(str, given)))[:5])}, and the labels of the data are "
                f"{', '.join(self._labels[:10])}. They must be named alike."
            )
        return ids

    def _ids(self, answers: Sequence[Any]) -> np.ndarray:
        import numpy as np

        known = {name: place for place, name in enumerate(self._labels)}
        return np.array([_id_of(answer, known) for answer in answers], dtype=np.int64)

    def _find_form(self) -> Callable[[Mapping[str, np.ndarray]], Any]:
        """The form of input that gets an answer for each of two texts: as the signature says, else what works."""
        import pandas as pd

        schema = self._model.metadata.get_input_schema()
        names = list(schema.input_names()) if schema is not None and schema.has_input_names() else []
        if names and len(names) != len(self._names):
            raise ModelError(
                f"The model's signature has the inputs {', '.join(map(repr, names))}, and the task has "
                f"{', '.join(self._names)}. Log it with a signature of {len(self._names)}."
            )
        columns = dict(zip(self._names, names or self._names, strict=True))

        def table(batch: Mapping[str, np.ndarray]) -> Any:
            return pd.DataFrame({columns[name]: texts for name, texts in batch.items()})

        forms: list[Callable[[Mapping[str, np.ndarray]], Any]] = [table]
        if not names and len(self._names) == 1:
            only = self._names[0]
            forms = [lambda batch: batch[only].tolist(), lambda batch: pd.Series(batch[only]), table]
        trial = self.encode([_PROBES] * 2 if len(self._names) > 1 else _PROBES)
        reasons = []
        for form in forms:
            try:
                given = self._model.predict(form(trial))
            except Exception as error:  # whatever its library raises
                reasons.append(f"{type(error).__name__}: {error}".splitlines()[0][:200])
                continue
            if len(answers_of(given)) == len(_PROBES):
                return form
            reasons.append(f"{len(answers_of(given))} answers to {len(_PROBES)} texts")
        raise ModelError(f"The model doesn't give an answer a text: {'; '.join(reasons)}.")


def answers_of(given: Any) -> list[Any]:
    """One answer a row: the column ``label`` or the first one; the column or place of the largest of several scores."""
    import numpy as np
    import pandas as pd

    if isinstance(given, pd.DataFrame):
        if "label" in given.columns:
            given = given["label"]
        elif given.shape[1] > 1 and all(pd.api.types.is_float_dtype(kind) for kind in given.dtypes):
            given = given.idxmax(axis=1)
        else:
            given = given.iloc[:, 0]
    if isinstance(given, list) and given and isinstance(given[0], Mapping):
        given = [answer.get("label") for answer in given]
    found = np.asarray(given)
    if found.ndim == 2:
        found = found.argmax(axis=1) if found.shape[1] > 1 else found[:, 0]
    answers: list[Any] = np.atleast_1d(found).tolist()
    return answers


def _id_of(answer: Any, known: Mapping[str, int]) -> int:
    name = str(answer)
    if name in known:
        return known[name]
    # Integer ids, and what transformers calls the classes of a model that never learned their names.
    place = re.fullmatch(r"(?:LABEL_)?(\d+)", name)
    return min(int(place[1]), len(known)) if place else len(known)


BACKEND = PyfuncBackend()
