"""The command ``mlflow-slim``: argv to recipe to pipeline; ``list``, ``show`` and ``check`` beside ``run``.

Options of a recipe are its own dotted keys: ``--steps.distill.temperature=4`` and
``--steps.distill.temperature 4`` mean the same, and an empty value means "as in the recipe", which is what
MLproject's parameters are by default.

Exit codes: 0 done, 1 failed, 2 the command or recipe is wrong, 130 stopped by Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from . import __version__
from .errors import ConfigError, InputNotFound, SlimError

__all__ = ["main", "parse_overrides"]


def parse_overrides(words: Sequence[str]) -> dict[str, str]:
    """Dotted keys and values from the words after the recipe's name.

    Raises:
        ConfigError: A word is no option, or an option has no value.

    >>> parse_overrides(["--seed=1", "--steps.distill.alpha", "0.3", "threads=2"])
    {'seed': '1', 'steps.distill.alpha': '0.3', 'threads': '2'}
    """
    overrides: dict[str, str] = {}
    faults: list[str] = []
    words = list(words)
    while words:
        word = words.pop(0)
        key, equals, value = word.partition("=")
        if not equals and key.startswith("--"):
            if words and not words[0].startswith("--"):
                value = words.pop(0)
            else:
                faults.append(f"The option {word} has no value. Write {word}=...")
                continue
        elif not equals:
            faults.append(f"{word!r} is no option. Write --name=value, or name=value.")
            continue
        overrides[key.removeprefix("--")] = value
    if faults:
        raise ConfigError(faults)
    return overrides


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mlflow-slim",
        allow_abbrev=False,  # else --ver=1 of a recipe's options would be taken for --version
        description="Smaller models as MLflow runs, measured honestly against the original.",
        epilog="Example: mlflow-slim run distill --model=./my-model --data=reviews.csv --text=review --label=stars",
    )
    parser.add_argument("--version", action="version", version=f"mlflow-slim {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    run = commands.add_parser(
        "run",
        help="run a recipe as MLflow runs",
        description="Runs a recipe: a YAML file, or the name of a shipped one.",
        epilog="Each key of a recipe is an option, such as --steps.distill.temperature=4. Try: mlflow-slim show recipe",
    )
    check = commands.add_parser("check", help="check a recipe and print it with every default; starts nothing")
    for command in (run, check):
        command.add_argument("recipe", help="path of a YAML file, or the name of a shipped recipe")
        command.add_argument("overrides", nargs=argparse.REMAINDER, help="options of the recipe, --key=value")
    run.add_argument("-v", "--verbose", action="store_true", help="also log what libraries say")
    commands.add_parser("list", help="list recipes, techniques, tasks and backends")
    show = commands.add_parser(
        "show", help="show the options of a technique, of recipes, or the text of a shipped recipe"
    )
    show.add_argument("name", help="such as distill.logits, recipe, or distill")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    overrides = getattr(options, "overrides", [])
    if {"-h", "--help"} & set(overrides):
        parser.parse_args([options.command, "--help"])
    try:
        if options.command == "run":
            return _run(options.recipe, parse_overrides(overrides), verbose=options.verbose)
        if options.command == "check":
            from .config import Recipe

            print(Recipe.load(options.recipe, parse_overrides(overrides)).to_yaml(), end="")  # noqa: T201
        elif options.command == "list":
            _list()
        else:
            _show(options.name)
    except SlimError as error:
        print(f"mlflow-slim: {error}", file=sys.stderr)  # noqa: T201
        if options.command == "run" and "MLFLOW_RUN_ID" in os.environ:
            from .tracking import explain_unopened_run

            explain_unopened_run(error)
        return (
            2
            if isinstance(error, ConfigError) or (isinstance(error, InputNotFound) and options.command != "run")
            else 1
        )
    except KeyboardInterrupt:
        print("mlflow-slim: stopped by Ctrl-C. What was logged before is kept.", file=sys.stderr)  # noqa: T201
        return 130
    return 0


def _run(source: str, overrides: dict[str, str], *, verbose: bool) -> int:
    from .config import Recipe

    recipe = Recipe.load(source, overrides)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("mlflow_slim")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    if not verbose:
        logging.getLogger("mlflow").setLevel(logging.ERROR)
    from .pipeline import run
    from .tables import print_table

    try:
        outcome = run(recipe)
        if not outcome.reports:  # a process that only trained along under torchrun
            return 0
        print_table(outcome.reports, title=f"\n{recipe.name}: {len(outcome.reports)} points")
        print(f"\nSee it in MLflow:\n{outcome.ui_command}")  # noqa: T201
    finally:
        logger.removeHandler(handler)
    return 0


def _list() -> None:
    from .catalog import backend_names, load_backend, task_names, technique_names
    from .config import recipe_names

    for title, names in (("recipes", recipe_names()), ("techniques", technique_names()), ("tasks", task_names())):
        print(f"{title}: {', '.join(names)}")  # noqa: T201
    for name in backend_names():
        missing = load_backend(name).is_available()
        print(f"backend: {name}" + (f" (not here: {missing})" if missing else ""))  # noqa: T201


def _show(name: str) -> None:
    from .catalog import find_technique, load_technique, technique_names
    from .config import Recipe, find_recipe, recipe_names
    from .errors import did_you_mean

    full = find_technique(name)
    if full in technique_names():
        technique = load_technique(full)
        print(f"{full}: {(technique.__doc__ or '').strip().splitlines()[0]}")  # noqa: T201
        _print_options(technique, "  ")
    elif name == "recipe":
        print("Keys of a recipe:")  # noqa: T201
        _print_options(Recipe, "  ")
    elif name in recipe_names():
        print(find_recipe(name).read_text(encoding="utf-8"), end="")  # noqa: T201
    else:
        known = [*technique_names(), *recipe_names(), "recipe"]
        raise ConfigError(f"There is nothing named {name!r} to show. {did_you_mean(name, known)}")


def _print_options(model: object, indent: str) -> None:
    from pydantic import BaseModel

    for key, info in model.model_fields.items():  # type: ignore[attr-defined]
        if isinstance(info.default, BaseModel):
            print(f"{indent}{key}:")  # noqa: T201
            _print_options(type(info.default), indent + "  ")
        else:
            default = "none" if info.default is None else info.default
            print(f"{indent}{key} = {default}  {info.description or ''}")  # noqa: T201


if __name__ == "__main__":
    raise SystemExit(main())
