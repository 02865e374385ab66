"""The page of a plan: a summary in five lines, then pictures and tables with units; HTML, CSV and JSON."""

import base64
import html
import tomllib
from collections.abc import Mapping
from pathlib import Path
from string import Template

import numpy as np
import pandas as pd

from flowoe_lib.desk.figures import day_figure, order_frontier_figure, schedule_figure
from flowoe_lib.desk.market_estimates import Estimated
from flowoe_lib.desk.planner import Plan
from flowoe_lib.desk.ticket import Ticket
from flowoe_lib.market.model import BPS
from flowoe_lib.plotting import LOOKS, by_name, save, save_table
from flowoe_lib.store import atomic_write

HEADINGS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
"""Heading and format of the columns of each table."""


def _money(bps: float, plan: Plan) -> str:
    return f"{bps / BPS * plan.ticket.shares * plan.estimates.price.value:,.0f}"


def summary(plan: Plan) -> dict[str, str]:
    """Order, market, recommendation, cost with risk, and flags, each in a line of text.

    Money is in the currency of the bars.
    """
    ticket, schedule = plan.ticket, plan.schedule
    price, adv, volatility = plan.estimates.price, plan.estimates.adv, plan.estimates.volatility
    cost, worst = (float(plan.costs[name].iloc[0]) for name in ("cost_bps", "cost95_bps"))
    ends = [*schedule.index[1:], ticket.hours[1]]
    half = str(ends[int(np.argmax(schedule["median"] <= ticket.shares / 2))])[:5]
    leads = plan.costs[["gain_bps", "gain_ci_low", "gain_ci_high"]].iloc[1:]
    ahead = [f"{LOOKS[k].name} {m:+.2f} ({low:+.2f} to {up:+.2f})" for k, m, low, up in leads.itertuples()]
    return {
        "order": f"{ticket.side} {ticket.shares:,.10g} shares from {' to '.join(ticket.hours)}, worth "
        f"{_money(BPS, plan)} at {price.value:,.10g}: {plan.condition.order.size:.2%} of the volume expected "
        "then",
        "market": f"{adv.value:,.0f} shares a day ({adv.source}), volatility {volatility.value:.2%} a day "
        f"({volatility.source})",
        "plan": f"{LOOKS[plan.policy].name} in {len(schedule)} buckets; on the median day half is done by "
        f"{half}, and no bucket takes more than {schedule['participation'].max():.1%} of its volume",
        "cost": f"{cost:.2f} bps expected ({_money(cost, plan)}), below {worst:.1f} bps "
        f"({_money(worst, plan)}) on 95 days of 100; lead in utility, bps with 95 % interval: "
        f"{', '.join(ahead)}",
        "flags": "; ".join(plan.flags) or "none",
    }


def _shown(table: pd.DataFrame, columns: Mapping[str, list[str]]) -> pd.DataFrame:
    shown = {head: table[name].map(form.format, na_action="ignore") for name, (head, form) in columns.items()}
    return pd.DataFrame(shown).fillna("").rename_axis(None)


def tables(plan: Plan) -> dict[str, pd.DataFrame]:
    """Schedule, costs, frontier and market as a reader sees them: headings with units, formatted numbers."""
    costs = by_name(plan.costs)
    costs.iloc[0, -3:] = np.nan
    own = plan.frontier[plan.frontier["policy"] == plan.policy].set_index("risk_aversion")
    known = plan.estimates.figures()
    for name in ("eta", "beta", "gamma", "illiquidity"):
        value = getattr(plan.ticket, name)
        published = value == Ticket.model_fields[name].default
        known[name] = Estimated(value, "published" if published else "order")
    market = {
        heading: (form.format(known[name].value), known[name].source)
        for name, (heading, form) in HEADINGS["market"].items()
    }
    clock = plan.schedule.index.str[: 5 if len(plan.schedule) <= 39 else 8]
    return {
        "schedule": _shown(plan.schedule.set_axis(clock), HEADINGS["schedule"]),
        "costs": _shown(costs, HEADINGS["costs"]),
        "frontier": _shown(own.rename(index="{:.1e} per bps".format), HEADINGS["frontier"]),
        "market": pd.DataFrame(market.values(), list(market), ["estimate", "source"]),
    }


def write_page(plan: Plan, folder: Path, n_paths: int) -> Path:
    """Write report.html, plan.json, and every table and figure of the plan into ``folder``."""
    for name in ("schedule", "costs", "frontier", "day"):
        save_table(getattr(plan, name), folder, f"order_{name}")
    drawn = {
        "schedule": schedule_figure(plan.schedule, plan.ticket.shares, plan.policy),
        "frontier": order_frontier_figure(plan.frontier, plan.costs),
        "day": day_figure(plan.day, plan.policy),
    }
    for name, figure in drawn.items():
        save(figure, folder, f"order_{name}")
    filled = {f"{name}_figure": embedded(folder / f"order_{name}.png") for name in drawn}
    filled |= {name: table.to_html(classes="figures", border=0) for name, table in tables(plan).items()}
    filled |= {"days": f"{n_paths:,}", "reading": html.escape(plan.bars.reading)}
    title = f"Plan to {plan.ticket.side} {plan.ticket.shares:,.10g} shares"
    atomic_write(folder / "report.html", filled_page("report", title, summary(plan), filled))
    plan.write(folder / "plan.json")
    return folder / "report.html"


def embedded(picture: Path) -> str:
    """A PNG as an address that needs no file."""
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def filled_page(name: str, title: str, lines: Mapping[str, str], filled: Mapping[str, str]) -> bytes:
    """The page ``name``: a title, a summary of ``lines``, and the body of its template with ``filled``."""
    frame, body = (
        Template(Path(__file__).with_name(f"{x}.html").read_text(encoding="utf-8")) for x in ("page", name)
    )
    rows = [f"<tr><th>{k}</th><td>{html.escape(v, quote=False)}</td></tr>" for k, v in lines.items()]
    table = f'<table class="summary">{"".join(rows)}</table>'
    return frame.substitute(title=title, summary=table, body=body.substitute(filled)).encode()
