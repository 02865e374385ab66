"""The ensemble of experts, by name, each calibrated to the conditions in which it trades."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flowoe_lib.execution.execution import Policy
from flowoe_lib.market.batching import batch
from flowoe_lib.market.model import Condition, Market, Order
from flowoe_lib.policies.almgren_chriss import almgren_chriss
from flowoe_lib.policies.replanning import mpc, replanned
from flowoe_lib.policies.rl import RLExpert
from flowoe_lib.policies.schedules import EstimatedSchedule, Schedule, static_optimal, twap, vwap

Calibrate = Callable[[Sequence[Condition], int, int], Policy]
"""(conditions, paths of each, buckets) -> an expert calibrated to the batch of these conditions."""


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
    "mpc": _same_everywhere(mpc),
}
"""Experts in closed form or solved numerically, calibrated to the exact parameters of a condition.

TWAP follows the clock and VWAP the volume forecast. Almgren-Chriss and the static optimum are solved before
the open. The re-planned expert (by mean forecasts) and model predictive control (by their whole path) also
observe the current variance and depth.
"""


BENCHMARKS = ("twap", "vwap", "almgren_chriss", "static_optimal")
"""The experts whose schedule is fixed before the open: the traditional benchmarks."""


def from_estimates(condition: Condition, n_buckets: int) -> dict[str, Policy]:
    """The same experts calibrated to estimated parameters, which differ from path to path."""
    return {
        "twap": twap,
        "vwap": vwap,
        "almgren_chriss": EstimatedSchedule.around(almgren_chriss, condition, n_buckets),
        "static_optimal": EstimatedSchedule.around(static_optimal, condition, n_buckets),
        "replanned": replanned,
        "mpc": mpc,
    }


def rl_experts(trained: Mapping[str, Mapping[str, Any]]) -> Calibrate:
    """Calibrate by looking up ``trained["world/condition"]["rl"]``, the expert of each condition.

    Calibration raises KeyError for a condition without an expert.
    """

    def calibrate(conditions: Sequence[Condition], paths_each: int, n_buckets: int) -> RLExpert:
        return RLExpert.beside([trained[f"{c.world}/{c.name}"]["rl"] for c in conditions])

    return calibrate
