"""``module:name``: how an object in a user's module is found and imported."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from learned_opt._src.errors import UserError


class _CurrentFolder:
    """Finds modules in the current folder that are found nowhere else.

    The folder is not added to ``sys.path``: there it would come before the import hooks of editable installs,
    and packages that search ``sys.path`` for plugins would run those in the folder.
    """

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if path is not None:  # a module inside a package
            return None
        return PathFinder.find_spec(name, [""], target)  # "" is the current folder, as in ``sys.path``


def import_module_of(name: str, kind: str) -> ModuleType:
    """Import the module of a ``module:name``.

    From then on the current folder is searched for modules, after all other places, so that the module finds
    its neighbours even if it imports them later.

    Args:
      name: ``module:name``.
      kind: the kind of object that has this name, for the message.

    Raises:
      UserError: the module cannot be imported.
    """
    if _CurrentFolder not in sys.meta_path:
        sys.meta_path.append(_CurrentFolder)
    module = name.rpartition(":")[0]
    try:
        return importlib.import_module(module)
    except Exception as error:  # any exception is an error in the user's file
        raise UserError(f"{kind} '{name}': module '{module}' cannot be imported ({error})") from error


def find_in_module(name: str, kind: str) -> Any:
    """Import the module of a ``module:name``, and return its attribute `name`.

    Args:
      name: ``module:name``.
      kind: the kind of object that has this name, for the message.

    Raises:
      UserError: the module cannot be imported, or has no such attribute.
    """
    module, short = import_module_of(name, kind), name.rpartition(":")[2]
    if not hasattr(module, short):
        raise UserError(f"{kind} '{name}': the module '{module.__name__}' has no '{short}'")
    return getattr(module, short)
