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
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import __version__
from .errors import ConfigError, InputNotFound, SlimError

if TYPE_CHECKING:
    from .pipeline import Outcome

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
    compare = commands.add_parser(
        "compare",
        help="rank the points of an experiment: which are on the frontier, and why the rest isn't",
        description="Reads points of any runs from MLflow, ranks those that may be compared, prints them, and logs a "
        "run with pictures and one HTML page. Each option is written --key=value; try: mlflow-slim show compare",
    )
    promote = commands.add_parser(
        "promote",
        help="put the best point that passes every rule behind an alias of the model registry",
        description="Chooses a point, proves its model, registers it once and moves the alias; --dry_run=true only "
        "says so, --rollback=true moves it back. Each option is written --key=value; try: mlflow-slim show promote",
    )
    sweep = commands.add_parser(
        "sweep",
        help="try many chains cheaply and measure what is worth keeping",
        description="Searches a space: a YAML file, sweep.small (the default), sweep.thorough or sweep.llm. Options "
        "are those of a recipe, and --search.<option>, --budget_minutes, --budget_kwh, --max_trials; try: mlflow-slim "
        "show sweep",
    )
    for command in (compare, promote, sweep):
        command.add_argument("overrides", nargs="*", help="options, --key=value")
    imports = commands.add_parser("import", help="log what another tool measured as points, listed and never ranked")
    imports.add_argument("kind", help="olive or optimum-benchmark")
    imports.add_argument("file", help="its JSON file")
    imports.add_argument("--experiment", help="name of the experiment; default: MLflow's own choice")
    cache = commands.add_parser(
        "cache",
        help="list, verify or clear what steps left for the next time",
        description="Outcomes of steps are kept, so that a recipe that was killed or changed goes on where it can. "
        "MLFLOW_SLIM_CACHE names the folder, or is off.",
    )
    actions = cache.add_subparsers(dest="action", required=True, metavar="action")
    actions.add_parser("ls", help="list the stored steps, the last used first")
    actions.add_parser("verify", help="compare every file with its sha256; damaged steps are set aside (exit code 1)")
    gc = actions.add_parser("gc", help="remove stored steps, the longest unused first; without a limit, all of them")
    gc.add_argument("--older-than", metavar="AGE", help="only those not used for this long, such as 30d or 12h")
    gc.add_argument("--max-size", metavar="SIZE", help="only until what is left is this small, such as 10GiB or 500MiB")
    gc.add_argument("--answers", action="store_true", help="teachers' answers too, which may have cost money")
    gc.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    show = commands.add_parser(
        "show", help="show the options of a technique, of recipes, or the text of a shipped recipe"
    )
    show.add_argument("name", help="such as distill.logits, recipe, or distill")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit code."""
    parser = _parser()
    words = list(sys.argv[1:] if argv is None else argv)
    # argparse takes options for its own unless a name stands before them.
    free = words[1:] if words[:1] in (["compare"], ["promote"], ["sweep"]) else None
    options = parser.parse_args(words if free is None else words[:1])
    overrides = getattr(options, "overrides", []) if free is None else free
    if {"-h", "--help"} & set(overrides):
        parser.parse_args([options.command, "--help"])
    try:
        if options.command == "run":
            return _run(options.recipe, parse_overrides(overrides), verbose=options.verbose)
        if options.command == "check":
            from .config import Recipe

            print(Recipe.load(options.recipe, parse_overrides(overrides)).to_yaml(), end="")  # noqa: T201
        elif options.command == "sweep":
            return _sweep(overrides)
        elif options.command == "import":
            from .imported import import_points

            runs = import_points(options.file, options.kind, experiment=options.experiment)
            print(f"{len(runs)} points were logged; they are listed and never ranked as measured here.")  # noqa: T201
        elif options.command == "compare":
            _compare(parse_overrides(overrides))
        elif options.command == "promote":
            _promote(parse_overrides(overrides))
        elif options.command == "list":
            _list()
        elif options.command == "cache":
            return _cache(options)
        else:
            _show(options.name)
    except SlimError as error:
        print(f"mlflow-slim: {error}", file=sys.stderr)  # noqa: T201
        if options.command in ("run", "compare", "promote", "sweep") and "MLFLOW_RUN_ID" in os.environ:
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

    def work() -> Outcome:
        from .pipeline import run

        return run(recipe)

    return _with_progress(work, recipe.name, verbose=verbose)


def _sweep(words: Sequence[str]) -> int:
    """The space is the first word that is no option, or the option ``space``, as MLproject gives it."""
    words = list(words)
    source = words.pop(0) if words and not words[0].startswith("--") and "=" not in words[0] else ""
    overrides = parse_overrides(words)
    source = source or overrides.pop("space", "") or "sweep.small"
    overrides.pop("space", None)
    from .search import Sweep
    from .sweeping import sweep

    checked = Sweep.load(source, overrides)
    return _with_progress(lambda: sweep(checked), checked.recipe.name, verbose=False)


def _with_progress(work: Callable[[], Outcome], name: str, *, verbose: bool) -> int:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("mlflow_slim")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    if not verbose:
        for name in ("mlflow", "bitsandbytes"):  # the latter reports kernels that nobody asked for
            logging.getLogger(name).setLevel(logging.ERROR)
    from .ledger import sentence
    from .tables import print_table

    try:
        outcome = work()
        if not outcome.reports:  # a process that only trained along under torchrun
            return 0
        print_table(outcome.reports, title=f"\n{name}: {len(outcome.reports)} points")
        if len(outcome.ledger) > 1:
            print("\nWhat each step did:\n" + "\n".join(f"  {sentence(line)}" for line in outcome.ledger))  # noqa: T201
        print(f"\nSee it in MLflow:\n{outcome.ui_command}")  # noqa: T201
    finally:
        logger.removeHandler(handler)
    return 0


def _compare(values: Mapping[str, str]) -> None:
    from .comparison import CompareOptions, compare, print_frontier, render

    options = CompareOptions.read(values)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    found = compare(options)
    if options.format != "table":
        print(render(found.frontier, options.format))  # noqa: T201
        return
    print_frontier(found.frontier)
    if options.output:
        print(f"\nThe page is in {options.output}")  # noqa: T201
    if found.run_id:
        print(f"\nSee it in MLflow (the page is report.html of run {found.run_id[:8]}):\n{found.ui_command}")  # noqa: T201


def _promote(values: Mapping[str, str]) -> None:
    import json

    from .promotion import PromoteOptions, promote
    from .tracking import describe_project_run

    options = PromoteOptions.read(values)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    decision = promote(options)
    lines = [str(decision)]
    lines += [f"waived [{one.rule}]: {one.reason}" for one in decision.waived]
    for run_id, reasons in list(decision.refused.items())[:20]:
        lines.append(f"not chosen {run_id[:8]}: " + "; ".join(f"[{one.rule}] {one.reason}" for one in reasons))
    print("\n".join(lines))  # noqa: T201
    describe_project_run("promotion", "\n\n".join(lines), {"decision.json": json.dumps(decision.record, indent=1)})


def _cache(options: argparse.Namespace) -> int:
    import time

    from .answers import remove_stores, stores
    from .cache import VARIABLE, StepCache

    cache = StepCache.from_environment()
    if cache is None:
        print(f"The step cache is off ({VARIABLE}).")  # noqa: T201
        return 0
    if options.action == "ls":
        entries = cache.entries()
        for entry in entries:
            days = (time.time() - entry.used) / 86400
            print(f"{entry.key[:12]}  {entry.content['technique']:20}  {entry.size / 2**20:9.1f} MiB  {days:6.1f} days")  # noqa: T201
        total = sum(entry.size for entry in entries) / 2**20
        print(f"{len(entries)} steps, {total:.1f} MiB, in {cache.root}")  # noqa: T201
        for folder, held, used in stores(cache.root):
            days = (time.time() - used) / 86400
            print(f"{folder.name[:12]}  answers of a teacher  {held / 2**20:9.1f} MiB  {days:6.1f} days")  # noqa: T201
        return 0
    if options.action == "verify":
        sound, damaged = cache.verify()
        for key in damaged:
            print(f"{key[:12]}  damaged, set aside")  # noqa: T201
        print(f"{len(sound)} steps are as they were written, {len(damaged)} are not.")  # noqa: T201
        return 1 if damaged else 0
    age = _quantity(options.older_than, {"m": 60, "h": 3600, "d": 86400, "w": 604800}, "--older-than", "30d")
    size = _quantity(
        options.max_size, {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "MB": 1e6, "GB": 1e9}, "--max-size", "10GiB"
    )
    removed = cache.collect(older_than_s=age, max_bytes=None if size is None else int(size), dry_run=options.dry_run)
    if options.answers:
        removed += remove_stores(cache, older_than_s=age, dry_run=options.dry_run)
    what = "would be removed" if options.dry_run else "removed"
    print(f"{len(removed)} {what}, {sum(bytes_ for _, bytes_ in removed) / 2**20:.1f} MiB, from {cache.root}")  # noqa: T201
    return 0


def _quantity(text: str | None, units: Mapping[str, float], option: str, example: str) -> float | None:
    """A number with a unit, such as 30d.

    >>> _quantity("1.5h", {"h": 3600}, "--older-than", "30d")
    5400.0
    """
    import re

    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", text)
    if found is None or found[2] not in units:
        raise ConfigError(f"{option} {text!r} is no number with one of {', '.join(units)}. Write it as {example}.")
    return float(found[1]) * units[found[2]]


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

    def of_compare() -> tuple[str, Any]:
        from .comparison import CompareOptions

        return "Options of compare", CompareOptions

    def of_promote() -> tuple[str, Any]:
        from .promotion import PromoteOptions

        return "Options of promote", PromoteOptions

    def of_sweep() -> tuple[str, Any]:
        from .search import Search

        return "Options of search, beside those of a recipe (show recipe)", Search

    sections: dict[str, Callable[[], tuple[str, Any]]] = {
        "recipe": lambda: ("Keys of a recipe", Recipe),
        "compare": of_compare,
        "promote": of_promote,
        "sweep": of_sweep,
    }
    full = find_technique(name)
    if full in technique_names():
        technique = load_technique(full)
        print(f"{full}: {(technique.__doc__ or '').strip().splitlines()[0]}")  # noqa: T201
        _print_options(technique, "  ")
    elif name in sections:
        what, section = sections[name]()
        print(f"{what}:")  # noqa: T201
        _print_options(section, "  ")
    elif name in recipe_names():
        print(find_recipe(name).read_text(encoding="utf-8"), end="")  # noqa: T201
    else:
        known = [*technique_names(), *recipe_names(), *sections]
        raise ConfigError(f"There is nothing named {name!r} to show. {did_you_mean(name, known)}")


def _print_options(model: object, indent: str) -> None:
    from pydantic import BaseModel

    for key, info in model.model_fields.items():  # type: ignore[attr-defined]
        if isinstance(info.default, BaseModel):
            print(f"{indent}{key}:")  # noqa: T201
            _print_options(type(info.default), indent + "  ")
        else:
            default = "(needed)" if info.is_required() else "none" if info.default is None else info.default
            default = ", ".join(default) or "none" if isinstance(default, tuple) else default
            print(f"{indent}{key} = {default}  {info.description or ''}")  # noqa: T201


if __name__ == "__main__":
    raise SystemExit(main())
