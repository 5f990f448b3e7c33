from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mlflow_slim.cli import main, parse_overrides
from mlflow_slim.comparison import CompareOptions
from mlflow_slim.config import Recipe, recipe_names
from mlflow_slim.errors import ConfigError, InputNotFound
from mlflow_slim.promotion import PromoteOptions
from mlflow_slim.search import Search

ROOT = Path(__file__).parent.parent
DISTILL = {"name": "d", "steps": [{"technique": "distill.logits"}]}


def faults(source: object, overrides: dict[str, object] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        Recipe.load(source, overrides)  # type: ignore[arg-type]
    return "\n".join(caught.value.faults)


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_validates_and_names_only_what_exists(name: str) -> None:
    recipe = Recipe.load(name)
    assert recipe.name == name
    assert recipe.steps or name in ("baseline", "evaluate")


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_opens_with_its_own_command(name: str) -> None:
    first = (ROOT / "recipes" / f"{name}.yaml").read_text().splitlines()[0]
    entry = "" if name == "main" else f"-e {name} "  # main is what `mlflow run` takes when none is named
    assert first == f"# mlflow run . {entry}--env-manager local"


def test_a_resolved_recipe_reads_back_as_the_same_recipe() -> None:
    recipe = Recipe.load("distill", {"steps.distill.layers": "[0, 2]", "region": "FRA", "seed": "7"})
    again = Recipe.load(yaml.safe_load(recipe.to_yaml()))
    assert again == recipe
    assert again.steps[0].layers == (0, 2)


def test_overrides_mean_the_same_from_text_and_from_python() -> None:
    text = Recipe.load(DISTILL, {"steps.distill.temperature": "4", "quick": "true", "measure.timing_s": "5"})
    typed = Recipe.load(DISTILL, {"steps.distill.temperature": 4, "quick": True, "measure.timing_s": 5})
    assert text == typed


def test_an_empty_override_leaves_the_recipe_as_it_is() -> None:
    assert Recipe.load(DISTILL, {"model": "", "steps.distill.alpha": ""}) == Recipe.load(DISTILL)


@pytest.mark.parametrize("column", ["1", "no", "true", "2024-01-01", "a/b c", "Ünï cödé", "null?"])
def test_a_column_keeps_the_name_the_user_typed(column: str) -> None:
    assert Recipe.load(DISTILL, {"label": column}).label == column


def test_all_faults_are_reported_at_once_with_the_nearest_name() -> None:
    found = faults(
        {**DISTILL, "sead": 1},
        {"steps.distil.alpha": 1, "steps.distill.temperature": -1, "task": "text-clasification", "measure.pue": "x"},
    )
    assert "Did you mean 'seed'?" in found
    assert "Did you mean 'distill'?" in found
    assert "steps[0].temperature must be greater than 0, got -1." in found
    assert "Did you mean 'text-classification'?" in found
    assert "measure.pue" in found
    assert len(found.splitlines()) == 5


def test_a_share_given_in_percent_is_explained() -> None:
    assert "Write 0.5 for 50 %." in faults(DISTILL, {"steps.distill.alpha": 50})


def test_an_unknown_option_of_a_step_names_the_known_ones() -> None:
    found = faults({"steps": [{"technique": "distill.logits", "temprature": 2}]})
    assert found.startswith("Unknown option 'steps[0].temprature'. Did you mean 'temperature'?")


def test_an_unknown_technique_suggests_the_nearest() -> None:
    assert "Did you mean 'distill.logits'?" in faults({"steps": [{"technique": "distil.logits"}]})


def test_a_kind_that_repeats_is_addressed_by_position() -> None:
    same = {"steps": [{"technique": "distill.logits"}, {"technique": "distill.logits"}]}
    assert "Write steps.0.alpha or steps.1.alpha." in faults(same, {"steps.distill.alpha": 1})
    twice = {"steps": [{"technique": "distill.logits"}, {"technique": "distill.hidden"}]}
    advice = "Write steps.distill.logits.alpha or steps.distill.hidden.alpha."
    assert advice in faults(twice, {"steps.distill.alpha": 1})
    recipe = Recipe.load(twice, {"steps.1.alpha": "0.25", "steps.distill.logits.alpha": "0.75"})
    assert [step.alpha for step in recipe.steps] == [0.75, 0.25]


def test_region_and_intensity_together_are_refused() -> None:
    assert "Keep one of them" in faults(DISTILL, {"region": "FRA", "carbon_intensity": 50})


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe.load(DISTILL).seed = 3  # type: ignore[misc]


def test_a_missing_recipe_names_the_shipped_ones() -> None:
    with pytest.raises(InputNotFound, match=r"Did you mean 'distill'\?"):
        Recipe.load("distil")


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words", "a: &x 1\nb: *x\n", "a: 1\na: 2\n", "a: [1\n"])
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        Recipe.load(path)


def test_words_of_a_command_line_become_overrides() -> None:
    words = ["--model=./a b", "--steps.distill.temperature", "4", "seed=1", "--text=", "--x=a=b"]
    assert parse_overrides(words) == {
        "model": "./a b", "steps.distill.temperature": "4", "seed": "1", "text": "", "x": "a=b",
    }  # fmt: skip


@pytest.mark.parametrize("words", [["--model"], ["stray"], ["--a", "--b=1"]])
def test_a_word_without_value_is_a_fault(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="Write"):
        parse_overrides(words)


def test_check_prints_the_resolved_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "distill", "--seed", "5"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["seed"] == 5


def test_a_wrong_recipe_exits_with_2_and_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "distill", "--sed=5"]) == 2
    assert "Did you mean 'seed'?" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["--ver=1", "--he=1", "--=1"])
def test_options_of_a_recipe_are_never_taken_for_the_commands_own(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "distill", word]) == 2
    assert "Unknown option" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["price_per_hour", "measure.requests_per_day", "measure.cpu_power_w"])
@pytest.mark.parametrize("value", ["inf", "nan", "1e400"])
def test_numbers_of_a_recipe_are_finite(key: str, value: str) -> None:
    assert f"{key} must be a finite number, got '{value}'." in faults(DISTILL, {key: value})


@pytest.mark.parametrize("command", [["list"], ["show", "distill.hidden"], ["show", "recipe"], ["show", "distill"]])
def test_list_and_show_say_something(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command) == 0
    assert len(capsys.readouterr().out.splitlines()) > 4


def test_show_of_an_unknown_name_suggests_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "distill.logit"]) == 2
    assert "Did you mean 'distill.logits'?" in capsys.readouterr().err


COMMANDS = {"compare": CompareOptions, "promote": PromoteOptions}
KEYS = {"space", *Search.model_fields}  # of a sweep, beside those of a recipe


def test_mlproject_declares_every_parameter_bare_and_every_recipe() -> None:
    """A placeholder inside quotes would let a value break out of them; ``--x={x}`` can't become an option."""
    project = yaml.safe_load((ROOT / "MLproject").read_text())
    assert set(project["entry_points"]) == {*recipe_names(), *COMMANDS, "sweep"}
    for name, entry in project["entry_points"].items():
        words, start = entry["command"].split(), [name] if name in {*COMMANDS, "sweep"} else ["run", name]
        assert words[: 3 + len(start)] == ["python", "-m", "mlflow_slim.cli", *start]
        assert words[3 + len(start) :] == [f"--{parameter}={{{parameter}}}" for parameter in entry["parameters"]]
        assert all(info == {"type": "string", "default": ""} for info in entry["parameters"].values())
        known = set(COMMANDS.get(name, Recipe).model_fields) | (KEYS if name == "sweep" else set())
        assert set(entry["parameters"]) <= known


def test_readme_prints_the_two_lines_that_do_all_the_set_up() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert "    pip install -r requirements.txt && mlflow run . -e distill --env-manager local" in lines
    assert "    pip install -r requirements.txt && pytest" in lines
    assert len(lines) < 200


def test_readme_or_what_it_links_names_every_parameter_of_the_entry_points() -> None:
    readme = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/choosing.md"))
    project = yaml.safe_load((ROOT / "MLproject").read_text())
    for entry in project["entry_points"].values():
        assert all(f"`{parameter}`" in readme for parameter in entry["parameters"])


def test_a_region_that_does_not_exist_is_found_by_check() -> None:
    with pytest.raises(ConfigError, match="'FR'"):
        Recipe.load("distill", {"region": "FR"})


def test_other_steps_are_named_on_the_command_line_and_their_options_after() -> None:
    wanted = {"steps.speculate.assistant": "./small", "steps": "quantize.weight_only, speculate.assistant"}
    recipe = Recipe.load("speculate-llm", {**wanted, "export.backends": "onnxruntime"})
    assert [step.name for step in recipe.steps] == ["quantize.weight_only", "speculate.assistant"]
    assert recipe.steps[1].assistant == "./small"
    with pytest.raises(ConfigError, match="tokns"):
        Recipe.load("speculate-llm", {"steps": "speculate.lookup", "steps.speculate.tokns": 3})
    assert Recipe.load("prune", {"steps": "prune.depth"}).steps[0].name == "prune.depth"
