"""The ensemble: every expert by name, calibrated to the conditions it is asked to trade in."""

from collections.abc import Callable, Mapping, Sequence

from flowoe_lib.execution.execution import Policy
from flowoe_lib.market.batching import batch
from flowoe_lib.market.model import Condition, Market, Order
from flowoe_lib.policies.almgren_chriss import almgren_chriss
from flowoe_lib.policies.replanning import replanned
from flowoe_lib.policies.rl import RLExpert
from flowoe_lib.policies.schedules import EstimatedSchedule, Schedule, static_optimal, twap, vwap

__all__ = ["BENCHMARKS", "SCHEDULE_EXPERTS", "Calibrate", "Experts", "from_estimates", "rl_experts"]


Calibrate = Callable[[Sequence[Condition], int, int], Policy]
"""(conditions, paths of each, buckets) -> an expert calibrated to them laid side by side."""


Experts = Mapping[str, Calibrate]


def _same_everywhere(policy: Policy) -> Calibrate:
    return lambda conditions, paths_each, n_buckets: policy


def _per_condition(schedule: Callable[[Market, Order, int], Schedule]) -> Calibrate:
    def calibrate(conditions: Sequence[Condition], paths_each: int, n_buckets: int) -> Schedule:
        market, order = batch(conditions, 1)
        return Schedule(schedule(market, order, n_buckets).inventory.repeat_interleave(paths_each, 1))

    return calibrate


SCHEDULE_EXPERTS: Experts = {
    "twap": _same_everywhere(twap),
    "vwap": _same_everywhere(vwap),
    "almgren_chriss": _per_condition(almgren_chriss),
    "static_optimal": _per_condition(static_optimal),
    "replanned": _same_everywhere(replanned),
}
"""Experts in closed form or solved numerically, which know the condition's parameters exactly.

TWAP and VWAP follow the clock and the volume forecast; Almgren-Chriss and the static optimum are
solved for the condition before the open; the re-planned one sees the current variance and depth.
"""


BENCHMARKS = ("twap", "vwap", "almgren_chriss", "static_optimal")
"""Those that follow a schedule fixed before the open."""


def from_estimates(condition: Condition, n_buckets: int) -> dict[str, Policy]:
    """The same experts where parameters are estimates, which differ from path to path."""
    return {
        "twap": twap,
        "vwap": vwap,
        "almgren_chriss": EstimatedSchedule.around(almgren_chriss, condition, n_buckets),
        "static_optimal": EstimatedSchedule.around(static_optimal, condition, n_buckets),
        "replanned": replanned,
    }


def rl_experts(by_condition: Mapping[str, RLExpert]) -> Calibrate:
    """The reinforcement-learning experts by the name of the condition each was trained in.

    Calibrating raises KeyError for a condition without one.
    """

    def calibrate(conditions: Sequence[Condition], paths_each: int, n_buckets: int) -> RLExpert:
        return RLExpert.beside([by_condition[c.name] for c in conditions])

    return calibrate
