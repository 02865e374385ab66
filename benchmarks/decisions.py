"""Time of one decision: FlowOE, an RL expert, re-planning, model predictive control and the oracle's table.

All decide on the same states in the middle of the day, one state alone and many at once, in one thread.
FlowOE is measured with one and with eight solver steps, as eager torch and compiled by torch.compile, which
needs a C++ compiler. The weights of the RL expert are random, which does not matter to its time. The oracle
must first be solved for the condition; that time is a row of its own, once for each condition. FlowOE and
both planners also decide where impact has memory and there is a noisy signal: there MPC solves a convex
problem by Newton's method.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from _report import by_turns, report
from torch import Tensor, nn

from flowoe_lib.execution.execution import Observation, OrderSimulation, Policy
from flowoe_lib.execution.features import FEATURES
from flowoe_lib.market.impact import with_half_life
from flowoe_lib.market.model import Heston, Market, Order, scalar
from flowoe_lib.market.signal import with_signal
from flowoe_lib.market.simulator import simulate
from flowoe_lib.policies.oracle import solve_oracle
from flowoe_lib.policies.replanning import mpc, replanned
from flowoe_lib.policies.rl import RLExpert
from flowoe_lib.randomness import generator
from flowoe_lib.training.pretrained import load_pretrained

BATCHES, STEPS, BUCKET = (1, 10_000), 39, 19
REPETITIONS = {1: 200, 10_000: 10}
MARKET = Market(Heston(scalar(4e-4), scalar(2.0), scalar(0.5), scalar(-0.8)))
FULL = with_signal(with_half_life(MARKET, scalar(0.15)), scalar(0.3), scalar(2.0))
ORDER = Order(scalar(0.1), scalar(5e-4))
UNIT = "FlowOE, K = 1, eager"


class Decision(nn.Module):
    """A policy as a module of what differs between states, the form that is compiled."""

    def __init__(self, policy: Policy, obs: Observation) -> None:
        super().__init__()
        self.policy, self.obs = policy, obs

    def forward(self, inventory: Tensor, variance: Tensor, noise: Tensor) -> Tensor:
        return self.policy(replace(self.obs, inventory=inventory, variance=variance), noise)


def expert() -> RLExpert:
    """An expert of two layers of 32, as trained in notebook 2."""
    widths, draws = (len(FEATURES), 32, 32, 1), generator(1, "decisions")
    shapes = zip(widths[1:], widths[:-1], strict=True)
    layers = [(torch.randn(1, *shape, generator=draws), torch.zeros(1, 1, shape[0])) for shape in shapes]
    return RLExpert(tuple(layers))


def main() -> None:
    torch.set_num_threads(1)
    trained = load_pretrained()
    start = time.perf_counter()
    oracle = solve_oracle(MARKET, ORDER, STEPS)
    solving = time.perf_counter() - start
    policies: dict[str, Policy] = {f"FlowOE, K = {k}, eager": trained.policy(k) for k in (1, 8)}
    policies |= {"RL expert": expert(), "re-planned": replanned, "MPC": mpc, "oracle, look-up": oracle}
    rows: list[list[object]] = []
    with torch.no_grad():
        for batch in BATCHES:
            draws = generator(1, "decisions", batch)
            days, full = (OrderSimulation(simulate(m, batch, STEPS, draws), m, ORDER) for m in (MARKET, FULL))
            inventory = 0.1 + 0.8 * torch.rand(batch, generator=draws)
            obs = days.observe(BUCKET, inventory)
            state = inventory, obs.variance, torch.randn(batch, generator=draws)
            decisions: dict[str, Callable[..., Tensor]] = {
                name: Decision(policy, obs) for name, policy in policies.items()
            }
            beside = full.observe(BUCKET, inventory, (1 - inventory) / 2)
            for name in (UNIT, "re-planned", "MPC"):
                decisions[f"{name}, memory and signal"] = Decision(policies[name], beside)
            for name in [name for name in decisions if "eager" in name]:
                decisions[name.replace("eager", "compiled")] = torch.compile(decisions[name])
            kernels = {name: partial(decide, *state) for name, decide in decisions.items()}
            by_turns(kernels, 3)
            best = by_turns(kernels, REPETITIONS[batch])
            for name, seconds in best.items():
                rows.append([batch, name, 1e6 * seconds, 1e6 * seconds / batch, seconds / best[UNIT]])
    rows.append(["-", "oracle, solving", 1e6 * solving, "-", "-"])
    header = ("batch", "policy", "microseconds a call", "microseconds a decision", f"over {UNIT}")
    report("decisions", header, rows)


if __name__ == "__main__":
    main()
