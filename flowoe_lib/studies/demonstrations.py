"""Demonstrations that FlowOE imitates: the experts in a grid, at the risk aversion in use and at others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from flowoe_lib.execution.execution import Policies
from flowoe_lib.market.batching import map_tensors
from flowoe_lib.market.model import Condition, scalar
from flowoe_lib.policies.ensemble import SCHEDULE_EXPERTS, Experts, rl_experts
from flowoe_lib.studies.side_by_side import trained
from flowoe_lib.training.imitation import Demonstrations, demonstrate, imitate, merge

SCHEDULES: Experts = {name: make for name, make in SCHEDULE_EXPERTS.items() if name != "vwap"}
"""The experts that need no training. Volume is flat in the grid, where VWAP is TWAP."""


@dataclass(frozen=True)
class Ensemble:
    """The experts of a grid of conditions, and how many days each of them demonstrates."""

    grid: Sequence[Condition]
    learned: Mapping[str, Policies]
    """The RL expert of each condition, ``learned["world/condition"]["rl"]``."""
    n_buckets: int
    seed: int
    days: int
    """Days of each expert and condition at the risk aversion in use."""
    other_risk_aversions: Sequence[float]
    """Per bps; there only experts without training demonstrate."""
    other_days: int
    """Days of each of those experts, condition and other risk aversion."""

    @property
    def experts(self) -> Experts:
        """All experts, by name."""
        return {**SCHEDULES, "rl": rl_experts(self.learned)}

    def at_use(self) -> Demonstrations:
        """Demonstrations of all experts at the risk aversion in use, [experts, N - 1, days, ...]."""
        return self._shown(self.experts, self.grid, self.days)

    def elsewhere(self) -> Demonstrations:
        """Demonstrations at the other risk aversions, [experts, N - 1, days, ...]."""
        others = [
            replace(c, order=replace(c.order, risk_aversion=scalar(aversion)))
            for c in self.grid
            for aversion in self.other_risk_aversions
        ]
        return self._shown(SCHEDULES, others, self.other_days)

    def _shown(self, experts: Experts, conditions: Sequence[Condition], days: int) -> Demonstrations:
        shown = demonstrate(experts, conditions, days, self.n_buckets, self.seed)
        shape = len(experts), self.n_buckets - 1, -1
        split: Demonstrations = map_tensors(lambda x: x.unflatten(0, shape), shown)
        return split


def together(parts: Sequence[Demonstrations]) -> Demonstrations:
    """The samples of all parts, each [experts, N - 1, days, ...], in one set [samples, ...]."""
    return merge([map_tensors(lambda x: x.flatten(0, 2), part) for part in parts])


def imitators(ensemble: Ensemble, iterations: int, seeds: Sequence[int]) -> dict[str, Tensor]:
    """Imitate the ensemble from each seed; :func:`flowoe_lib.policies.flow.pack`."""
    shown = together([ensemble.at_use(), ensemble.elsewhere()])
    return trained(imitate, {seed: (shown, iterations, seed) for seed in seeds})
