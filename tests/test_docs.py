"""The documentation is correct: its code runs, its flags exist, its links work."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import pytest

import learned_opt
from inner_tasks import task as tasks
from meta_train.commands import learned_opt as learned_opt_command
from meta_train.commands import meta_train as meta_train_command
from meta_train.commands import pes_paper as pes_paper_command
from meta_train.estimators import ESTIMATORS
from meta_train.estimators.metrics import METRICS
from meta_train.run.config import default_config, save_config

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# README.md and the pages of docs/ contain code; the other pages are checked for links and flags only. The
# first page of the site, docs/index.md, only includes README.md.
DOCUMENTATION = [page for page in sorted(DOCS.glob("*.md")) if page.name != "index.md"]
WITH_CODE = [path for path in (ROOT / "README.md", *DOCUMENTATION) if path.exists()]
PAGES = [*WITH_CODE, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "sweeps" / "README.md"]
PROGRAMS = ("meta-train", "learned-opt", "pes-paper")
# Flags of other programs that pages mention.
FOREIGN_FLAGS = {"--count", "--forward-signals", "--upgrade", "--write"}


class Block(NamedTuple):
    """A fenced code block of a page."""

    language: str
    line: int  # number of its first line of code, from 1
    text: str


def blocks(page: Path) -> list[Block]:
    found, start, language = [], 0, ""
    lines = page.read_text().splitlines()
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start:
            found.append(Block(language, start + 1, "\n".join(lines[start:number]) + "\n"))
            start = 0
        else:
            start, language = number + 1, line.removeprefix("```").strip()
    assert not start, f"{page}: the block before line {start} is not closed"
    return found


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def files_of(page: Path) -> Iterator[tuple[str, str]]:
    """Python blocks that begin with the name of a file, such as ``# my_tasks.py``: name and text."""
    for block in blocks(page):
        if block.language == "python" and (name := re.match(r"# (\w+\.py)\n", block.text)):
            yield name[1], block.text


def commands(page: Path) -> Iterator[tuple[int, list[str]]]:
    """Line and words of each call of this package's programs in the shell blocks of a page."""
    for block in blocks(page):
        if block.language not in ("bash", "sh", "console"):
            continue
        text = block.text.replace("\\\n", "  ")
        for number, line in enumerate(text.splitlines(), block.line):
            for part in re.split(r"&&|\|\||[|;]", line):
                words = shlex.split(part.replace("python -m meta_train", "meta-train"), comments=True)
                while words and re.fullmatch(r"\w+=.*", words[0]):
                    words.pop(0)
                if words and words[0] in PROGRAMS:
                    yield number, words


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with an untrained optimizer and a run of each task; registrations are undone afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    thetas = {
        name: learned_opt.get_architecture(name).init_theta(jax.random.key(0), 1)
        for name in ("mlp", "nadam-mlp")
    }
    learned_opt.save(tmp_path / "optimizer.safetensors", "mlp", thetas["mlp"], {})
    for name in tasks.task_names():
        run = tmp_path / "runs" / f"{name}-1"
        run.mkdir(parents=True)
        learned_opt.save(run / "optimizer.safetensors", "nadam-mlp", thetas["nadam-mlp"], {})
        save_config(default_config(name), run / "config.yaml")
    registries = (learned_opt.ARCHITECTURES, ESTIMATORS, tasks._REGISTRY)
    before, modules = [dict(registry) for registry in registries], set(sys.modules)
    yield tmp_path
    for registry, entries in zip(registries, before, strict=True):
        registry.clear()
        registry.update(entries)
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_code_runs_and_commands_are_accepted(page: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch):
    """Python code is executed. Commands are parsed and their settings validated, but not run.

    In this order, because commands refer to names that the page's code registers.
    """
    for name, text in files_of(page):
        (workplace / name).write_text(text)
    namespace = {"__name__": "__main__"}
    for block in blocks(page):
        if page in WITH_CODE and block.language == "python":
            # Empty lines in front, so that a traceback shows the line number of the page.
            source = "\n" * (block.line - 1) + block.text
            exec(compile(source, str(page), "exec", dont_inherit=True), namespace)

    parsed = []
    monkeypatch.setattr(learned_opt_command, "inspect", parsed.append)
    monkeypatch.setattr(learned_opt_command, "evaluate", parsed.append)
    for line, (program, *arguments) in commands(page):
        where = f"{name_of(page)}:{line}: {program} {shlex.join(arguments)}"
        try:
            if program == "meta-train":
                settings = meta_train_command.parse(arguments).settings
                # The folder of the run, for commands of the page that resume it.
                run = workplace / "runs" / f"{settings.task.name.rpartition(':')[2]}-1"
                run.mkdir(exist_ok=True)
                save_config(settings, run / "config.yaml")
            elif program == "pes-paper":
                pes_paper_command.check(pes_paper_command.parse(arguments))
            else:
                learned_opt_command.command(arguments)
                for name in getattr(parsed.pop(), "tasks", ()):
                    tasks.find_task(name)
        except SystemExit as end:
            assert end.code == 0, where
        except learned_opt.UserError as error:
            pytest.fail(f"{where}: {error}")


def test_configuration_files_are_accepted(tmp_path: Path):
    shown = [b.text for page in WITH_CODE for b in blocks(page) if b.language == "yaml"]
    assert shown
    for text in shown:
        (tmp_path / "config.yaml").write_text(text)
        meta_train_command.parse(["--config", str(tmp_path / "config.yaml")])


def test_a_wrong_command_would_be_noticed(tmp_path: Path):
    """The check above finds calls after variables, in continued lines and in pipes."""
    page = tmp_path / "page.md"
    page.write_text(
        "```bash\nls && WANDB_MODE=offline meta-train --updates 3 \\\n  --no-such-flag  # why\n"
        "learned-opt inspect x | tail\n```\n"
    )
    assert [words for _, words in commands(page)] == [
        ["meta-train", "--updates", "3", "--no-such-flag"],
        ["learned-opt", "inspect", "x"],
    ]
    with pytest.raises(SystemExit):
        meta_train_command.parse(["--updates", "3", "--no-such-flag"])


def flags_of(command, *arguments: str) -> set[str]:
    """The flags in a command's help."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        command([*arguments, "--help"])
    return set(re.findall(r"(?<![\w-])--[a-z][\w.-]*", text.getvalue())) - {"--help", "--no-debug"}


@pytest.fixture(scope="module")
def meta_train_flags() -> set[str]:
    return flags_of(meta_train_command.parse)


@pytest.fixture(scope="module")
def flags(meta_train_flags: set[str]) -> set[str]:
    """The flags of all commands."""
    evaluate = flags_of(learned_opt_command.command, "evaluate")
    experiments = (flags_of(pes_paper_command.parse, name) for name in pes_paper_command.EXPERIMENTS)
    return meta_train_flags.union({"--help"}, evaluate, *experiments)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_flags_in_sentences_exist(page: Path, flags: set[str]):
    """A flag is inline code that begins with two dashes, or such a word in inline code with a command."""
    named = set()
    for code in re.findall(r"`([^`\n]+)`", prose(page)):
        named |= set(re.findall(r"(?<![\w-])--[a-z][\w.-]*", code))
    assert named - FOREIGN_FLAGS <= flags


def test_every_flag_is_explained(meta_train_flags: set[str]):
    assert len(meta_train_flags) > 20
    explained = set(re.findall(r"`(--[\w.-]+)`", prose(DOCS / "meta-training.md")))
    assert explained >= meta_train_flags


def test_every_metric_is_explained():
    explained = dict(
        re.findall(r"^\| `(\w+)` \| (.+) \|$", prose(DOCS / "meta-training.md"), flags=re.MULTILINE)
    )
    assert {"update", "skipped", "seconds"} <= explained.keys()
    for metric in METRICS:
        assert explained[metric.name].startswith(metric.meaning)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes for the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{name_of(page)}: {target}"
        assert not anchor or anchor in anchors(linked), f"{name_of(page)}: {target}"


def test_every_page_is_in_the_index():
    index = (DOCS / "README.md").read_text()
    for page in DOCUMENTATION:
        assert page.name == "README.md" or f"({page.name})" in index, page.name


def test_every_page_is_on_the_site():
    listed = (DOCS / "index.md").read_text().splitlines()
    for page in DOCUMENTATION:
        assert page.stem in listed or f"All pages <{page.stem}>" in listed, page.name


def test_the_citation_has_the_version_of_the_package():
    assert f"\nversion: {learned_opt.__version__}\n" in (ROOT / "CITATION.cff").read_text()
