"""Reading a file of settings, which anybody may have written.

It is a small regular file of YAML without aliases. Values are read as text: what they mean, and whether they
are valid, is decided by the setting, as for a flag.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from learned_opt import UserError

MAX_BYTES = 1_000_000
_NULL = "tag:yaml.org,2002:null"

# The text of a value, those of a list, or None for null.
Value = str | list[str] | None


class _Loader(yaml.SafeLoader):
    """Composes the nodes of a file without aliases, which can make a small file stand for a huge one."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases are not allowed", mark)
        return super().compose_node(parent, index)


def read_settings(path: Path) -> list[tuple[str, Value]]:
    """The settings in a file, in order: dotted names, as in ``estimator.sigma``, and values.

    Raises:
      UserError: the file is not a regular file of at most 1 MB that maps names to values.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"the configuration {path} is not a regular file")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UserError(f"the configuration {path} is larger than {MAX_BYTES:,} bytes")
        root = yaml.compose(content.decode(), Loader=_Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"the configuration {path} cannot be read: {_reason(error)}") from None
    except RecursionError:
        raise UserError(f"the configuration {path} cannot be read: it is nested too deeply") from None
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"the configuration {path} is not a mapping of settings to values")
    try:
        return list(_settings(root))
    except yaml.YAMLError as error:
        raise UserError(f"the configuration {path} cannot be read: {_reason(error)}") from None


def _settings(mapping: yaml.MappingNode, prefix: str = "") -> Iterator[tuple[str, Value]]:
    for key, value in mapping.value:
        name = prefix + _text(key)
        if isinstance(value, yaml.MappingNode):
            yield from _settings(value, f"{name}.")
        elif isinstance(value, yaml.SequenceNode):
            yield name, [_text(each) for each in value.value]
        else:
            yield name, None if value.tag == _NULL else _text(value)


def _text(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return node.value
    raise yaml.MarkedYAMLError(None, None, "expected a single value", node.start_mark)


def _reason(error: Exception) -> str:
    """The message of an error; YAML's have several lines."""
    return " ".join(str(error).split()).replace('in "<unicode string>",', "at")
