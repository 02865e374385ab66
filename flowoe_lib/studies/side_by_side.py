"""Parallel runs of one function over many arguments, whose results the notebooks store."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
from torch import Tensor

from flowoe_lib.evaluation.scorecard import Scores
from flowoe_lib.market.model import Condition
from flowoe_lib.policies.flow import TrainingRun, pack
from flowoe_lib.policies.oracle import solve_oracle
from flowoe_lib.sweep import sweep

Tasks = Sequence[tuple[Any, ...]]


def measured(measure: Callable[..., pd.DataFrame], tasks: Tasks) -> pd.DataFrame:
    """The rows of ``measure(*task)`` for all ``tasks``, in their order, as one table."""
    return pd.concat(sweep(measure, tasks, "conditions"), ignore_index=True)


def scored(score: Callable[..., Scores], tasks: Tasks) -> Scores:
    """The tables of ``score(*task)`` for all ``tasks``, joined table by table."""
    parts = zip(*sweep(score, tasks, "conditions"), strict=True)
    return Scores(*(pd.concat(tables, ignore_index=True) for tables in parts))


def trained(train: Callable[..., TrainingRun], tasks: Mapping[int, tuple[Any, ...]]) -> dict[str, Tensor]:
    """The runs ``train(*task)`` by seed, packed by :func:`flowoe_lib.policies.flow.pack`."""
    return pack(dict(zip(tasks, sweep(train, tasks.values(), "training"), strict=True)))


def oracle_values(condition: Condition, n_buckets: int, grids: Mapping[str, tuple[int, int]]) -> pd.DataFrame:
    """Value of the oracle, bps, on each of ``grids``: their numbers of nodes of inventory and of variance."""
    rows = []
    for name, (q, v) in grids.items():
        nodes = {"inventory_nodes": q, "variance_nodes": v}
        solved = solve_oracle(condition.market, condition.order, n_buckets, **nodes)
        rows.append((condition.name, name, solved.value_bps))
    return pd.DataFrame(rows, columns=["condition", "grid", "value_bps"])
