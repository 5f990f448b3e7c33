"""The recipe: what to do with which model and data, read from YAML, overridden by dotted keys, frozen.

Reading and checking have no side effects and load no model. All faults are reported at once, with the
nearest known name. `Recipe.resolved` gives the whole recipe with every default written out; running that
file again repeats the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .catalog import backend_names, find_technique, load_technique, task_names, technique_names
from .chain import chain_faults
from .errors import ConfigError, InputNotFound, did_you_mean
from .interfaces import Technique
from .safety import safe_yaml

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "Baseline",
    "Export",
    "Generate",
    "Measure",
    "Options",
    "Recipe",
    "Track",
    "describe_faults",
    "find_recipe",
    "find_sweep",
    "read_yaml",
    "recipe_names",
    "split_words",
]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


def split_words(value: Any) -> Any:
    """A text with commas as its parts, without blanks and empty ones; anything else as it is."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class Options(_Section):
    """Options of a command that is no recipe; read like a recipe's, with every fault at once."""

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Checked options from values by name; empty text means "the default".

        Raises:
            ConfigError: Something is wrong; ``faults`` lists everything that is.
        """
        given = {key: _typed(value) for key, value in values.items() if not (isinstance(value, str) and value == "")}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise ConfigError(describe_faults(error, cls)) from None


class Baseline(_Section):
    """How the given model is fine-tuned first when it has no trained head for the data's labels."""

    epochs: float = Field(3.0, gt=0, le=1000, description="Passes over the training rows.")
    learning_rate: float = Field(1e-4, gt=0, lt=1, description="Peak learning rate of AdamW.")
    batch_size: int = Field(32, ge=1, le=4096, description="Rows per training step.")


class Export(_Section):
    """Runtimes that the final model is exported to; each is a point of its own."""

    backends: tuple[str, ...] = Field(
        ("torch", "onnxruntime"),
        min_length=1,
        description="Runtimes of the final model, each one a point; what comes before it is exported to the last one.",
    )
    baseline: bool = Field(
        True, description="Export the baseline to these runtimes too, so that a runtime's own effect shows."
    )

    @field_validator("backends", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @field_validator("backends")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in backend_names():
                raise ValueError(f"Unknown backend {name!r}. {did_you_mean(name, backend_names())}")
        return tuple(dict.fromkeys(value))


class Measure(_Section):
    """How the points are measured against the baseline."""

    metric: str | None = Field(
        None, description="Headline quality metric; by default the data decides (and it is said)."
    )
    quality_margin: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="Largest drop of the headline metric that still counts as non-inferior (0.01 = 1 point).",
    )
    batch_size: int = Field(32, ge=1, le=4096, description="Batch size of the offline scenario.")
    timing_s: float = Field(
        12.0,
        gt=0,
        le=3600,
        description="Largest time for paired timing per point and scenario, encoded and from raw text each, seconds.",
    )
    concurrency: int = Field(
        1, ge=1, le=256, description="Requests at a time in a further timing of language models; 1 leaves it out."
    )
    lm_eval: tuple[str, ...] = Field(
        (), description="Tasks of lm-eval for language models, by name or as YAML files; needs the extra lm-eval."
    )
    lm_eval_rows: int | None = Field(
        None, ge=1, description="First rows of each of these tasks, at most; default: all, which can be very many."
    )
    prompts: int = Field(
        1, ge=1, le=256, description="Prompts in one batch in a further timing of language models; 1 leaves it out."
    )
    energy_s: float = Field(
        10.0, ge=0, le=3600, description="Largest time for energy windows per point, seconds; 0 = no energy."
    )
    fresh_starts: int = Field(
        3, ge=0, le=100, description="Fresh processes per point for cold start and memory; 0 = neither."
    )
    wait_s: float = Field(
        60.0, ge=0, le=3600, description="Longest wait for other work on this machine to end, seconds."
    )
    cpu_power_w: float | None = Field(
        None, gt=0, description="Full-load watts of the CPU share in use, when you know it."
    )
    ram_power_w: float | None = Field(None, gt=0, description="Watts of the memory in use, when you know it.")
    pue: float = Field(1.0, ge=1, le=5, description="Power usage effectiveness of the site.")
    utilisation: float = Field(0.5, gt=0, le=1, description="Share of paid time in which the machine serves; for cost.")
    requests_per_day: float | None = Field(None, gt=0, description="Your traffic; turns break-even into days.")

    _tasks = field_validator("lm_eval", mode="before")(split_words)


class Generate(_Section):
    """How a language model is asked; for the task text-generation."""

    max_new_tokens: int = Field(
        32, ge=0, le=100_000, description="Most tokens of an answer; timing writes exactly so many. 0 writes none."
    )
    prompt: str | None = Field(
        None, min_length=1, description="A prompt with {text} where the row's text goes; default: the text as it is."
    )
    chat: bool | None = Field(
        None, description="Send a prompt as a user's message; default: where the model has a chat template."
    )
    serve_as: Literal["text", "llm/v1/completions", "llm/v1/chat"] = Field(
        "text", description="What the logged model answers with: a text, or OpenAI's dictionaries, as MLflow has them."
    )
    train_rows: int | None = Field(
        None, ge=2, description="Training rows that are used, at most, at even steps; default: all."
    )
    eval_rows: int = Field(
        64, ge=2, le=1_000_000, description="Validation and test rows that are used, at most, at even steps."
    )


class Embed(_Section):
    """How states of tokens become a vector; for the task feature-extraction."""

    pooling: Literal["mean", "cls", "max", "last"] | None = Field(
        None, description="What of a text's states is its vector; default: as the model's own files say, else mean."
    )
    normalize: bool | None = Field(
        None, description="Bring vectors to length 1; default: as the model's own files say, else no."
    )


class Answer(_Section):
    """How a context is read and answers are chosen; for the task question-answering."""

    stride: int | None = Field(
        None, ge=0, description="Tokens that two windows of a long context share; default: a quarter, 128 at most."
    )
    max_answer_length: int = Field(
        30, ge=1, le=10_000, description="Longest answer, in words, numbers and marks of the context."
    )
    unanswerable: bool | None = Field(
        None, description="Whether the model may say that there is no answer; default: where some rows have none."
    )


class Track(_Section):
    """Where MLflow keeps the runs."""

    experiment: str | None = Field(
        None, description="MLflow experiment; inside `mlflow run` that command's own choice holds."
    )
    run_name: str | None = Field(None, description="Name of the recipe's run.")


class Recipe(_Section):
    """One whole job: model and data in, steps, export, measure, track."""

    name: str = Field("recipe", pattern=r"^[\w.-]{1,60}$", description="Short name, shown in MLflow.")
    model: str = Field(
        "demo", min_length=1, description="Local folder, hub id (owner/name@revision), runs:/ or models:/ URI, or demo."
    )
    data: str = Field(
        "demo",
        min_length=1,
        description="CSV, TSV, JSON(L) or Parquet file, folder, hub data set id, traces:<experiment>, or demo.",
    )
    against: str | None = Field(
        None, description="Measure model against this one, as both are, instead of doing steps; named as model is."
    )
    task: str = Field("text-classification", description="What the model does.")
    text: str = Field("text", min_length=1, description="Column with the text, the words, or the image.")
    text_pair: str | None = Field(None, description="Column with the second text of a pair.")
    label: str | None = Field(
        "label", min_length=1, description="Column with the label, labels, score, or right text; null: texts alone."
    )
    label_separator: str | None = Field(
        None, description="What separates several labels in one text cell (multi-label)."
    )
    trace_filter: str | None = Field(
        None, description="Which traces, as mlflow.search_traces takes it; with data=traces:<experiment>."
    )
    train_split: str | None = Field(None, description="Name or file of the train split; default: what is usual.")
    validation_split: str | None = Field(
        None, description="Name or file of the validation split; default: what is usual."
    )
    test_split: str | None = Field(None, description="Name or file of the test split; default: what is usual.")
    on_bad_rows: Literal["refuse", "drop"] = Field(
        "refuse", description="What to do with rows that lack text or label, or whose label training never saw."
    )
    max_length: int | None = Field(
        None, ge=2, le=1_000_000, description="Longest input in tokens; default: the model's own limit."
    )
    seed: int = Field(0, ge=0, lt=2**32, description="All randomness comes from it.")
    threads: int | None = Field(
        None, ge=1, le=1024, description="Threads for every arm; default: the CPUs of this process."
    )
    device: Literal["cpu", "cuda"] = Field(
        "cpu", description="Where training runs; every point is measured on the CPU."
    )
    output: str | None = Field(None, description="New folder for the exported final model, besides the logged one.")
    region: str | None = Field(None, description="Country (ISO alpha-3, as FRA) whose grid's carbon intensity is used.")
    carbon_intensity: float | None = Field(
        None, ge=0, le=5000, description="Carbon intensity in gCO2e/kWh; instead of region."
    )
    price_per_hour: float | None = Field(None, gt=0, description="Price of this machine, USD per hour; for cost.")
    quick: bool = Field(False, description="A smaller measuring budget; results are labelled quick.")
    baseline: Baseline = Baseline()
    steps: tuple[Any, ...] = Field((), description="Techniques in order, each with its options.")
    generate: Generate = Generate()
    embed: Embed = Embed()
    answer: Answer = Answer()
    export: Export = Export()
    measure: Measure = Measure()
    track: Track = Track()

    @field_validator("task")
    @classmethod
    def _known_task(cls, value: str) -> str:
        if value not in task_names():
            raise ValueError(f"Unknown task {value!r}. {did_you_mean(value, task_names())}")
        return value

    @field_validator("label_separator")
    @classmethod
    def _separator(cls, value: str | None) -> str | None:
        return value or None

    @model_validator(mode="after")
    def _measure_or_do(self) -> Recipe:
        if self.against is not None and self.steps:
            raise ValueError(f"against {self.against!r} and steps are both given. Keep one of them.")
        return self

    @model_validator(mode="after")
    def _one_intensity(self) -> Recipe:
        if self.region is not None and self.carbon_intensity is not None:
            raise ValueError(
                f"region {self.region!r} and carbon_intensity {self.carbon_intensity:g} are both given. "
                "Keep one of them."
            )
        return self

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Recipe:
        """A checked recipe from a file, a shipped recipe's name or a mapping, with dotted overrides.

        Args:
            source: Path of a YAML file, name of a shipped recipe (``distill``), or its content.
            overrides: Values by dotted key, such as ``{"steps.distill.temperature": 4}``. Text values are
                read as the option's type wants; empty text means "as in the recipe".

        Raises:
            ConfigError: Something is wrong; ``faults`` lists everything that is.
            InputNotFound: There is no such recipe file.
        """
        if isinstance(source, Mapping):
            content = dict(source)
        else:
            path = find_recipe(source)
            content = {"name": path.stem, **read_yaml(path, "a recipe", first="model")}
        faults: list[str] = []
        content = _copy(content)
        raw_steps = content.get("steps") or []
        if isinstance(raw_steps, list):
            content["steps"] = [_step_entry(step) for step in raw_steps]
        given = {key: v for key, v in (overrides or {}).items() if not (isinstance(v, str) and v == "")}
        for key in sorted(given, key=lambda key: key != "steps"):  # other steps first, then what is said of them
            _override(content, key, given[key], faults)
        steps = list(_read_steps(content.pop("steps", []), faults))
        try:
            recipe = cls.model_validate({**content, "steps": tuple(steps)})
        except ValidationError as error:
            faults.extend(describe_faults(error, cls))
        else:
            faults.extend(_region_faults(recipe))
            faults.extend(chain_faults(recipe.steps, recipe.export.backends, recipe.task))
        if faults:
            raise ConfigError(faults)
        return recipe

    def resolved(self) -> dict[str, Any]:
        """The recipe with every default written out, plain values only; `Recipe.load` reads it back."""
        content = self.model_dump(mode="json", exclude={"steps"})
        content["steps"] = [{"technique": step.name, **step.model_dump(mode="json")} for step in self.steps]
        return content

    def to_yaml(self) -> str:
        """`resolved` as YAML text."""
        return str(yaml.safe_dump(self.resolved(), sort_keys=False, allow_unicode=True))


def _region_faults(recipe: Recipe) -> list[str]:
    from .measurement.carbon import carbon_intensity

    try:
        carbon_intensity(recipe.region, recipe.carbon_intensity)
    except ConfigError as error:
        return [str(error)]
    return []


def _step_entry(step: Any) -> Any:
    """A copy that overrides may change: a mapping, ``{"technique": name}`` for a bare name, or the object itself."""
    if isinstance(step, Mapping):
        return dict(step)
    return {"technique": step} if isinstance(step, str) or step is None else step


def _copy(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in content.items()}


def _recipes_folder() -> Path:
    """``recipes/`` beside the package in a checkout; inside the package when installed from a wheel."""
    beside = Path(__file__).parent.parent / "recipes"
    return beside if (beside / "distill.yaml").is_file() else Path(__file__).parent / "recipes"


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package, sorted."""
    return sorted(path.stem for path in _recipes_folder().glob("*.yaml"))


def find_recipe(source: str | Path) -> Path:
    """The YAML file for a path or for the name of a shipped recipe.

    Raises:
        InputNotFound: Neither exists.
    """
    return _find(source, {name: _recipes_folder() / f"{name}.yaml" for name in recipe_names()}, "recipe file")


def find_sweep(source: str | Path) -> Path:
    """The YAML file for a path or for the name of a shipped sweep (``sweep.small``).

    Raises:
        InputNotFound: Neither exists.
    """
    shipped = sorted((_recipes_folder() / "sweeps").glob("*.yaml"))
    return _find(source, {f"sweep.{path.stem}": path for path in shipped}, "sweep")


def read_yaml(path: Path, what: str, *, first: str) -> dict[str, Any]:
    """The mapping in a YAML file.

    Args:
        path: The file.
        what: What it should be, for the message.
        first: A key it has, for the message.

    Raises:
        ConfigError: It can't be read, or holds something else.
    """
    content = safe_yaml(path.read_text(encoding="utf-8-sig"))
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path} holds {type(content).__name__}, not {what}. Write '{first}: ...' and so on, one a line."
        )
    return content


def _find(source: str | Path, shipped: Mapping[str, Path], what: str) -> Path:
    """A file by its path, else a shipped one by its name."""
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if str(source) in shipped:
        return shipped[str(source)]
    raise InputNotFound(f"There is no {what} {str(path)!r}. {did_you_mean(str(source), list(shipped))}")


def _typed(value: Any) -> Any:
    """Text from a command line: lists and mappings in YAML's flow form and ``null``; the rest stays text.

    Numbers and booleans are left to the option's own type, so that a column named ``1`` or ``no`` stays one.
    """
    if not isinstance(value, str):
        return value
    if value.strip().lower() in {"null", "none"}:
        return None
    return safe_yaml(value) if value.strip()[:1] in {"[", "{"} else value


def _override(content: dict[str, Any], key: str, value: Any, faults: list[str]) -> None:
    """Sets one dotted key; what can't be placed becomes a fault."""
    try:
        value = _typed(value)
    except ConfigError as error:
        faults.append(f"{key}: {error}")
        return
    head, _, rest = key.partition(".")
    if head == "steps" and rest:
        _override_step(content, key, rest, value, faults)
        return
    if key == "steps":  # names with commas between
        value = split_words(value)
        content[key] = [_step_entry(step) for step in value] if isinstance(value, list) else value
        return
    if not rest:
        content[head] = value
        return
    section = content.setdefault(head, {})
    if head not in Recipe.model_fields or not isinstance(section, dict) or "." in rest:
        sections = [name for name, info in Recipe.model_fields.items() if isinstance(info.default, _Section)]
        faults.append(f"Unknown key {key!r}. {did_you_mean(head, [*sections, 'steps'])}")
        return
    section[rest] = value


def _override_step(content: dict[str, Any], key: str, rest: str, value: Any, faults: list[str]) -> None:
    steps = content.get("steps")
    steps = steps if isinstance(steps, list) else []
    given = [step.get("technique", "") if isinstance(step, Mapping) else getattr(step, "name", "") for step in steps]
    names = [find_technique(str(name)) for name in given]
    position, _, option = rest.partition(".")
    if position.isdigit():
        chosen = [int(position)] if int(position) < len(steps) else []
    else:
        chosen = [i for i, name in enumerate(names) if rest.startswith(f"{name}.")]
        if chosen:
            option = rest[len(names[chosen[0]]) + 1 :]
        else:
            chosen = [i for i, name in enumerate(names) if name.split(".")[0] == position]
    if not option:
        faults.append(f"{key!r} names no option. Write it as steps.<kind>.<option>, such as steps.distill.temperature.")
    elif len(chosen) > 1:
        apart = len({names[i] for i in chosen}) == len(chosen)
        where = " or ".join(f"steps.{names[i] if apart else i}.{option}" for i in chosen)
        faults.append(f"{key!r} fits {len(chosen)} steps. Write {where}.")
    elif not chosen:
        kinds = [name.split(".")[0] for name in names] or ["(this recipe has no steps)"]
        faults.append(f"{key!r} fits no step of this recipe. {did_you_mean(position, kinds)}")
    elif not isinstance(steps[chosen[0]], dict):
        faults.append(f"{key!r} can't change a technique that was given as an object. Set its option there.")
    else:
        steps[chosen[0]][option] = value


def _read_steps(raw: Any, faults: list[str]) -> Iterator[Technique]:
    if not isinstance(raw, Sequence) or isinstance(raw, str):
        faults.append(f"steps must be a list of techniques, got {raw!r}. Write '- technique: distill.logits'.")
        return
    for index, entry in enumerate(raw):
        if isinstance(entry, Technique):  # an object of options, given from Python
            yield entry
            continue
        if not isinstance(entry, Mapping):
            faults.append(f"steps[{index}] must be a technique with its options, got {entry!r}.")
            continue
        options = dict(entry)
        name = options.pop("technique", None)
        if not isinstance(name, str):
            faults.append(f"steps[{index}] names no technique. {did_you_mean('', technique_names())}")
            continue
        name = find_technique(name)
        try:
            technique = load_technique(name)
            yield technique(**options)
        except ConfigError as error:
            faults.append(f"steps[{index}]: {error}")
        except ValidationError as error:
            faults.extend(describe_faults(error, technique, f"steps[{index}]"))


def describe_faults(error: ValidationError, model: Any, where: str = "") -> list[str]:
    """One sentence for each fault pydantic found, with names as the user typed them.

    Args:
        error: What pydantic raised.
        model: The class that was validated; it knows the names that exist.
        where: What stands before the option's name, such as ``steps[1]``.
    """
    sentences = []
    for fault in error.errors():
        path = [
            part
            for part in fault["loc"]
            if not (isinstance(part, str) and ("[" in part or part in {"int", "str", "float"}))
        ]
        label = ".".join(str(part) for part in path)
        label = f"{where}.{label}" if where and label else label or where
        got = fault.get("input")
        if fault["type"] == "extra_forbidden":
            known = _fields_at(model, path[:-1])
            sentences.append(f"Unknown option {label!r}. {did_you_mean(str(path[-1]), known)}")
        elif fault["type"] == "missing":
            sentences.append(f"{label} is missing. Add it.")
        elif fault["type"] == "value_error":
            text = str(fault["ctx"]["error"])
            sentences.append(f"{label}: {text}" if label else text)
        else:
            message = fault["msg"].removeprefix("Input should be ").removesuffix(", unable to parse string as a number")
            limit = " Write 0.5 for 50 %." if _is_percentage(fault) else ""
            verb = "must be" if fault["msg"].startswith("Input should be ") else "is not right:"
            sentences.append(f"{label} {verb} {message}, got {got!r}.{limit}")
    return sentences


def _is_percentage(fault: Any) -> bool:
    """True for a number over 1 where a share was asked."""
    limit = fault.get("ctx", {})
    return bool(limit.get("lt") == 1 or limit.get("le") == 1) and isinstance(fault.get("input"), int | float | str)


def _fields_at(model: Any, path: Sequence[Any]) -> list[str]:
    for part in path:
        info = model.model_fields.get(part)
        model = info.annotation if info is not None else model
    return [*model.model_fields]
