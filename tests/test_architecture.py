"""The arrows of docs/architecture.md: the allowed imports between packages and folders."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The other packages that each package may import.
PACKAGES = {
    "learned_opt": set(),
    "inner_tasks": {"learned_opt"},
    "checkpoints": {"learned_opt"},
    "meta_train": {"learned_opt", "inner_tasks", "checkpoints"},
}
# The folders of a package; each may import those before it.
FOLDERS = {
    "inner_tasks": ("networks", "datasets", "models", "problems", "tasks"),
    "meta_train": ("devices", "estimators", "outer", "report", "run", "experiments", "commands"),
}
# The numeric core, and the packages that it must not import.
CORE = ("devices", "estimators", "outer")
NOT_IN_THE_CORE = {"argparse", "tyro", "yaml", "rich", "wandb", "matplotlib", "orbax", "checkpoints"}


def modules() -> dict[str, Path]:
    """All modules of the project by name; a package has the name of its folder."""
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    return {name.removesuffix(".__init__"): file for name, file in zip(names, files, strict=True)}


def statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import in a module, including those inside functions, but without those for type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from statements(child)


def imports(file: Path, known: dict[str, Path]) -> set[str]:
    """The modules that a file imports, with full names for modules of the project."""
    found = set()
    for statement in statements(ast.parse(file.read_text())):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        else:
            assert statement.level == 0, f"{file}: import by the full name"
            whole = {f"{statement.module}.{alias.name}" for alias in statement.names}
            found |= {name if name in known else str(statement.module) for name in whole}
    return found


MODULES = modules()
IMPORTS = {name: imports(file, MODULES) for name, file in MODULES.items()}


@pytest.mark.parametrize("package", PACKAGES)
def test_arrows_between_packages(package: str) -> None:
    for name, imported in IMPORTS.items():
        if name.partition(".")[0] == package:
            others = {other.partition(".")[0] for other in imported} & PACKAGES.keys() - {package}
            assert others <= PACKAGES[package], name


@pytest.mark.parametrize("package", FOLDERS)
def test_arrows_between_folders(package: str) -> None:
    order = FOLDERS[package]
    folders = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
    assert folders == set(order), "a new folder needs its place in FOLDERS"
    for name, imported in IMPORTS.items():
        top, _, rest = name.partition(".")
        folder = rest.partition(".")[0]
        if top == package and folder in order:
            within = {other.split(".")[1] for other in imported if other.startswith(f"{package}.")}
            above = set(order[order.index(folder) + 1 :])
            assert not within & above, f"{name} imports {within & above}"


def test_no_circles() -> None:
    """Imports inside functions count, too."""
    project = {name: imported & MODULES.keys() for name, imported in IMPORTS.items()}
    graphlib.TopologicalSorter(project).prepare()


@pytest.mark.parametrize("folder", CORE)
def test_the_core_is_numbers_only(folder: str) -> None:
    for name, imported in IMPORTS.items():
        if name.startswith(f"meta_train.{folder}."):
            assert not {other.partition(".")[0] for other in imported} & NOT_IN_THE_CORE, name


def test_every_folder_says_what_lives_there() -> None:
    for name, file in MODULES.items():
        if file.name == "__init__.py":
            docstring = ast.get_docstring(ast.parse(file.read_text()))
            assert docstring, name
