"""Every public name is documented: it has a docstring and an entry in the API reference."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("learned_opt", "inner_tasks", "meta_train", "checkpoints")
ENTRY = re.compile(r"^\.\. (automodule|auto\w+|py:data|py:type):: (\w[\w.]*)", flags=re.MULTILINE)


def public_modules() -> list[str]:
    """The packages, and the folders in them, that define ``__all__``."""
    inits = (init for package in PACKAGES for init in (ROOT / package).rglob("__init__.py"))
    public = (init.parent for init in inits if re.search(r"^__all__ = ", init.read_text(), re.MULTILINE))
    return sorted(folder.relative_to(ROOT).as_posix().replace("/", ".") for folder in public)


def public_names(module: str) -> dict[str, Any]:
    """The public members of a module, except for modules."""
    package = importlib.import_module(module)
    members = {name: getattr(package, name) for name in package.__all__}
    return {name: member for name, member in members.items() if not inspect.ismodule(member)}


def entries() -> dict[str, set[str]]:
    """The names in the reference, by module."""
    found: dict[str, set[str]] = {}
    for page in sorted((ROOT / "docs" / "api").glob("*.rst")):
        module = ""
        for kind, name in ENTRY.findall(page.read_text()):
            if kind == "automodule":
                module = name
            found.setdefault(module, set()).update({name} - {module})
    return found


def undocumented(name: str, member: Any) -> Iterator[str]:
    """The names without a docstring, for a function or for a class with its public methods and properties.

    Python's automatic text for a NamedTuple or a dataclass, ``Name(field, ...)``, does not count.
    """
    if inspect.isclass(member):
        text = vars(member).get("__doc__") or ""
        if not text.strip() or text.startswith(f"{member.__name__}("):
            yield name
        for attribute, value in vars(member).items():
            function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            if not attribute.startswith("_") and inspect.isfunction(function):
                yield from undocumented(f"{name}.{attribute}", function)
    elif inspect.isfunction(member) and not (member.__doc__ or "").strip():
        yield name


@pytest.mark.parametrize("module", public_modules())
def test_every_public_name_has_a_docstring(module: str):
    missing = [each for name, member in public_names(module).items() for each in undocumented(name, member)]
    assert not missing, f"without a docstring in {module}: {', '.join(missing)}"


@pytest.mark.parametrize("module", public_modules())
def test_the_reference_has_the_public_names(module: str):
    names, shown = set(public_names(module)), entries().get(module, set())
    assert shown == names, (
        f"docs/api, under '.. automodule:: {module}': add {sorted(names - shown)}, "
        f"remove {sorted(shown - names)}"
    )


def test_what_has_no_docstring_is_found():
    class Pair:
        left: int

        @property
        def right(self) -> int:
            return 1

        @classmethod
        def of_nothing(cls) -> Pair:
            return cls()

        def swap(self) -> Pair:
            """The other way round."""
            return self

    assert list(undocumented("Pair", Pair)) == ["Pair", "Pair.right", "Pair.of_nothing"]
    assert list(undocumented("find", lambda: None)) == ["find"]
