"""The report behind ``make order``: notebook 08 run on a desk's own order, as HTML and CSV."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import papermill
from nbconvert import HTMLExporter
from papermill.exceptions import PapermillExecutionError

from flowoe_lib.data.bars import BarsError, load_bars
from flowoe_lib.data.records import sp500_daily
from flowoe_lib.desk.planner import OrderError, Ticket, prepared
from flowoe_lib.store import Workspace, atomic_write
from flowoe_lib.training.pretrained import TrainedPolicyError, load_pretrained

__all__ = ["main", "write_report"]


NOTEBOOK = "08_your_order.ipynb"


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

    Raises OrderError with the message of the library where the notebook meets something it refuses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    executed = folder / NOTEBOOK
    try:
        # The kernel inherits where figures and tables go.
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
        raise
    body, _ = HTMLExporter(exclude_input=True).from_filename(str(executed))
    report = folder / "report.html"
    atomic_write(report, body.encode())
    return report


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m flowoe_lib.desk.report", description="Plan an order and report it as HTML and CSV."
    )
    parser.add_argument("--data", help="bars, .csv or .parquet; by default the S&P 500 that comes along")
    parser.add_argument("--side", required=True, help="buy or sell")
    parser.add_argument("--shares", type=float, required=True)
    parser.add_argument("--adv", type=float, help="average daily volume, shares; by default that of the bars")
    parser.add_argument("--start", help="HH:MM; by default the open")
    parser.add_argument("--end", help="HH:MM; by default the close")
    parser.add_argument("--risk-aversion", type=float, help="lambda, per bps; by default 5e-4")
    parser.add_argument("--cost-limit-bps", type=float, help="what 95 of 100 days are to cost less than")
    parser.add_argument("--drift-bps", type=float, default=0.0, help="expected price change over the window")
    parser.add_argument("--drift-sd-bps", type=float, default=0.0, help="standard deviation around it")
    parser.add_argument("--participation-cap", type=float, help="largest share of expected volume")
    parser.add_argument("--illiquidity", type=float, default=1.0, help="multiple of published impact")
    parser.add_argument("--beta", type=float, default=0.6, help="exponent of temporary impact")
    parser.add_argument("--timezone", default="America/New_York")
    parser.add_argument("--session", nargs=2, default=["09:30", "16:00"], metavar=("OPEN", "CLOSE"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if the report was written, 1 where the order or the bars are refused."""
    options = vars(_arguments(arguments))
    try:
        workspace = Workspace.open("full")
        data, timezone = options.pop("data"), options.pop("timezone")
        path = None if data is None else Path(data).resolve()
        # Whatever can be refused is refused before the notebook starts.
        ticket = Ticket(**options | {"session": tuple(options["session"])})
        bars = sp500_daily() if path is None else load_bars(path, timezone=timezone)
        prepared(bars, ticket, load_pretrained())
        parameters = {name.upper(): value for name, value in options.items()}
        parameters |= {"DATA": None if path is None else str(path), "TIMEZONE": timezone}
        report = write_report(parameters, workspace, workspace.root / "build" / "order")
    except (BarsError, OrderError, TrainedPolicyError, FileNotFoundError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(f"written: {report.relative_to(workspace.root)}, and its tables beside it\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
