"""From what the user named to a table per split: demo, file, folder, saved ``datasets``, or a hub data set.

A local path always wins, is read without the network, and a name that looks like a path is never sent to the hub.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..errors import DataError, InputNotFound, did_you_mean
from ..hub import is_hub_id, looks_like_path, offline_reason
from .files import Rows, arrow_columns, file_format, join_rows, make_rows, read_file
from .images import ENDINGS

__all__ = ["SPLITS", "Located", "locate"]

SPLITS = ("train", "validation", "test")
_PREFIXES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
_SHARD = re.compile(r"-(\d+)-of-(\d+)$")
_DEMO = Path(__file__).parent.parent / "demo"
_DEMOS = {
    "demo": ("wordnet-topics", _DEMO),
    "demo-names": ("names", _DEMO / "names"),
    "demo-questions": ("questions", _DEMO / "questions"),
}
"""Embedded data sets: texts with a topic, names of people and companies with a label for each word, and questions."""


@dataclass(frozen=True)
class Located:
    """Tables as found.

    Attributes:
        name: Short name for people.
        kind: Kind of source: demo, file, folder, datasets, hub.
        tables: Rows by split; under ``all`` when the source has no splits.
        named: Splits that the user named, so that they can't be replaced.
        files: What was read, by split.
        notes: What a person should know.
        revision: Commit of a hub data set.
    """

    name: str
    kind: str
    tables: Mapping[str, Rows]
    named: frozenset[str] = frozenset()
    files: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    revision: str | None = None


def locate(
    source: str, splits: Mapping[str, str | None], *, wanted: Sequence[str], revision: str | None = None
) -> Located:
    """The tables of a source.

    Args:
        source: What the user named.
        splits: For each of train, validation and test the split name or file that the user named, or None.
        wanted: Columns that the user named; they help to tell a csv's separator.
        revision: Commit, branch or tag of a hub data set.

    Raises:
        InputNotFound: Nothing of that name is there.
        DataError: It is there and can't be read, or which files are meant isn't clear.
    """
    asked = {name: value.strip() for name, value in splits.items() if value and value.strip()}
    source = str(source).strip()
    if not source and "train" not in asked:
        raise DataError("No data was named. Write data=demo, a file, a folder, or a hub data set id.")
    path = Path(source).expanduser()
    if source in (*_DEMOS, "demo-digits"):
        return _locate_demo(source, asked, wanted)
    if not source or (path.is_file() and file_format(path)):
        return _locate_files(path if source else None, asked, wanted)
    if path.is_dir():
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            return _locate_saved(path, asked, wanted)
        return _locate_folder(path, asked, wanted)
    if path.exists():
        read_file(path, wanted=wanted)  # says which endings are known
    bare, _, at = source.partition("@")
    repository, _, config = bare.partition(":")
    if looks_like_path(bare) or file_format(path) or not is_hub_id(repository):
        raise InputNotFound(f"There is no file or folder {path.absolute()}.{_near(path)}")
    return _locate_hub(repository, config or None, at or revision, asked, wanted, path)


def _near(path: Path) -> str:
    try:
        names = [p.name for p in path.absolute().parent.iterdir()]
    except OSError:
        return f" Nor is there a folder {path.absolute().parent}."
    near = get_close_matches(path.name, names, n=1)
    return f" Did you mean {near[0]!r}?" if near else " Check the name and the folder you are in."


def _pick(asked: Mapping[str, str], name: str, available: Mapping[str, Any], where: str) -> str | None:
    """The available split that is meant by ``name``: the one asked for, or by custom; None when there is none."""
    if name in asked:
        if asked[name] in available:
            return asked[name]
        raise DataError(
            f"{name}_split={asked[name]!r} is neither a split of {where} nor a file. "
            + did_you_mean(asked[name], available)
        )
    return next((p for p in _PREFIXES[name] if p in available), None)


def _is_file(value: str, base: Path | None) -> Path | None:
    """The file that a ``*_split`` names, looked for from here and from the data's own folder."""
    candidates = [Path(value).expanduser(), *([base / value] if base else [])]
    return next((p for p in candidates if p.is_file()), None)


def _check_asked_files(asked: Mapping[str, str], base: Path | None) -> None:
    for name, value in asked.items():
        if _is_file(value, base) is None and (file_format(Path(value)) or "/" in value or "\\" in value):
            path = Path(value).expanduser().absolute()
            raise InputNotFound(f"{name}_split={value!r}: there is no file {path}.{_near(path)}")


def _locate_demo(source: str, asked: Mapping[str, str], wanted: Sequence[str]) -> Located:
    if source == "demo-digits":
        return Located("digits", "demo", _digits())
    known_as, folder = _DEMOS[source]
    available = {name: folder / f"{name}.jsonl.gz" for name in SPLITS}
    tables = {}
    for name in SPLITS:
        picked = _pick(asked, name, available, "the demo")
        if picked:
            tables[name] = read_file(available[picked], wanted=wanted)
    return Located(known_as, "demo", tables, frozenset(asked))


def _digits() -> dict[str, Rows]:
    """scikit-learn's 1,797 handwritten digits, 8 by 8 pixels: of nine in turn five to train and three to test."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = [(image * 255 / 16).round().tolist() for image in found.images]
    labels = [int(x) for x in found.target]
    places = {"train": range(5), "validation": (5,), "test": range(6, 9)}
    rows = {name: [i for i in range(len(labels)) if i % 9 in own] for name, own in places.items()}
    return {
        name: make_rows({"image": [images[i] for i in own], "label": [labels[i] for i in own]}, "demo")
        for name, own in rows.items()
    }


def _locate_files(main: Path | None, asked: Mapping[str, str], wanted: Sequence[str]) -> Located:
    base = main.parent if main else None
    _check_asked_files(asked, base)
    tables: dict[str, Rows] = {}
    files: dict[str, str] = {}
    for name, value in asked.items():
        path = _is_file(value, base)
        if path is None and (value != name or main is None):  # "train" for a file without splits asks for nothing
            raise DataError(
                f"{name}_split={value!r} is not a file, and {main or 'the data'} is one file without splits."
            )
        if path is not None:
            tables[name], files[name] = read_file(path, wanted=wanted), str(path)
    named = frozenset(tables)
    if main is not None and "train" not in tables:
        # Beside splits in files of their own, the file itself is what one trains on.
        whole = "train" if tables else "all"
        tables[whole], files[whole] = read_file(main, wanted=wanted), str(main)
    notes = () if main is None or str(main) in files.values() else (f"{main.name} was not read: each split has a file",)
    first = main or Path(files["train"])
    name = first.name.split(".")[0] or first.name
    return Located(name, "file", tables, named, files, notes)


def _data_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".") and file_format(p))


def _stem(path: Path) -> str:
    return path.name.lower().split(".")[0]


def _begins(stem: str, prefix: str) -> bool:
    # values.csv and valuation.csv are no validation files; training.csv and testing.csv are what they say
    return stem.startswith(prefix) and (prefix not in ("val", "valid") or not stem[len(prefix) :][:1].isalpha())


def _files_of_split(name: str, prefixes: Sequence[str], candidates: Sequence[Path], folder: Path) -> list[Path]:
    """The files of one split: an exact name before a longer one; several only when they are numbered shards."""
    for prefix in prefixes:
        exact = [p for p in candidates if _stem(p) == prefix]
        found = exact or [p for p in candidates if _begins(_stem(p), prefix)]
        if len(found) == 1:
            return found
        shards = [_SHARD.search(_stem(p)) for p in found]
        if found and all(shards) and len({_SHARD.sub("", _stem(p)) for p in found}) == 1:
            numbers = {(int(shard[1]), int(shard[2])) for shard in shards if shard}
            count = max(total for _, total in numbers)
            if numbers != {(i, count) for i in range(count)}:
                raise DataError(f"{folder} has {len(found)} of the {count} shards of {name}. Copy the others too.")
            return found
        if found:
            names = ", ".join(p.name for p in found)
            raise DataError(f"{folder} has several files for {name}: {names}. Say which with {name}_split=<file>.")
    return []


def _locate_folder(folder: Path, asked: Mapping[str, str], wanted: Sequence[str]) -> Located:
    _check_asked_files(asked, folder)
    root, candidates = folder, _data_files(folder)
    if not any(_stem(p).startswith("train") for p in candidates) and (folder / "data").is_dir():
        root, candidates = folder / "data", _data_files(folder / "data")
    tables: dict[str, Rows] = {}
    files: dict[str, str] = {}
    for name in SPLITS:
        explicit = _is_file(asked[name], folder) if name in asked else None
        if explicit:
            found = [explicit]
        else:
            found = _files_of_split(
                name, (asked[name].lower(),) if name in asked else _PREFIXES[name], candidates, root
            )
        if name in asked and not found:
            known = did_you_mean(asked[name], [p.name for p in candidates])
            raise DataError(
                f"{name}_split={asked[name]!r} is neither a file nor the beginning of one in {root}. {known}"
            )
        if found:
            tables[name] = join_rows([read_file(p, wanted=wanted) for p in found])
            files[name] = ", ".join(str(p) for p in found)
    if not tables and not candidates and (found_images := _folders_of_images(root)):
        return Located(folder.absolute().name, "images", found_images, frozenset(asked))
    used = {f for joined in files.values() for f in joined.split(", ")}
    unused = [p.name for p in candidates if str(p) not in used]
    if not tables and len(candidates) == 1:
        return _locate_files(candidates[0], {}, wanted)
    if "train" not in tables:
        seen = ", ".join(p.name for p in candidates) or "none"
        raise InputNotFound(
            f"{folder.absolute()} has no file whose name begins with train (data files found: {seen}). "
            "Name it train.csv, .jsonl or .parquet, or say which file with train_split=<file>."
        )
    notes = (f"files not read: {', '.join(unused)}",) if unused else ()
    return Located(folder.absolute().name, "folder", tables, frozenset(asked), files, notes)


def _folders_of_images(folder: Path) -> dict[str, Rows]:
    """A folder for each class (in one for each split) with image files, as ``datasets`` reads them, by split."""
    parts = {p.name: p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")}
    splits = {name: next((parts[n] for n in prefixes if n in parts), None) for name, prefixes in _PREFIXES.items()}
    given = {name: place for name, place in splits.items() if place is not None} or {"all": folder}
    tables = {}
    for name, place in given.items():
        files = sorted(p for p in place.glob("*/*") if p.suffix.lower() in ENDINGS and not p.name.startswith("."))
        if files:
            columns: dict[str, list[Any]] = {"image": [str(p) for p in files], "label": [p.parent.name for p in files]}
            tables[name] = make_rows(columns, "images")
    return tables if {"all", "train"} & set(tables) else {}


def _rows_of_dataset(dataset: Any) -> Rows:
    # Arrow, not the iterator: it decodes no images and applies a selection of rows
    table = dataset.with_format("arrow")[:]
    features = {name: _described(feature) for name, feature in dataset.features.items()}
    return make_rows(arrow_columns(table, features), "datasets")


def _described(feature: Any) -> Any:
    """A feature of ``datasets`` in the form in which it writes itself into Arrow files."""
    from datasets import ClassLabel

    if isinstance(feature, ClassLabel):
        return {"_type": "ClassLabel", "names": feature.names}
    inner = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", None)
    return {"_type": "List", "feature": _described(inner)} if inner is not None else None


def _locate_saved(path: Path, asked: Mapping[str, str], wanted: Sequence[str]) -> Located:
    import datasets

    _check_asked_files(asked, path)
    try:
        loaded = datasets.load_from_disk(str(path))
        if not isinstance(loaded, datasets.DatasetDict):
            loaded = {"all": loaded}
            asked = {name: value for name, value in asked.items() if value != name}
        return _tables_of(loaded, path.absolute().name, "datasets", asked, wanted, path)
    except (DataError, InputNotFound):
        raise
    except Exception as error:  # what a damaged folder raises depends on which file is damaged
        raise DataError(f"{path} is not a whole folder of datasets.save_to_disk: {error}") from error


def _tables_of(
    loaded: Mapping[str, Any],
    name: str,
    kind: str,
    asked: Mapping[str, str],
    wanted: Sequence[str],
    base: Path | None,
    revision: str | None = None,
) -> Located:
    tables: dict[str, Rows] = {}
    files: dict[str, str] = {}
    for split in SPLITS:
        path = _is_file(asked[split], base) if split in asked and asked[split] not in loaded else None
        picked = None if path else _pick(asked, split, loaded, name)
        if path:
            tables[split], files[split] = read_file(path, wanted=wanted), str(path)
        elif picked:
            tables[split], files[split] = _rows_of_dataset(loaded[picked]), picked
    if "train" not in tables:
        if len(loaded) > 1 or tables:
            known = ", ".join(loaded)
            raise DataError(
                f"{name} has no split named train. Say which it is with train_split=<name>; it has: {known}."
            )
        only = next(iter(loaded))
        tables["all"], files["all"] = _rows_of_dataset(loaded[only]), only
    unused = [s for s in loaded if s not in files.values()]
    notes = (f"splits not read: {', '.join(unused)}",) if unused else ()
    return Located(name, kind, tables, frozenset(asked), files, notes, revision)


def _locate_hub(
    repository: str,
    config: str | None,
    revision: str | None,
    asked: Mapping[str, str],
    wanted: Sequence[str],
    looked_for: Path,
) -> Located:
    reason = offline_reason()
    if reason:
        raise InputNotFound(
            f"There is no file or folder {looked_for.absolute()}, and the hub can't be asked for the data set "
            f"{repository!r} (revision {revision or 'main'}): {reason}. Give a local file or folder, or go online."
        )
    import datasets
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(repository, revision=revision, timeout=5).sha
        loaded = datasets.load_dataset(repository, config, revision=commit)
    except Exception as error:  # the client has a dozen kinds of not found, gated and unreachable
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputNotFound(
            f"There is no file or folder {looked_for.absolute()}, and the data set {repository!r} "
            f"(revision {revision or 'main'}) can't be had from the hub: {first_line} "
            "A data set with several configurations is named owner/name:configuration."
        ) from error
    return _tables_of(loaded, repository.split("/")[-1], "hub", asked, wanted, None, commit)
