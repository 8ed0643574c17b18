"""All experiments on one page: the claim, the protocol and the result of each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from learned_opt._src.files import write_whole
from meta_train.experiments.base import Experiment, Verdict

PAGE = "paper.md"


def write_page(results: Mapping[Path, Experiment], folder: Path) -> Path:
    """Write ``paper.md`` from the results in the folders of experiments.

    Args:
      results: the folders, each with its ``result.json`` and pictures, inside `folder`.
      folder: where the page is written.

    Returns:
      The path of the page.
    """
    found = {path: json.loads((path / "result.json").read_text()) for path in results}
    rows = [
        f"| [{path.name}](#{path.name}) | {_claim(experiment)} | {_verdict(found[path])} |\n"
        for path, experiment in results.items()
    ]
    head = "# The experiments of the PES paper\n\n| Experiment | Claim | In this run |\n|---|---|---|\n"
    sections = [_section(path, experiment, found[path]) for path, experiment in results.items()]
    page = folder / PAGE
    write_whole(page, "".join([head, *rows, *sections]))
    return page


def _section(path: Path, experiment: Experiment, result: Mapping[str, Any]) -> str:
    title, _, protocol = (experiment.protocol or "").strip().partition("\n\n")
    seeds = ", ".join(map(str, result["seeds"]))
    pictures = "".join(
        f"![{path.name}]({path.name}/{picture.name})\n\n" for picture in sorted(path.glob("*.png"))
    )
    return (
        f"\n## {path.name}\n\n{title}\n\n**{_verdict(result)}** at the {result['scale']} scale, seeds "
        f"{seeds}: {result['verdict']['text']}.\n\n{pictures}{protocol.strip()}\n"
    )


def _claim(experiment: Experiment) -> str:
    line = (experiment.protocol or "").strip().partition("\n")[0]
    return line.partition(": ")[2] or line


def _verdict(result: Mapping[str, Any]) -> str:
    return Verdict(**result["verdict"]).word.capitalize()
