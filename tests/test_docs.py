"""The documentation holds: its code runs, its links lead somewhere, its names and commands exist."""

import doctest
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import flowoe_lib as fo
from flowoe_lib.reproduce import pages

ROOT = Path(__file__).parents[1]
PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in pages(ROOT)}
CODE = {name: re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) for name, text in PAGES.items()}
LINKS = [(name, link) for name, text in PAGES.items() for link in re.findall(r"\]\(([^):]+)\)", text)]
NAMES = sorted({name for text in PAGES.values() for name in re.findall(r"`(flowoe_lib(?:\.\w+)+)`", text)})
COMMANDS = sorted(
    {name for text in PAGES.values() for name in re.findall(r"(?:`|^)make ([a-z-]+)", text, re.M)}
)
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = MAKEFILE.split(".PHONY: ")[1].splitlines()[0].split()
FRONT_DOOR = [name for name in dir(fo) if not isinstance(getattr(fo, name), ModuleType)]


@pytest.mark.parametrize("page", [name for name, blocks in CODE.items() if blocks])
def test_code_runs_as_it_stands(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in CODE[page]:
        exec(compile(block, page, "exec"), names)


def test_extensions_take_ten_lines_and_print_a_result() -> None:
    opening, *extensions = CODE["docs/extending.md"]
    expert, world, policy, dynamics, _, agent = extensions
    for block in [opening, *extensions]:
        assert len([line for line in block.splitlines() if line.strip()]) <= 10
    assert all("print(" in block.splitlines()[-1] for block in (expert, world, policy, dynamics, agent))


def anchors(text: str) -> set[str]:
    """What a link after # may name: headings in lower case, with hyphens for blanks."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_links_lead_somewhere(page: str, link: str) -> None:
    path, _, anchor = link.partition("#")
    target = (ROOT / page).parent / path if path else ROOT / page
    assert target.exists()
    assert not anchor or anchor in anchors(target.read_text(encoding="utf-8"))


def test_every_page_is_linked_from_another() -> None:
    linked = {((ROOT / page).parent / link.partition("#")[0]).resolve() for page, link in LINKS}
    assert [page for page in PAGES if page != "README.md" and ROOT / page not in linked] == []


def test_gallery_shows_every_figure_and_the_readme_three_at_most() -> None:
    shown = set(re.findall(r"!\[[^\]]+\]\(\.\./figures/(\w+\.png)\)", PAGES["docs/gallery.md"]))
    assert shown == {path.name for path in (ROOT / "figures").glob("*.png")}
    assert PAGES["README.md"].count("![") <= 3


def test_the_run_filled_the_result_blocks() -> None:
    texts = "\n".join(PAGES.values())
    filled = re.findall(r"<!-- (\w+):start -->\n(.*?)\n<!-- \1:end -->", texts, flags=re.DOTALL)
    assert {name for name, _ in filled} == {"headline", "claims", *(f"claim_{i}" for i in range(1, 7))}
    assert len(filled) == len(re.findall(r"<!-- \w+:start -->", texts))
    for name, body in filled:
        assert body == (ROOT / "figures" / f"readme_{name}.md").read_text(encoding="utf-8").strip()


@pytest.mark.parametrize("name", NAMES)
def test_names_of_the_library_exist(name: str) -> None:
    parts, found = name.split("."), None
    for i in range(1, len(parts) + 1):
        try:
            found = importlib.import_module(".".join(parts[:i]))
        except ModuleNotFoundError:
            fields = getattr(found, "__dataclass_fields__", {})
            found = fields[parts[i - 1]] if parts[i - 1] in fields else getattr(found, parts[i - 1])
    assert found is not None


def test_every_term_of_the_glossary_has_a_place() -> None:
    rows = [line for line in PAGES["docs/glossary.md"].splitlines() if line.startswith("| ")]
    terms = [row for row in rows if not row.startswith("| term |")]
    assert len(terms) > 50
    assert [row for row in terms if not re.search(r"`flowoe_lib\.[\w.]+` \|$", row)] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_documented_commands_are_targets(command: str) -> None:
    assert command in TARGETS
    subprocess.run(["make", "--dry-run", command], cwd=ROOT, check=True, capture_output=True)


def test_every_target_is_documented() -> None:
    told = subprocess.run(["make", "help"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert set(TARGETS) <= set(re.findall(r"^  make ([a-z-]+) +\w", told, flags=re.MULTILINE))
    assert set(TARGETS) <= set(re.findall(r"`make ([a-z-]+)[ `]", PAGES["docs/running.md"]))


def test_every_target_is_run_by_ci_or_by_a_test() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"].values()
    steps = [step.get("run", "") for job in jobs for step in job["steps"]]
    scripts = "\n".join([*steps, (ROOT / ".ci" / "run").read_text()])
    run = set(re.findall(r"^make ([a-z-]+)", scripts, flags=re.MULTILINE))
    assert re.search(r"^test: .*\n\t.* notebook-tests unit-tests lint$", MAKEFILE, flags=re.MULTILINE)
    assert '"--publish"' in (ROOT / "tests" / "test_reproduce.py").read_text()
    assert set(TARGETS) - run == {"notebooks"}


def test_the_front_door_has_few_names_and_does_not_load_torch() -> None:
    assert 20 <= len(FRONT_DOOR) <= 30
    code = "import sys, flowoe_lib; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("name", FRONT_DOOR)
def test_docstrings_of_the_front_door_follow_numpydoc(name: str) -> None:
    entry = getattr(fo, name)
    text = inspect.getdoc(entry) or ""
    summary, *_ = text.split("\n\n")
    assert summary.endswith(".")
    assert "\n" not in summary
    sections = dict(re.findall(r"^([A-Z]\w+)\n-+\n(.*?)(?=\n\n[A-Z]\w+\n-+\n|\Z)", text, flags=re.M | re.S))
    wanted = {"Parameters", "Examples"} | ({"Returns"} if inspect.isfunction(entry) else set())
    assert wanted <= set(sections)
    described = re.findall(r"^([*\w, ]+) : \S", sections["Parameters"], flags=re.M)
    given = [part.strip().lstrip("*") for names in described for part in names.split(",")]
    fields = getattr(entry, "__dataclass_fields__", None)
    assert given == list(fields or inspect.signature(entry).parameters)


@pytest.mark.parametrize("name", FRONT_DOOR)
def test_examples_of_the_front_door_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    [example] = doctest.DocTestFinder(recurse=False).find(getattr(fo, name), name, globs={})
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL
    result = doctest.DocTestRunner(optionflags=options).run(example)
    assert result.attempted > 1
    assert result.failed == 0, capsys.readouterr().out
