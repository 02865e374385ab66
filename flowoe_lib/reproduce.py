"""The driver of ``make reproduce``: runs the notebooks in order, except those that are up to date.

A notebook is up to date if its record has the digest of its cells, its parameters, the library,
the lock file and the notebook before it, and if all its output files are unchanged. A run fails
if one of these inputs is edited meanwhile, even if the edit is undone before the notebook ends.
Records and results are written atomically, so the next run resumes a killed one.
"""

import argparse
import ast
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from tqdm import tqdm

from flowoe_lib.recipes import COMPUTING, sha256
from flowoe_lib.store import PROFILES, MissingArtifact, Workspace, atomic_write
from flowoe_lib.training.card import TrainedPolicyError

USE_PRETRAINED = ("00_explore", "15_robustness", "17_market_replay", "18_your_order")
"""Notebooks that use the pretrained policy; they run last, after all training."""


PUBLIC_DATA = ("None", "'../docs/sample_bars.csv'")
"""Values of ``DATA`` with which figures are published; those of a user's own data are not."""


POLICY = Path("flowoe_lib", "training", "weights", "universal.json")
"""Card of the pretrained policy."""


PROGRESS = "application/vnd.jupyter.widget-view+json"
"""Type of the output of a progress bar, which cannot be displayed later."""


class ReproductionError(Exception):
    """An error that the user has to correct before the run can continue."""


class Record(BaseModel):
    """Record of a successful run of a notebook; ``outputs`` maps its output files to their digests."""

    digest: str
    seconds: float
    outputs: dict[str, str]


class _Metadata(BaseModel):
    tags: list[str] = []


class _Cell(BaseModel):
    cell_type: str
    source: str | list[str]
    metadata: _Metadata

    @property
    def text(self) -> str:
        return "".join(self.source)


class _Notebook(BaseModel):
    cells: list[_Cell]


T = TypeVar("T")


def _parsed(kind: type[T], path: Path) -> T:
    """The JSON of a file, which must be of this ``kind``."""
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{key}: " for key in first["loc"])
        raise ReproductionError(f"{path}: {where}{first['msg']}") from error


Stamp = tuple[int, str]
"""Time of the last modification of a file, in ns, and the digest of its content."""


@dataclass(frozen=True)
class Task:
    """One notebook of a run, with the inputs that determine whether it must be run."""

    notebook: Path
    parameters: Mapping[str, Any]
    inputs: Mapping[Path, Stamp]
    digest: str
    build: Path
    figures: Path
    """Where its figures and tables go."""

    @property
    def stem(self) -> str:
        """The notebook's name without its suffix."""
        return self.notebook.stem

    @property
    def executed(self) -> Path:
        """Path of the executed copy."""
        return self.build / self.notebook.name

    @property
    def record(self) -> Path:
        """Path of the record of the last successful run."""
        return self.build / f"{self.stem}.done.json"


def _defined(notebook: _Notebook, path: Path) -> dict[str, str]:
    """Names assigned in the cell tagged ``parameters``, and the expressions they are assigned."""
    tagged = [cell.text for cell in notebook.cells if "parameters" in cell.metadata.tags]
    if len(tagged) != 1:
        raise ReproductionError(f"{path}: needs one cell tagged 'parameters', has {len(tagged)}")
    try:
        assigned = [n for n in ast.walk(ast.parse(tagged[0])) if isinstance(n, ast.Assign)]
    except SyntaxError as error:
        raise ReproductionError(f"{path}: its parameters cell is not Python: {error}") from error
    return {ast.unparse(n.targets[0]): ast.unparse(n.value) for n in assigned}


def notebooks_in_order(folder: Path) -> list[Path]:
    """Notebooks by number, those of ``USE_PRETRAINED`` last; copies such as ``-Copy1`` are left out."""
    found = [p for p in folder.glob("*.ipynb") if re.fullmatch(r"\d\d_\w+", p.stem)]
    return sorted(found, key=lambda p: (p.stem in USE_PRETRAINED, p.name))


def _inputs(root: Path, notebook: Path) -> dict[Path, Stamp]:
    """The files that determine a notebook's results, data that its cells name included, and their stamps."""
    shipped = [f for f in (root / POLICY.parent).glob("*") if notebook.stem in USE_PRETRAINED]
    code = " ".join(cell.text for cell in _parsed(_Notebook, notebook).cells if cell.cell_type == "code")
    data = [notebook.parent / name for name in re.findall(r"[\w./-]+\.(?:csv|parquet)\b", code)]
    files = [notebook, root / "constraints.txt", *(root / "flowoe_lib").rglob("*.py"), *shipped]
    files += [file for file in data if file.is_file()]
    return {f: (f.stat().st_mtime_ns, sha256(f.read_bytes())) for f in files}


def plan(workspace: Workspace) -> list[Task]:
    """The tasks of a run in order; each digest covers the one before. Raises ReproductionError."""
    folder = workspace.root / "notebooks"
    notebooks = notebooks_in_order(folder)
    if not notebooks:
        raise ReproductionError(f"no notebooks in {folder}")
    reduced = folder / "quick.json"
    quick = _parsed(dict[str, dict[str, Any]], reduced) if workspace.profile == "quick" else {}
    if unknown := sorted(quick.keys() - {path.stem for path in notebooks}):
        raise ReproductionError(f"{reduced}: there is no notebook {', '.join(unknown)}")
    packages = {name: version(name) for name in COMPUTING}
    tasks: list[Task] = []
    for path in notebooks:
        inputs = _inputs(workspace.root, path)
        content = _parsed(_Notebook, path)
        defined = _defined(content, path)
        parameters = quick.get(path.stem, {}) | {"PROFILE": workspace.profile}
        if "DEVICE" in defined and workspace.device != "cpu":
            parameters["DEVICE"] = workspace.device
        if unknown := sorted(set(parameters) - set(defined)):
            raise ReproductionError(f"{path}: its parameters cell does not define {', '.join(unknown)}")
        # The digest covers the notebook's cells only, because publishing changes its outputs.
        cells = [[cell.cell_type, cell.text] for cell in content.cells]
        used = {os.path.relpath(f, workspace.root): sha for f, (_, sha) in inputs.items() if f != path}
        upstream = tasks[-1].digest if tasks else ""
        whole = json.dumps([cells, parameters, used, packages, upstream], sort_keys=True)
        private = defined.get("DATA", "None") not in PUBLIC_DATA
        figures = workspace.root / "build" / "lab" / workspace.profile if private else workspace.figures
        digest = sha256(whole.encode())
        tasks.append(Task(path, parameters, inputs, digest, workspace.build, figures))
    return tasks


def refuse_edits(tasks: Iterable[Task], root: Path) -> None:
    """Raise ReproductionError if an input was modified since the run was planned, and name it.

    The time of modification is compared too, because results may come from an edit that was undone since.
    """
    for task in tasks:
        edited = {file for file, _ in _inputs(root, task.notebook).items() ^ task.inputs.items()}
        if edited:
            names = ", ".join(sorted(os.path.relpath(f, root) for f in edited))
            raise ReproductionError(f"edited during the run: {names}. Start the run again")


def done(task: Task, root: Path) -> Record | None:
    """The record of an up-to-date task, None if it has to be run."""
    try:
        record = Record.model_validate_json(task.record.read_bytes())
        intact = all(sha256((root / file).read_bytes()) == digest for file, digest in record.outputs.items())
    except (OSError, ValueError):
        return None
    whole = os.path.relpath(task.executed, root) in record.outputs
    return record if intact and whole and record.digest == task.digest else None


def _files(*folders: Path) -> dict[Path, int]:
    """Time of the last modification of each visible file under the folders, in ns."""
    files = (f for folder in folders for f in folder.rglob("[!.]*") if f.is_file())
    return {f: f.stat().st_mtime_ns for f in files}


def remove_strays(folders: Iterable[Path], older_than_s: float = 60) -> None:
    """Remove incomplete files of killed writers; a younger file may still be being written."""
    for folder in folders:
        for stray in folder.rglob(".*.tmp"):
            if time.time() - stray.stat().st_mtime > older_than_s:
                stray.unlink(missing_ok=True)


def run(task: Task, workspace: Workspace) -> Record:
    """Execute one notebook and return its record.

    Raises ReproductionError naming the failing cell, or the input that was edited during the run.
    """
    import papermill

    refuse_edits([task], workspace.root)
    task.record.unlink(missing_ok=True)
    running, failed = (task.build / f"{task.stem}.{state}.ipynb" for state in ("running", "failed"))
    failed.unlink(missing_ok=True)
    before, start = _files(task.figures, workspace.store.root), time.perf_counter()
    published = str(workspace.figures)
    os.environ["FLOWOE_FIGURES"] = str(task.figures)
    try:
        papermill.execute_notebook(
            task.notebook,
            running,
            dict(task.parameters),
            kernel_name="python3",
            cwd=task.notebook.parent,
            progress_bar={"desc": task.stem, "position": 1, "leave": False, "disable": None},
        )
    except Exception as error:
        if running.exists():
            running.replace(failed)
        message = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
        raise ReproductionError(f"{task.notebook.name} failed, see {failed}\n{message}") from error
    finally:
        os.environ["FLOWOE_FIGURES"] = published
    refuse_edits([task], workspace.root)
    running.replace(task.executed)
    written = _files(task.figures, workspace.store.root).items() - before.items()
    made = sorted([task.executed, *dict(written)])
    outputs = {os.path.relpath(f, workspace.root): sha256(f.read_bytes()) for f in made}
    record = Record(digest=task.digest, seconds=time.perf_counter() - start, outputs=outputs)
    atomic_write(task.record, record.model_dump_json(indent=1).encode())
    return record


def published(notebook: Mapping[str, Any]) -> dict[str, Any]:
    """An executed notebook without papermill's metadata and progress bars, its cells numbered from 1."""
    metadata = {k: v for k, v in notebook["metadata"].items() if k not in ("papermill", "widgets")}
    cells, count = [], 0
    for cell in notebook["cells"]:
        # papermill adds an empty list of tags.
        kept = {k: v for k, v in cell["metadata"].items() if k not in ("papermill", "execution") and v != []}
        if "injected-parameters" in kept.get("tags", []):
            continue
        clean = cell | {"metadata": kept}
        if clean.get("execution_count") is not None:
            count += 1
            counter = {"execution_count": count}
            lasting = [o for o in cell["outputs"] if PROGRESS not in o.get("data", {})]
            outputs = [o | counter if "execution_count" in o else o for o in lasting]
            clean |= counter | {"outputs": outputs}
        cells.append(clean)
    return dict(notebook) | {"metadata": metadata, "cells": cells}


def publish(tasks: Sequence[Task], workspace: Workspace) -> None:
    """Replace the notebooks and the results beside them by those of the run, ready to be committed.

    Raises ReproductionError if an input was edited while they ran, before anything is replaced.
    """
    refuse_edits(tasks, workspace.root)
    for task in tasks:
        clean = published(json.loads(task.executed.read_text(encoding="utf-8")))
        text = json.dumps(clean, indent=1, sort_keys=True, ensure_ascii=False)
        atomic_write(task.notebook, f"{text}\n".encode())
    shutil.rmtree(workspace.published.root, ignore_errors=True)
    workspace.store.copy([card.name for card in workspace.store.results()], workspace.published)


def pages(root: Path) -> list[Path]:
    """The README and every page of the documentation."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def update_readme(readme: Path, figures: Path) -> None:
    """Fill each block ``<!-- name:start -->`` to ``<!-- name:end -->`` from ``readme_<name>.md``.

    Raises ReproductionError if a block has no such file.
    """

    def block(match: re.Match[str]) -> str:
        source = figures / f"readme_{match[1]}.md"
        if not source.is_file():
            raise ReproductionError(f"{readme.name}: block '{match[1]}' has no {source}")
        body = source.read_text(encoding="utf-8").strip()
        return f"<!-- {match[1]}:start -->\n{body}\n<!-- {match[1]}:end -->"

    old = readme.read_text(encoding="utf-8")
    new = re.sub(r"<!-- (\w+):start -->.*?<!-- \1:end -->", block, old, flags=re.DOTALL)
    if new != old:
        atomic_write(readme, new.encode())


def reproduce(workspace: Workspace, leave: Collection[str] = ()) -> list[Task]:
    """Bring the notebooks of the profile up to date, except those in ``leave``. Raises ReproductionError."""
    tasks = [task for task in plan(workspace) if task.stem not in leave]
    remove_strays((workspace.figures, workspace.store.root, workspace.build))
    total = 0.0
    with tqdm(tasks, desc=f"notebooks ({workspace.profile})", unit="notebook", disable=None) as bar:
        for task in bar:
            record, state = done(task, workspace.root), "up to date"
            if record is None:
                record, state = run(task, workspace), "run"
                total += record.seconds
            tqdm.write(f"{task.stem:32} {record.seconds:7.1f} s  {state}")
    tqdm.write(f"{'spent now':32} {total:7.1f} s")
    return tasks


def ship_trained(workspace: Workspace) -> None:
    """Replace the pretrained policy of the library by the one that this run trained."""
    from flowoe_lib.training.pretrained import ship_from

    try:
        ship_from(workspace.store, workspace.figures / "scorecard.csv", workspace.root / POLICY.parent)
    except (MissingArtifact, FileNotFoundError) as error:
        raise ReproductionError(f"the trained policy cannot be shipped: {error}") from error


def compared(workspace: Workspace) -> str:
    """Two sentences that say whether the published weights equal those that this run trained."""
    from flowoe_lib.policies.flow import unpack
    from flowoe_lib.training.pretrained import load_pretrained, max_weight_difference

    shipped = load_pretrained(workspace.root / POLICY.parent).field
    runs = unpack(workspace.store.read_tensors("universal_policies"))
    apart = max_weight_difference(shipped, runs[min(runs)].field)
    same = "the one" if apart == 0 else f"not to the bit the one (a weight differs by {apart:.1e})"
    here = {card.name: card.sha256 for card in workspace.store.results()}
    there = [card for card in workspace.published.results() if card.file.endswith(".safetensors")]
    equal = sum(here.get(card.name) == card.sha256 for card in there)
    return (
        f"the policy that comes with the library is {same} that was trained here\n"
        f"{equal} of {len(there)} sets of weights that come with the notebooks are those trained here"
    )


def checked_device(name: str) -> str:
    """``name``, if torch can use that device. Raises ReproductionError listing the available devices."""
    if name != "cpu":
        import torch

        cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        there = ["cpu", "cuda", *cuda] if cuda else ["cpu"]
        if name not in there:
            has = ", ".join(there)
            raise ReproductionError(f"DEVICE = {name!r}: must be one of what this machine has, {has}")
    return name


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if everything is up to date in the end, 1 if a notebook failed."""
    parser = argparse.ArgumentParser(prog="python -m flowoe_lib.reproduce", description="Run the notebooks.")
    parser.add_argument("--profile", choices=PROFILES, default="full")
    parser.add_argument(
        "--publish", action="store_true", help="then replace notebooks/ by the executed copies (full only)"
    )
    parser.add_argument("--device", default="cpu", help="where policies are refined: cpu, cuda or cuda:N")
    parser.add_argument("--list", action="store_true", help="only print the notebooks in order")
    options = parser.parse_args(arguments)
    if options.publish and options.profile != "full":
        parser.error("--publish needs --profile full: the committed notebooks hold the full results")
    try:
        workspace = Workspace.open(options.profile, checked_device(options.device))
        root = workspace.root
        if options.list:
            sys.stdout.writelines(f"{p.relative_to(root)}\n" for p in notebooks_in_order(root / "notebooks"))
            return 0
        # Kernels inherit these variables and so run this interpreter, even if others are registered.
        os.environ["JUPYTER_PATH"] = str(Path(sys.prefix) / "share" / "jupyter")
        os.environ.setdefault("IPYTHONDIR", str(root / ".ipython"))
        # They import the library that the digests cover, and they alone write the published figures.
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
        published_figures = root / "figures" if options.profile == "full" else workspace.build / "figures"
        os.environ["FLOWOE_FIGURES"] = str(published_figures)
        if options.publish:
            reproduce(workspace, leave=USE_PRETRAINED)
            if any(task.stem in USE_PRETRAINED for task in plan(workspace)):
                ship_trained(workspace)
        tasks = reproduce(workspace)
        if options.publish:
            publish(tasks, workspace)
        if options.profile == "full":
            if any(task.stem in USE_PRETRAINED for task in tasks):
                sys.stdout.write(f"{compared(workspace)}\n")
            for page in pages(root):
                update_readme(page, workspace.figures)
            sys.stdout.write(f"open {root / 'README.md'}, or run 'make site' for all pages\n")
        else:
            sys.stdout.write(f"small-scale results, too few days for conclusions: {workspace.build}\n")
    except (ReproductionError, TrainedPolicyError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: the next run goes on from here\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
