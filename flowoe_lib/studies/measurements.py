"""A measurement in many conditions at once, side by side: what the notebooks store."""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from flowoe_lib.evaluation.scorecard import Scores
from flowoe_lib.sweep import sweep

__all__ = ["measured", "scored"]


def measured(measure: Callable[..., pd.DataFrame], tasks: Sequence[tuple[Any, ...]]) -> pd.DataFrame:
    """The rows of ``measure(*task)`` for each of the ``tasks``, in their order."""
    return pd.concat(sweep(measure, tasks, measure.__name__), ignore_index=True)


def scored(score: Callable[..., Scores], tasks: Sequence[tuple[Any, ...]]) -> Scores:
    """The tables of ``score(*task)`` for all of the ``tasks``, each as one."""
    parts = zip(*sweep(score, tasks, score.__name__), strict=True)
    return Scores(*(pd.concat(tables, ignore_index=True) for tables in parts))
