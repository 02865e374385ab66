"""The command line of ``make order``.

It refuses an invalid order before anything heavy is loaded: torch and matplotlib are imported once the order
can be planned.
"""

import argparse
import fcntl
import re
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flowoe_lib.data.bars import DEFAULT_TIMEZONE, Bars, BarsError, load_bars
from flowoe_lib.desk.market_estimates import prepared
from flowoe_lib.desk.ticket import OrderError, Ticket, described_options, read_options, refuse_unknown
from flowoe_lib.store import Workspace
from flowoe_lib.training.card import TrainedPolicyError, read_card

__all__ = ["main"]


N_PATHS, SEED = 10_000, 2025
"""Simulated days of a plan, and their seed."""


ASSIGNMENT = re.compile(r"^([A-Za-z]\w*)=")


BARS_OPTIONS = {
    "data": "file of bars; by default the S&P 500 index, 1999 to 2018",
    "timezone": f"time zone of the session, and of times without an offset from UTC ({DEFAULT_TIMEZONE})",
    "columns": 'which column is what, if the names do not say: "time=Datum, volume=Stuecke"',
    "dates": "order of day and month in dates: dmy, mdy or ymd",
    "bars": "whether the time of an intraday bar is its start or its end",
}
"""Options of the command line besides those of the ticket."""


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


def _bars(given: dict[str, str], ticket: Ticket) -> Bars:
    """The bars that the options name; those used are taken out of ``given``."""
    options: dict[str, Any] = {name: given.pop(name) for name in BARS_OPTIONS if name in given}
    if "data" in options:
        return load_bars(options.pop("data"), session=ticket.session, **options)
    # The package of the index takes seconds to load.
    from flowoe_lib.data.records import sp500_daily

    return sp500_daily()


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0 if the report was written, 1 if the order or the bars are refused."""
    # An orderly end, which removes the folder of the unfinished report.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        given = _given(words)
        ticket = Ticket(**read_options({k: v for k, v in given.items() if k not in BARS_OPTIONS}))
        bars = _bars(given, ticket)
        prepared(bars, ticket, read_card()[0])
        workspace = Workspace.open("full")
        place = workspace.root / "build" / "order"
        place.parent.mkdir(exist_ok=True)
        with TemporaryDirectory(prefix=".order-", dir=place.parent) as folder:
            lines = _report(bars, ticket, Path(folder, "made"))
            _put_in_place(Path(folder, "made"), place)
    except (BarsError, OrderError, TrainedPolicyError, FileNotFoundError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    lines |= {"bars": bars.reading, "report": f"{place.relative_to(workspace.root)}/report.html"}
    sys.stdout.write("".join(f"{name:8}{text}\n" for name, text in lines.items()))
    return 0


def _report(bars: Bars, ticket: Ticket, folder: Path) -> dict[str, str]:
    """Plan the order and write its page into ``folder``, with a bar of progress; returns the summary."""
    from tqdm import tqdm

    with tqdm(total=5, leave=False, disable=None, bar_format="{desc:24}|{bar}| {elapsed}") as bar:

        def begin(stage: str) -> None:
            bar.set_description_str(stage)
            bar.update()

        begin("loading the policy")
        from flowoe_lib.desk.page import summary, write_page
        from flowoe_lib.desk.planner import plan_order

        plan = plan_order(bars, ticket, n_paths=N_PATHS, seed=SEED, progress=begin)
        begin("drawing")
        write_page(plan, folder, N_PATHS)
    return summary(plan)
