"""The driver runs what is not up to date and nothing else, on a project of two one-line notebooks."""

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import nbformat
import pytest

from flowoe_lib.data.calibration import Calibration
from flowoe_lib.recipes import sha256
from flowoe_lib.reproduce import (
    POLICY,
    USE_PRETRAINED,
    Record,
    ReproductionError,
    done,
    notebooks_in_order,
    plan,
    publish,
    published,
    refuse_edits,
    remove_strays,
    run,
    update_readme,
)
from flowoe_lib.store import Workspace, atomic_write

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "flowoe_lib"
OPEN = """
from flowoe_lib.store import Workspace, atomic_write
ws = Workspace.open(PROFILE)
def write(name, text):
    atomic_write(ws.figures / name, text.encode())
"""
FIRST = OPEN + 'ws.store.write("seed", N)\nwrite("one.csv", f"{N}")'
SECOND = OPEN + 'write("readme_headline.md", f"seed {ws.store.read_json(\'seed\')}")'
FAILING = OPEN + 'raise ArithmeticError("the price went negative")'


def write_notebook(path: Path, *sources: str) -> None:
    """A notebook with a parameters cell and one cell for each source."""

    def cell(number: int, source: str, *tags: str) -> dict[str, Any]:
        head = {"cell_type": "code", "id": f"cell-{number}", "execution_count": None}
        return head | {"metadata": {"tags": list(tags)}, "outputs": [], "source": source}

    parameters = cell(0, 'PROFILE = "full"\nN = 7', "parameters")
    cells = [parameters, *(cell(i, source) for i, source in enumerate(sources, 1))]
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": cells}
    path.write_text(json.dumps(notebook))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "notebooks").mkdir()
    shutil.copytree(LIBRARY, tmp_path / "flowoe_lib", ignore=shutil.ignore_patterns("*.pyc.*"))
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "constraints.txt").touch()
    # jsonschema, which papermill brings, does without this package, whose import takes a second.
    (tmp_path / "rfc3987_syntax.py").write_text("raise ImportError")
    (tmp_path / "README.md").write_text("# T\n<!-- headline:start -->old<!-- headline:end -->\nend\n")
    (tmp_path / "docs" / "claims").mkdir(parents=True)
    (tmp_path / "docs" / "claims" / "1.md").write_text("<!-- headline:start -->\n<!-- headline:end -->\n")
    (tmp_path / "notebooks" / "quick.json").write_text('{"01_first": {"N": 3}}')
    write_notebook(tmp_path / "notebooks" / "01_first.ipynb", FIRST)
    write_notebook(tmp_path / "notebooks" / "02_second.ipynb", SECOND)
    return tmp_path


def command(project: Path, *options: str) -> tuple[list[str], dict[str, Any]]:
    # The driver must see to it itself that kernels import this library and where figures go.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["FLOWOE_FIGURES"] = str(project / "elsewhere")
    where = {"cwd": project, "env": environment, "text": True}
    return [sys.executable, "-m", "flowoe_lib.reproduce", *options], where


def drive(project: Path, *options: str) -> tuple[int, list[str], str]:
    """Return code, the notebooks that were run, and everything printed."""
    line, where = command(project, *options)
    result = subprocess.run(line, **where, capture_output=True, timeout=120, check=False)
    ran = [text.split()[0] for text in result.stdout.splitlines() if text.endswith(" run")]
    return result.returncode, ran, result.stdout + result.stderr


def files(project: Path) -> dict[str, int]:
    """When each file a run may write was last changed."""
    folders = ("build", "artifacts", "figures")
    return {str(f): f.stat().st_mtime_ns for d in folders for f in (project / d).rglob("*") if f.is_file()}


def test_runs_once_and_again_only_what_changed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = "01_first", "02_second"
    assert drive(project)[:2] == (0, [first, second])
    assert (project / "figures" / "one.csv").read_text() == "7"
    assert (
        "<!-- headline:start -->\nseed 7\n<!-- headline:end -->\nend" in (project / "README.md").read_text()
    )
    assert "start -->\nseed 7\n<!--" in (project / "docs" / "claims" / "1.md").read_text()

    before = files(project)
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    code, ran, printed = drive(project)
    monkeypatch.delenv("PYTHONPROFILEIMPORTTIME")
    assert (code, ran, files(project)) == (0, [], before)
    # A run without work is fast, because slow imports are avoided.
    imported = set(re.findall(r"^import time:.*\| +(\w+)$", printed, flags=re.MULTILINE))
    assert imported.isdisjoint({"torch", "pandas", "papermill"})
    assert "tqdm" in imported

    write_notebook(project / "notebooks" / "02_second.ipynb", SECOND + "\n2")
    assert drive(project)[:2] == (0, [second])

    (project / "figures" / "one.csv").unlink()
    (project / "build" / "full" / "02_second.ipynb").unlink()
    assert drive(project)[:2] == (0, [first, second])

    (project / "artifacts" / "full" / "seed.json").write_text("8")
    assert drive(project)[:2] == (0, [first])
    assert (project / "artifacts" / "full" / "seed.json").read_text() == "7"

    (project / "flowoe_lib" / "extra.py").write_text("")
    assert drive(project)[:2] == (0, [first, second])


def test_own_data_is_an_input_and_its_figures_stay_private(project: Path) -> None:
    (project / "notebooks" / "mine.csv").write_text("1")
    first = project / "notebooks" / "01_first.ipynb"
    write_notebook(first, OPEN + 'ws.store.write("seed", N)\nwrite("one.csv", open("mine.csv").read())')
    assert drive(project)[:2] == (0, ["01_first", "02_second"])
    (project / "notebooks" / "mine.csv").write_text("2")
    assert drive(project)[:2] == (0, ["01_first", "02_second"])
    assert (project / "figures" / "one.csv").read_text() == "2"
    (project / "notebooks" / "mine.csv").write_text("3")
    first.write_text(first.read_text().replace("N = 7", "N = 7\\nDATA = 'mine.csv'"))
    assert drive(project)[:2] == (0, ["01_first", "02_second"])
    assert (project / "figures" / "one.csv").read_text() == "2"
    assert (project / "build" / "lab" / "full" / "one.csv").read_text() == "3"
    assert "seed 7" in (project / "README.md").read_text()


def test_figures_of_every_committed_notebook_are_published() -> None:
    workspace = Workspace(ROOT, "full")
    assert {task.figures for task in plan(workspace)} == {workspace.figures}


def test_quick_keeps_apart_from_full(project: Path) -> None:
    code, ran, printed = drive(project, "--profile", "quick")
    assert (code, ran) == (0, ["01_first", "02_second"])
    assert f"too few days for conclusions: {project / 'build' / 'quick'}\n" in printed
    assert (project / "build" / "quick" / "figures" / "one.csv").read_text() == "3"
    assert (project / "artifacts" / "quick" / "seed.json").read_text() == "3"
    assert not (project / "figures").exists()
    assert not (project / "artifacts" / "full").exists()
    assert "old" in (project / "README.md").read_text()


def test_failure_shows_the_cell_and_the_next_run_resumes(project: Path) -> None:
    second = project / "notebooks" / "02_second.ipynb"
    write_notebook(second, FAILING)
    code, ran, printed = drive(project)
    build = project / "build" / "full"
    assert (code, ran) == (1, ["01_first"])
    assert "ArithmeticError: the price went negative" in printed
    assert str(build / "02_second.failed.ipynb") in printed
    assert sorted(p.name for p in build.iterdir()) == [
        "01_first.done.json",
        "01_first.ipynb",
        "02_second.failed.ipynb",
    ]

    write_notebook(second, SECOND)
    assert drive(project)[:2] == (0, ["02_second"])
    assert not (build / "02_second.failed.ipynb").exists()


HOLDING = """
from flowoe_lib.sweep import sweep
def hold():
    import builtins
    builtins.alive = open("alive", "wb", buffering=0)
sweep(hold, [()])
hold()
alive.write(b"x")
import time
time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_run_is_resumed(project: Path, how: signal.Signals) -> None:
    second = project / "notebooks" / "02_second.ipynb"
    write_notebook(second, HOLDING)
    # Every living process holds this pipe open for writing.
    alive = project / "notebooks" / "alive"
    os.mkfifo(alive)
    reader = os.open(alive, os.O_RDONLY | os.O_NONBLOCK)
    line, where = command(project)
    # A test run in the background of a shell has interrupts ignored, and would hand that on.
    heeded = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(line, **where, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    signal.signal(signal.SIGINT, heeded)
    assert select.select([reader], [], [], 120)[0]
    assert os.read(reader, 1) == b"x"
    process.send_signal(how)
    _, printed = process.communicate(timeout=120)
    assert process.returncode == (-how if how == signal.SIGKILL else 130), printed
    # Idle workers would go on for five minutes.
    assert select.select([reader], [], [], 120)[0]
    assert os.read(reader, 1) == b""
    os.close(reader)
    assert not (project / "build" / "full" / "02_second.done.json").exists()

    write_notebook(second, SECOND)
    assert drive(project)[:2] == (0, ["02_second"])
    for path in (project / "build" / "full").iterdir():
        json.loads(path.read_text())
    assert not list(project.rglob("*.tmp"))
    assert not list(project.rglob("*.running.ipynb"))


def test_publishing_leaves_clean_executed_notebooks(project: Path) -> None:
    code, _, printed = drive(project, "--publish")
    assert code == 0, printed
    for path in (project / "notebooks").glob("*.ipynb"):
        notebook = json.loads(path.read_text())
        nbformat.validate(notebook)
        assert [cell["execution_count"] for cell in notebook["cells"]] == [1, 2]
        assert "papermill" not in path.read_text()
        assert "injected" not in path.read_text()
    assert drive(project, "--publish")[:2] == (0, [])


# Written out here, so that kernels need not import the packages that calibrate.
CALIBRATION = {field.name: {"value": 0.5} for field in fields(Calibration)}
TRAINS = (
    OPEN
    + f"CALIBRATION = {CALIBRATION}"
    + """
import torch
from flowoe_lib.policies.flow import EndpointField, TrainingRun, pack
from flowoe_lib.market.ranges import TrainingRange
from dataclasses import asdict
field = EndpointField(torch.Generator().manual_seed(N), width=4)
card = {"range": asdict(TrainingRange((1.0, 2.0), -0.5)), "n_buckets": 9, "training": {}, "scores": {}}
ws.store.write("universal_policies", pack({0: TrainingRun(field, {"utility": torch.zeros(1)})}))
ws.store.made("runs", pack, {0: TrainingRun(field, {"utility": torch.zeros(1)})})
ws.store.write("universal_card", card)
ws.store.write("calibration", CALIBRATION)
write("scorecard.csv", "scores")
write("readme_headline.md", "told")
"""
)
TRADES = "from flowoe_lib.training.pretrained import load_pretrained\nprint(load_pretrained().n_buckets)"


def test_publishing_ships_the_trained_policy_before_notebooks_use_it(project: Path) -> None:
    shutil.rmtree(project / POLICY.parent)
    for old in (project / "notebooks").glob("0*.ipynb"):
        old.unlink()
    write_notebook(project / "notebooks" / "01_first.ipynb", TRAINS)
    write_notebook(project / "notebooks" / "18_your_order.ipynb", TRADES)
    (project / "notebooks" / "quick.json").write_text("{}")
    # There is no trained policy yet.
    code, _, printed = drive(project)
    assert code == 1
    assert "universal.json: no such file" in printed
    code, ran, printed = drive(project, "--publish")
    assert code == 0, printed
    assert ran == ["18_your_order"]
    assert "is the one that was trained here" in printed
    assert "2 of 2 sets of weights that come with the notebooks are those trained here" in printed
    runs = project / "notebooks" / "results" / "runs.safetensors"
    assert runs.read_bytes() == (project / "artifacts" / "full" / "runs.safetensors").read_bytes()
    assert json.loads((project / POLICY).read_text())["n_buckets"] == 9
    # Another policy is reported, and left where it is.
    first = project / "notebooks" / "01_first.ipynb"
    first.write_text(first.read_text().replace("N = 7", "N = 8"))
    code, _, printed = drive(project)
    assert code == 0, printed
    assert "is not to the bit the one (a weight differs by" in printed


def test_published_renumbers_results_and_keeps_tags() -> None:
    progress = {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "3/4 [00:01<00:00]"}
    bar = {"output_type": "display_data", "data": progress, "metadata": {}}

    def cell(count: int, *tags: str) -> dict[str, Any]:
        result = {"output_type": "execute_result", "execution_count": count, "data": {}, "metadata": {}}
        metadata = {"tags": list(tags), "papermill": {}, "execution": {}}
        return {
            "cell_type": "code",
            "execution_count": count,
            "source": "x",
            "outputs": [bar, result],
            "metadata": metadata,
        }

    cells = [cell(1, "parameters"), cell(2, "injected-parameters"), cell(3)]
    clean = published({"cells": cells, "metadata": {"papermill": {}, "widgets": {}, "kernelspec": {}}})
    assert clean["metadata"] == {"kernelspec": {}}
    assert [c["metadata"] for c in clean["cells"]] == [{"tags": ["parameters"]}, {}]
    assert [c["execution_count"] for c in clean["cells"]] == [1, 2]
    assert [[o["execution_count"] for o in c["outputs"]] for c in clean["cells"]] == [[1], [2]]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--profile", "huge"], 2, "invalid choice: 'huge'"),
        (["--profile", "quick", "--publish"], 2, "--publish needs --profile full"),
    ],
)
def test_bad_options_are_refused(project: Path, options: list[str], code: int, message: str) -> None:
    got, _, printed = drive(project, *options)
    assert (got, message in printed) == (code, True), printed


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("notebooks/quick.json", '{"01_first": {"M": 3}}', "01_first.ipynb: .* does not define M"),
        ("notebooks/quick.json", '{"01_frist": {}}', "quick.json: there is no notebook 01_frist"),
        ("notebooks/quick.json", "{", "quick.json: Invalid JSON: .*line 1"),
        ("notebooks/quick.json", "[3]", "quick.json: Input should be"),
        ("notebooks/quick.json", '{"01_first": 3}', "quick.json: 01_first: Input should be"),
        ("notebooks/quick.json", None, "No such file .*quick.json"),
        ("notebooks/02_second.ipynb", '{"cells": []}', "needs one cell tagged 'parameters', has 0"),
        (
            "notebooks/02_second.ipynb",
            '{\n<<<<<<< ours\n"cells": []}',
            "02_second.ipynb: Invalid JSON: .*line 2",
        ),
        ("notebooks/02_second.ipynb", '\ufeff{"cells": []}', "02_second.ipynb: Invalid JSON: .*line 1"),
        ("notebooks/02_second.ipynb", "[" * 9999, "02_second.ipynb: Invalid JSON: recursion"),
        (
            "notebooks/02_second.ipynb",
            '{"cells": [{}]}',
            "02_second.ipynb: cells: 0: cell_type: Field required",
        ),
        ("constraints.txt", None, "No such file .*constraints.txt"),
    ],
)
def test_bad_projects_are_refused_before_anything_runs(
    project: Path, file: str, content: str | None, message: str
) -> None:
    (project / file).unlink()
    if content is not None:
        (project / file).write_text(content, encoding="utf-8")
    code, ran, printed = drive(project, "--profile", "quick")
    assert (code, ran) == (1, [])
    assert re.match(f"error: .*{message}", printed)
    assert "Traceback" not in printed


def test_a_parameters_cell_that_is_not_python_is_refused(project: Path) -> None:
    second = project / "notebooks" / "02_second.ipynb"
    second.write_text(second.read_text().replace("N = 7", "N = = 7"))
    with pytest.raises(ReproductionError, match=r"02_second\.ipynb: its parameters cell is not Python"):
        plan(Workspace(project, "full"))


def test_a_run_outside_a_checkout_is_refused(project: Path) -> None:
    (project / "pyproject.toml").unlink()
    code, ran, printed = drive(project)
    assert (code, ran) == (1, [])
    assert printed.startswith("error: no folder with pyproject.toml")


@pytest.mark.parametrize(
    "change",
    [
        lambda record: b"{",
        lambda record: b"[" * 9999,
        lambda record: b"\xff",
        lambda record: json.dumps([record]).encode(),
        lambda record: b"{}",
        lambda record: json.dumps(record | {"outputs": {}}).encode(),
        lambda record: json.dumps(record | {"outputs": {"a\0": ""}}).encode(),
        lambda record: json.dumps(record | {"outputs": {"notebooks": ""}}).encode(),
        lambda record: json.dumps(record | {"seconds": "long"}).encode(),
        lambda record: json.dumps({k: v for k, v in record.items() if k != "seconds"}).encode(),
    ],
)
def test_a_damaged_record_does_not_count(project: Path, change: Callable[[dict[str, Any]], bytes]) -> None:
    task = plan(Workspace(project, "full"))[0]
    atomic_write(task.executed, b"executed")
    outputs = {"build/full/01_first.ipynb": sha256(b"executed")}
    record = Record(digest=task.digest, seconds=1.0, outputs=outputs)
    atomic_write(task.record, record.model_dump_json().encode())
    assert done(task, project) == record
    atomic_write(task.record, change(record.model_dump()))
    assert done(task, project) is None


EDITED = """
from pathlib import Path
file = Path("..", {file!r})
content = file.read_text()
file.write_text(content + " ")
file.write_text(content)
"""


@pytest.mark.parametrize(
    "file", ["flowoe_lib/market/model.py", "notebooks/01_first.ipynb", "constraints.txt"]
)
def test_an_edit_that_is_undone_during_a_notebook_fails_the_run(project: Path, file: str) -> None:
    write_notebook(project / "notebooks" / "01_first.ipynb", FIRST, EDITED.format(file=file))
    code, ran, printed = drive(project)
    assert (code, ran) == (1, [])
    assert f"error: edited during the run: {file}. Start the run again" in printed
    assert not (project / "build" / "full" / "01_first.done.json").exists()


def test_edits_between_notebooks_and_before_publishing_are_refused(project: Path) -> None:
    workspace = Workspace(project, "full")
    tasks = plan(workspace)
    refuse_edits(tasks, project)
    (project / "flowoe_lib" / "extra.py").touch()
    with pytest.raises(ReproductionError, match=r"edited during the run: flowoe_lib/extra\.py"):
        run(tasks[1], workspace)
    with pytest.raises(ReproductionError, match=r"edited during the run: flowoe_lib/extra\.py"):
        publish(tasks, workspace)
    (project / "flowoe_lib" / "extra.py").unlink()
    os.utime(tasks[1].notebook, (0, 0))
    refuse_edits(tasks[:1], project)
    with pytest.raises(ReproductionError, match=r"edited during the run: notebooks/02_second\.ipynb"):
        publish(tasks, workspace)


def test_readme_block_without_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("<!-- table:start --><!-- table:end -->")
    with pytest.raises(ReproductionError, match=r"block 'table' has no .*readme_table\.md"):
        update_readme(tmp_path / "README.md", tmp_path)


def test_workspace_is_found_from_below_and_refused_elsewhere(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project / "notebooks")
    monkeypatch.delenv("FLOWOE_FIGURES", raising=False)
    workspace = Workspace.open("full")
    assert workspace.root == project
    assert workspace.figures == project / "build" / "lab" / "full"
    monkeypatch.setenv("FLOWOE_FIGURES", str(project / "elsewhere"))
    assert Workspace.open("quick").figures == project / "elsewhere"
    with pytest.raises(ValueError, match="'slow': must be one of full, quick"):
        Workspace.open("slow")
    (project / "pyproject.toml").unlink()
    with pytest.raises(FileNotFoundError, match=r"no folder with pyproject\.toml"):
        Workspace.open("full")


def test_stray_temporary_files_are_swept(tmp_path: Path) -> None:
    old, young = (tmp_path / "figures" / f".{name}.tmp" for name in ("old", "young"))
    for path in (old, young):
        atomic_write(path, b"half")
    os.utime(old, (0, 0))
    remove_strays([tmp_path])
    assert (old.exists(), young.exists()) == (False, True)


def test_notebooks_run_by_number_and_those_that_load_the_policy_last(tmp_path: Path) -> None:
    for name in ("18_your_order", "00_explore", "19_results", "01_a", "06_c", "04_d", "01_a-Copy1"):
        (tmp_path / f"{name}.ipynb").touch()
    order = [path.stem for path in notebooks_in_order(tmp_path)]
    assert order == ["01_a", "04_d", "06_c", "19_results", "00_explore", "18_your_order"]


def test_notebooks_that_load_the_policy_run_again_when_it_changes(project: Path) -> None:
    write_notebook(project / "notebooks" / "18_your_order.ipynb", FIRST)
    (project / "notebooks" / "quick.json").write_text("{}")
    workspace = Workspace(project, "quick")
    before = [task.digest for task in plan(workspace)]
    (project / POLICY).write_text("{}")
    after = [task.digest for task in plan(workspace)]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, False]
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        loads = re.search(r"(load_pretrained|plan_order)\(", path.read_text()) is not None
        assert loads == (path.stem in USE_PRETRAINED), path.name


def test_an_absent_device_is_named(project: Path) -> None:
    code, ran, printed = drive(project, "--device", "cuda:99")
    assert (code, ran) == (1, [])
    assert "DEVICE = 'cuda:99': must be one of what this machine has, cpu" in printed


def test_list_prints_the_notebooks_and_runs_none(project: Path) -> None:
    code, ran, printed = drive(project, "--list")
    assert (code, ran) == (0, [])
    assert printed.split() == ["notebooks/01_first.ipynb", "notebooks/02_second.ipynb"]
