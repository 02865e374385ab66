"""The report of ``make order``: notebook 08 run on a user's order, as HTML and CSV."""

import argparse
import fcntl
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import papermill
from nbconvert import HTMLExporter
from papermill.exceptions import PapermillExecutionError

from flowoe_lib.data.bars import DEFAULT_TIMEZONE, BarsError, load_bars
from flowoe_lib.data.records import sp500_daily
from flowoe_lib.desk.market_estimates import prepared
from flowoe_lib.desk.ticket import OrderError, Ticket, described_options, read_options, refuse_unknown
from flowoe_lib.store import Workspace, atomic_write
from flowoe_lib.training.card import TrainedPolicyError, read_card

__all__ = ["main"]


NOTEBOOK = "08_your_order.ipynb"


ASSIGNMENT = re.compile(r"^([A-Za-z]\w*)=")


BARS_OPTIONS = {
    "data": "file of bars, .csv or .parquet; by default the S&P 500 index, 1999 to 2018",
    "timezone": f"time zone of the session, and of times without an offset from UTC ({DEFAULT_TIMEZONE})",
}
"""Options of the command line besides those of the ticket."""


OWN_ERRORS = ("BarsError", "OrderError", "TrainedPolicyError")


@contextmanager
def _environment(**changes: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def write_report(parameters: dict[str, Any], workspace: Workspace, folder: Path) -> Path:
    """Run notebook 08 with ``parameters`` and write report.html and the CSV tables into ``folder``.

    Raises OrderError with the library's message if the notebook refuses the order, the bars or the policy.
    """
    folder.mkdir(parents=True, exist_ok=True)
    executed = folder / NOTEBOOK
    try:
        # The kernel inherits the folder of figures and tables.
        with _environment(FLOWOE_FIGURES=str(folder), JUPYTER_PATH=str(Path(sys.prefix, "share", "jupyter"))):
            papermill.execute_notebook(
                workspace.root / "notebooks" / NOTEBOOK,
                executed,
                parameters,
                kernel_name="python3",
                cwd=workspace.root / "notebooks",
                progress_bar={"desc": "order", "leave": False, "disable": None},
            )
    except PapermillExecutionError as error:
        if error.ename in OWN_ERRORS:
            raise OrderError(error.evalue) from None
        if error.ename == "KeyboardInterrupt":
            raise KeyboardInterrupt from None
        raise
    body, _ = HTMLExporter(exclude_input=True).from_filename(str(executed))
    report = folder / "report.html"
    atomic_write(report, body.encode())
    return report


def _given(words: Sequence[str] | None) -> dict[str, str]:
    """Parse options given as NAME=value or --name value into their texts; empty ones are dropped."""
    known = BARS_OPTIONS | {name: ", ".join(filter(None, x)) for name, x in described_options().items()}
    parser = argparse.ArgumentParser(
        prog="make order",
        usage="make order NAME=value ...  (or: python -m flowoe_lib.desk --name value ...)",
        description="Plan an order and report it as HTML and CSV.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for name, meaning in known.items():
        parser.add_argument(_flag(name), nargs="+", help=meaning.replace("%", "%%"))
    words = sys.argv[1:] if words is None else words
    found, unknown = parser.parse_known_args([ASSIGNMENT.sub(lambda m: f"{_flag(m[1])}=", w) for w in words])
    if unknown:
        name, _, value = unknown[0].removeprefix("--").partition("=")
        refuse_unknown({name.replace("-", "_"): value or " ".join(unknown[1:2])}, known)
    return {name: " ".join(texts) for name, texts in vars(found).items() if texts != [""]}


def _flag(name: str) -> str:
    return "--" + name.lower().replace("_", "-")


def _put_in_place(made: Path, place: Path) -> None:
    """Replace folder ``place`` by folder ``made`` as a whole, one order at a time."""
    with place.with_name(".order.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(place, ignore_errors=True)
        made.rename(place)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0 if the report was written, 1 if the order or the bars are refused."""
    try:
        given = {"timezone": DEFAULT_TIMEZONE} | _given(words)
        timezone, data = given.pop("timezone"), given.pop("data", None)
        path = None if data is None else Path(data).resolve()
        # Refuse invalid input before the notebook starts.
        options = read_options(given)
        ticket = Ticket(**options)
        bars = sp500_daily() if path is None else load_bars(path, timezone=timezone)
        prepared(bars, ticket, read_card()[0])
        workspace = Workspace.open("full")
        parameters = {"ORDER": options, "DATA": None if path is None else str(path), "TIMEZONE": timezone}
        place = workspace.root / "build" / "order"
        place.parent.mkdir(exist_ok=True)
        with TemporaryDirectory(prefix=".order-", dir=place.parent) as folder:
            report = write_report(parameters, workspace, Path(folder, "made"))
            _put_in_place(report.parent, place)
    except (BarsError, OrderError, TrainedPolicyError, FileNotFoundError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    written = place.relative_to(workspace.root) / report.name
    sys.stdout.write(f"written: {written}, and its tables beside it\n")
    if path is not None:
        sys.stdout.write(f"times without an offset from UTC were read as those of {timezone} (TIMEZONE)\n")
    return 0
