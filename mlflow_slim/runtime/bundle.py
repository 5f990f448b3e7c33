"""Reads ``slim.json``, which says what a folder holds and how to run it (format version 1)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .manifest import faults_in

NAME = "slim.json"
FORMAT = 1


class BundleError(RuntimeError):
    """The folder isn't a bundle, isn't what its manifest says, or was written by a newer version."""


@dataclass(frozen=True)
class Bundle:
    """What ``slim.json`` says.

    Attributes:
        directory: The folder.
        backend: ``torch`` or ``onnxruntime``.
        task: Name of the task, such as ``text-classification``.
        spec: What the task needs (text-classification: ``labels``, ``multi_label``, ``pair``, ``max_length``).
        inputs: How to make the model's inputs (names, padding), see `encoder`.
        content: All of ``slim.json``.
    """

    directory: Path
    backend: str
    task: str
    spec: Mapping[str, Any]
    inputs: Mapping[str, Any]
    content: Mapping[str, Any]


def read_bundle(directory: str | Path, *, verify: bool = True) -> Bundle:
    """The bundle in ``directory``, after comparing every file with the manifest.

    Args:
        directory: The folder.
        verify: False leaves the comparison out, for a caller that has just done it.

    Raises:
        BundleError: No bundle there, a file differs, or the format is not one this code reads.
    """
    directory = Path(directory)
    if not (directory / NAME).is_file():
        raise BundleError(f"{directory} holds no {NAME}, so it is not an exported model. Name the folder that does.")
    if verify and (faults := faults_in(directory)):
        raise BundleError(
            f"{directory} is not what its manifest says: {'; '.join(faults)}. Export the model again or fetch it anew."
        )
    try:
        content = json.loads((directory / NAME).read_text(encoding="utf-8"))
        found = content["format"]
        if found != FORMAT:
            raise BundleError(
                f"{directory / NAME} has format {found!r}, this version reads {FORMAT}. Use the version that wrote it."
            )
        return Bundle(directory, content["backend"], content["task"], content["spec"], content["inputs"], content)
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{directory / NAME} can't be read ({type(error).__name__}: {error}).") from error
