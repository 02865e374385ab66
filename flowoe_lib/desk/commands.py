"""The commands ``make order``, ``make work`` and ``make review``.

A refusal comes before anything heavy is loaded: torch and matplotlib are imported once there is an order to
plan or to work.
"""

import fcntl
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from flowoe_lib.data.bars import Bars, load_bars
from flowoe_lib.desk.market_estimates import prepared
from flowoe_lib.desk.ticket import OrderError, Ticket, read_options, refuse_unknown
from flowoe_lib.store import Workspace
from flowoe_lib.training.card import read_card

N_PATHS, SEED = 10_000, 2025
"""Simulated days of a plan, and their seed."""


READING = ("timezone", "columns", "dates", "bars")
"""Options of :func:`flowoe_lib.data.bars.load_bars`."""


FILES = {
    "plan": "plan.json, written by make order",
    "bars": "bars of the day, .csv or .parquet",
    "fills": "fills, .csv with time, shares and price",
}


def plan(given: Mapping[str, str]) -> dict[str, str]:
    """Plan an order and write its report into build/order; returns the summary."""
    reading: dict[str, Any] = {name: given[name] for name in READING if name in given}
    ticket = Ticket(**read_options({k: v for k, v in given.items() if k not in (*READING, "data")}))
    if "data" in given:
        bars = load_bars(given["data"], session=ticket.session, **reading)
    else:
        # The package of the index takes seconds to load.
        from flowoe_lib.data.records import sp500_daily

        bars = sp500_daily()
    prepared(bars, ticket, read_card()[0])
    workspace = Workspace.open("full")
    place = workspace.root / "build" / "order"
    place.parent.mkdir(exist_ok=True)
    with TemporaryDirectory(prefix=".order-", dir=place.parent) as folder:
        lines = _report(bars, ticket, made := Path(folder, "made"))
        # The report is replaced as a whole, by one order at a time.
        with place.with_name(".order.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            shutil.rmtree(place, ignore_errors=True)
            made.rename(place)
    return lines | {"bars": bars.reading, "report": f"{place.relative_to(workspace.root)}/report.html"}


def _report(bars: Bars, ticket: Ticket, folder: Path) -> dict[str, str]:
    """Plan the order and write its page into ``folder``, with a bar of progress; returns the summary."""
    with tqdm(total=5, leave=False, disable=None, bar_format="{desc:24}|{bar}| {elapsed}") as bar:

        def begin(stage: str) -> None:
            bar.set_description_str(stage)
            bar.update()

        begin("loading the policy")
        from flowoe_lib.desk.page import summary, write_page
        from flowoe_lib.desk.planner import plan_order

        made = plan_order(bars, ticket, n_paths=N_PATHS, seed=SEED, progress=begin)
        begin("drawing")
        write_page(made, folder, N_PATHS)
    return summary(made)


def work(given: Mapping[str, str]) -> dict[str, str]:
    """Bring a live order up to the end of the bars; returns what to send now."""
    from flowoe_lib.desk import live

    order = live.work(given["plan"], given.get("state", "build/live.json"))
    zone = order.plan.timezone
    fills = live.read_fills(given["fills"], zone) if "fills" in given else None
    live.follow(order, _today(given, zone, order.plan.ticket), fills)
    return order.summary()


def review(given: Mapping[str, str]) -> dict[str, str]:
    """Review a worked order and write the page into build/review; returns the summary."""
    from flowoe_lib.desk.live import read_fills
    from flowoe_lib.desk.planner import read_plan
    from flowoe_lib.desk.review import review, write_review

    ticket, *_, record = read_plan(given["plan"])
    zone = record["bars"]["timezone"]
    numbers: dict[str, Any] = read_options({k: given[k] for k in ("spread_bps", "shares") if k in given})
    for name, value in numbers.items():
        if isinstance(value, str):
            raise OrderError(f"{name} = {value!r}: must be a number")
    result = review(given["plan"], read_fills(given["fills"], zone), _today(given, zone, ticket), **numbers)
    return result.summary() | {"report": str(write_review(result, Path("build", "review")))}


def _today(given: Mapping[str, str], zone: str, ticket: Ticket) -> Bars:
    """The bars of the day; the session of the ticket tells whether times are starts or ends."""
    reading: dict[str, Any] = {name: given[name] for name in ("columns", "dates") if name in given}
    stamp: Any = given.get("stamp")
    return load_bars(given["bars"], timezone=zone, session=ticket.session, bars=stamp, **reading)


TODAY = ("columns", "dates", "stamp")


Command = Callable[[Mapping[str, str]], dict[str, str]]
"""From the options that are given to the lines that are printed."""


COMMANDS: dict[str, tuple[Command, tuple[str, ...], tuple[str, ...]]] = {
    "order": (plan, (), ("data", *READING, *Ticket.model_fields)),
    "work": (work, ("plan", "bars"), ("fills", "state", *TODAY)),
    "review": (review, ("plan", "bars", "fills"), ("spread_bps", "shares", *TODAY)),
}
"""Each command, the options that it needs, and the others that it takes."""


def main(words: Sequence[str]) -> int:
    """Run a command: its name, then options as NAME=value, of which empty ones do not count.

    Returns 0, or 1 if the order, the plan, the bars or the fills are refused.
    """
    # An orderly end, which removes the folder of the unfinished report.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    command, *pairs = words or [""]
    try:
        if command not in COMMANDS:
            raise OrderError(f"{command!r}: must be one of the commands {', '.join(COMMANDS)}")
        run, needed, others = COMMANDS[command]
        split = [pair.partition("=") for pair in pairs]
        given = {name.lower(): value for name, mark, value in split if value or not mark}
        refuse_unknown(given, (*needed, *others))
        for name in needed:
            if name not in given:
                raise OrderError(f"{name.upper()} is missing: {FILES[name]}")
        lines = run(given)
    except (ValueError, FileNotFoundError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write("".join(f"{name:8}{text}\n" for name, text in lines.items()))
    return 0
