"""Arrows between modules point one way, and importing the package costs next to nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mlflow_slim"
FILES = sorted(PACKAGE.rglob("*.py"))
MAY_IMPORT_MLFLOW = ("tracking", "flavor", "signatures", "evaluator", "foreign", "backends.pyfunc")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports(path: Path) -> set[str]:
    """Modules that a file imports when it is imported or used; those for type checkers only don't count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    here = ["mlflow_slim", *path.relative_to(PACKAGE).parts[:-1]]
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found.add(module)
            found.update(f"{module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_tracking_and_flavor_import_mlflow(path: Path) -> None:
    uses = any(name == "mlflow" or name.startswith("mlflow.") for name in imports(path))
    assert not uses or {name_of(path), name_of(path).split(".")[0]} & set(MAY_IMPORT_MLFLOW)


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name in ("techniques", "backends")], ids=name_of)
def test_plug_ins_never_import_their_siblings(path: Path) -> None:
    kind = path.parent.name
    siblings = {f"mlflow_slim.{kind}.{other.stem}" for other in path.parent.glob("*.py")} - {
        f"mlflow_slim.{kind}.__init__"
    }
    assert not imports(path) & siblings


@pytest.mark.parametrize("path", [p for p in FILES if "runtime" in p.parts], ids=name_of)
def test_the_runtime_imports_nothing_else_of_ours(path: Path) -> None:
    ours = {name for name in imports(path) if name.startswith("mlflow_slim")}
    assert all(name.startswith("mlflow_slim.runtime") for name in ours), ours


@pytest.mark.parametrize("path", [p for p in FILES if "measurement" in p.parts], ids=name_of)
def test_measuring_stands_on_the_first_three_modules_only(path: Path) -> None:
    allowed = ("mlflow_slim.errors", "mlflow_slim.artifact", "mlflow_slim.interfaces", "mlflow_slim.measurement")
    ours = {name for name in imports(path) if name.startswith("mlflow_slim")}
    assert all(name.startswith(allowed) for name in ours), ours


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "mlflow", "datasets", "pandas")
    code = f"import sys, mlflow_slim; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_commands_that_start_nothing_import_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from mlflow_slim.cli import main;"
        "assert main(['check', 'distill']) == 0; assert main(['list']) == 0;"
        "print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_the_package_metadata_lists_every_folder_with_code() -> None:
    text = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    folders = {".".join(path.parent.relative_to(PACKAGE.parent).parts) for path in FILES}
    assert all(f'"{folder}"' in text for folder in folders), folders
