"""The commands ``make work`` and ``make review``."""

import sys
from collections.abc import Sequence
from pathlib import Path

from flowoe_lib.data.bars import load_bars
from flowoe_lib.desk.live import follow, read_fills, work
from flowoe_lib.desk.planner import read_plan
from flowoe_lib.desk.review import review, write_review
from flowoe_lib.desk.ticket import OrderError, refuse_unknown

__all__ = ["main"]


OPTIONS = {
    "plan": "plan.json, written by make order",
    "bars": "bars of the day, .csv or .parquet",
    "fills": "fills, .csv with time, shares and price",
    "state": "work: file of all that is known of the live order, by default build/live.json",
    "spread_bps": "review: quoted spread, bps; by default 0, so that it counts to temporary impact",
    "shares": "review: size of the order, if it was changed",
}


def main(words: Sequence[str]) -> int:
    """Run a command line; returns 0, or 1 if the plan, the bars or the fills are refused.

    The first word is the command, work or review; the others are NAME=value.
    """
    command, *pairs = words
    try:
        given = {name.lower(): value for name, _, value in (pair.partition("=") for pair in pairs)}
        refuse_unknown(given, OPTIONS)
        for name in ("plan", "bars", *(["fills"] if command == "review" else [])):
            if not given.get(name):
                raise OrderError(f"{name.upper()} is missing: {OPTIONS[name]}")
        zone = read_plan(given["plan"])[-1]["bars"]["timezone"]
        bars = load_bars(given["bars"], timezone=zone)
        if command == "work":
            order = work(given["plan"], given.get("state", "build/live.json"))
            follow(order, bars, read_fills(given["fills"], zone) if "fills" in given else None)
            lines = order.summary()
        else:
            numbers = {name: float(given[name]) for name in ("spread_bps", "shares") if name in given}
            result = review(given["plan"], read_fills(given["fills"], zone), bars, **numbers)
            lines = result.summary() | {"report": str(write_review(result, Path("build", "review")))}
    except (ValueError, FileNotFoundError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write("".join(f"{name:8}{text}\n" for name, text in lines.items()))
    return 0
