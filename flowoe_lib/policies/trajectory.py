"""The best trades of what is left of an order under impact with memory, if forecasts were certain.

With y_k = E_k + a_k the impact state after the trade of bucket k, d its decay to the next bucket and w_k the
weights of :func:`flowoe_lib.market.impact.memory_weights`, the trades cost sum_k w_k y_k^(1 + beta). The sum
T_k = q_k + E_k of inventory and impact state is the same before and after a trade, and
T_{k+1} = T_k - (1 - d) y_k, so each trade is the choice of y_k between E_k (no trade) and T_k (all that is
left).
"""

import torch
from torch import Tensor

from flowoe_lib.market.impact import impact_path, memory_weights

ITERATIONS, TOLERANCE = 40, 1e-6
"""Newton steps, at most, and the gain relative to the cost of a block trade below which they end."""


STEPS = torch.tensor([1.0, 0.4, 0.1, 0.0])
"""Step lengths of the line search."""


FLOOR = 1e-7
"""Smallest impact state at which curvature is evaluated; for beta < 1 it is infinite at zero."""


def best_trades(
    slope: Tensor, decay: Tensor, beta: Tensor, pull: Tensor, drift: Tensor, inventory: Tensor, impact: Tensor
) -> Tensor:
    """Best trades a >= 0 of ``inventory`` at the ``impact`` state if all forecasts were certain, [N, paths].

    Minimises sum_k s_k ((E_k + a_k)^(1 + beta) - E_k^(1 + beta)) + pull_k q_{k+1}^2 / 2 - drift_k q_{k+1} for
    ``slope`` s, ``pull`` and ``drift`` [N, paths] of the buckets left, by Newton's method: the steps follow
    from a backward recursion of the quadratic model, in T and E, with the bounds of y respected in each
    bucket. Where a weight w is negative the problem may not be convex, and the optimum found is local.
    ``decay`` and ``beta`` are [] or [paths], ``inventory`` and ``impact`` [paths]. Source: Tassa, Mansard,
    Todorov (2014), "Control-limited differential dynamic programming", ICRA.
    """
    n, beyond = len(slope), 1 + beta
    weight = memory_weights(slope, decay, beta)
    steps, first = STEPS.to(inventory), torch.zeros_like(inventory)
    scale = (slope[-1] * (inventory + impact) ** beyond).clamp_min(1e-12)
    even = inventory / n
    states = impact_path(even.expand(n, *even.shape), decay, impact)[:-1]
    # (T, E and y of the present plan, then the change of y: constant, by T and by E) of each bucket. At first
    # nothing changes, so T and E may be anything.
    plan: list[tuple[Tensor, ...]] = [(first, first, state + even, first, first, first) for state in states]

    def follow(step: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]]]:
        """Cost of the changed plan, and its T, E and y."""
        total, state, cost, visited = inventory + impact, impact, first, []
        for k, (was_total, was_state, y, change, by_total, by_state) in enumerate(plan):
            y = y + step * change + by_total * (total - was_total) + by_state * (state - was_state)
            y = torch.minimum(torch.maximum(y, state), total) if k < n - 1 else total
            left = total - y
            visited.append((total, state, y))
            cost = cost + weight[k] * y**beyond + (pull[k] / 2 * left - drift[k]) * left
            total, state = left + decay * y, decay * y
        return cost, visited

    best, points = follow(steps[-1])
    shorter, found = steps.reshape(-1, *[1] * first.dim()), torch.zeros_like(first, dtype=torch.bool)
    for _ in range(ITERATIONS):
        v_t = v_e = v_tt = v_te = v_ee = first
        for k in reversed(range(n)):
            total, state, y = points[k]
            held, safe = pull[k] * (total - y) - drift[k], y.clamp_min(FLOOR)
            power = beyond * safe**beta
            gradient = weight[k] * power - held - (1 - decay) * v_t + decay * v_e
            curvature = weight[k].clamp_min(1e-6) * beta * power / safe + pull[k]
            curvature = curvature + (1 - decay) * ((1 - decay) * v_tt - 2 * decay * v_te) + decay**2 * v_ee
            cross = decay * v_te - (1 - decay) * v_tt - pull[k]
            change = -gradient / curvature
            none = (y + change < state).to(y)
            all_left = (y + change > total).to(y) if k < n - 1 else torch.ones_like(y)
            none = none * (1 - all_left)
            free = 1 - none - all_left
            change = free * change + none * (state - y) + all_left * (total - y)
            by_total = all_left - free * cross / curvature
            plan[k] = total, state, y, change, by_total, none
            ahead = gradient + curvature * change
            v_t = held + v_t + by_total * ahead + cross * change
            v_tt = pull[k] + v_tt + by_total * (2 * cross + by_total * curvature)
            v_e, v_te, v_ee = none * ahead, none * cross, none * curvature
        # A path's plan does not change once it is found, so it does not depend on the other paths.
        length = torch.where(found, 0, steps[0])
        cost, points = follow(length)
        worse = cost > best + TOLERANCE * scale
        if bool(worse.any()):
            cost, points = follow(torch.where(worse, steps[follow(shorter)[0].argmin(0)], length))
        found, best = found | (best - cost < TOLERANCE * scale), cost
        if bool(found.all()):
            break
    return torch.stack([y - state for _, state, y in points])
