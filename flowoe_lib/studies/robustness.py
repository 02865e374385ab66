"""Robustness to a wrong model: policies trained or planned in one setting and tested in another."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd
import torch
from torch import Tensor

from flowoe_lib.evaluation.intervals import paired_interval
from flowoe_lib.execution.execution import Policies
from flowoe_lib.execution.information import Information, exact
from flowoe_lib.market.model import Market, Order, scalar
from flowoe_lib.market.simulator import MarketPaths, simulate
from flowoe_lib.policies.flow import EndpointField, TrainingRun, pack
from flowoe_lib.policies.oracle import solve_oracle
from flowoe_lib.policies.replanning import mpc
from flowoe_lib.policies.schedules import twap
from flowoe_lib.randomness import generator
from flowoe_lib.training.plateau import Days
from flowoe_lib.training.refinement import RefiningPolicy, ascend

JUMPS = 2.0
"""Price jumps a day, in settings that have them."""


RATE = 4e-2
"""Peak learning rate of refinement in a market, as in :func:`flowoe_lib.training.refinement.refine`."""


@dataclass(frozen=True)
class Setting:
    """A market in which policies are trained, planned or tested."""

    name: str
    market: Market
    jumps: float = 0.0
    """Variance of price jumps over the mean variance between them. Source: Merton (1976), Journal of
    Financial Economics 3."""

    def days(self, n_paths: int, n_buckets: int, seed: int) -> MarketPaths:
        """Simulated days; the jumps do not change the draws of anything else."""
        paths = simulate(self.market, n_paths, n_buckets, generator(seed, "robustness", "days"))
        draws, theta, dt = generator(seed, "robustness", "jumps"), self.market.heston.theta, paths.dt
        counts = torch.poisson(torch.full_like(paths.variance, JUMPS * dt), draws)
        move = torch.randn(counts.shape, generator=draws) * (counts * self.jumps * theta / JUMPS).sqrt()
        return replace(
            paths,
            martingale_bps=paths.martingale_bps + 1e4 * move,
            integrated_variance=paths.integrated_variance + move.square(),
            expected_variance=paths.expected_variance + self.jumps * theta * dt,
        )

    def information(self, paths: MarketPaths) -> Information:
        """What a trader knows of ``paths`` who believes in this setting: the variance between jumps, exactly.

        The variance of the jumps is added to it; illiquidity and gamma keep the costs as they are.
        """
        heston, impact, liquidity = self.market.heston, self.market.impact, self.market.liquidity
        total = 1 + self.jumps
        believed = replace(
            self.market,
            heston=replace(heston, theta=heston.theta * total, cv=heston.cv / total),
            impact=replace(impact, gamma=impact.gamma / total**0.5),
            liquidity=replace(liquidity, illiquidity=liquidity.illiquidity / total**0.5),
        )
        return Information(believed, paths.variance + self.jumps * heston.theta, paths.log_depth)


def settings_around(base: Market) -> list[Setting]:
    """``base`` and markets that differ from it in one thing each."""

    def impact(**changes: float) -> Market:
        return replace(base, impact=replace(base.impact, **{k: scalar(v) for k, v in changes.items()}))

    def kappa(factor: float) -> Market:
        return replace(base, heston=replace(base.heston, kappa=base.heston.kappa * factor))

    return [
        Setting("base", base),
        Setting("a = 1/2", impact(variance_exponent=0.5)),
        Setting("a = 1", impact(variance_exponent=1.0)),
        Setting("beta = 0.5", impact(beta=0.5)),
        Setting("beta = 0.7", impact(beta=0.7)),
        Setting("kappa / 3", kappa(1 / 3)),
        Setting("kappa x 3", kappa(3.0)),
        Setting("jumps", base, 0.5),
    ]


def retrain(
    start: EndpointField,
    settings: Sequence[Setting],
    order: Order,
    n_buckets: int,
    iterations: int,
    seed: int,
    paths: int = 288,
) -> dict[str, Tensor]:
    """Refine ``start`` in each setting without jumps; :func:`flowoe_lib.policies.flow.pack`, by place."""
    runs = {}
    for i, setting in enumerate(settings):
        if setting.jumps:
            continue
        field, draws = copy.deepcopy(start), generator(seed, "robustness", setting.name)
        acting, draw = partial(RefiningPolicy, field), partial(_always, setting.market, order)
        curves = ascend(field, acting, draw, n_buckets, iterations, draws, paths, RATE, exact)
        runs[i] = TrainingRun(field, curves)
    return pack(runs)


def _always(market: Market, order: Order, n: int, draws: torch.Generator) -> tuple[Market, Order]:
    return market, order


def cross_test(
    contenders: Mapping[str, Policies],
    settings: Sequence[Setting],
    order: Order,
    n_buckets: int,
    n_paths: int,
    seed: int,
) -> pd.DataFrame:
    """Every contender of every setting, believing in that setting, tested in every setting.

    ``contenders`` are policies by name and by name of their setting. The reference is the oracle, or model
    predictive control with the right model if there are jumps. Rows: policy, setting, tested_in, reference,
    capture (gain over TWAP as a part of the reference's), and regret, the reference's lead as a share of its
    cost (temporary impact and the charge for risk), with ends of its 95 % interval over days.
    """
    rows, noise = [], partial(generator, seed, "robustness", "noise")
    for tested in settings:
        paths = tested.days(n_paths, n_buckets, seed)
        own = Days(paths, tested.market, order, tested.information(paths))
        with torch.no_grad():
            solved = mpc if tested.jumps else solve_oracle(tested.market, order, n_buckets)
            optimum, reference = own.execute(solved, noise()), "mpc" if tested.jumps else "oracle"
            best = optimum.utility_bps(order).double()
            floor = own.utility(twap, noise()).double()
            cost = (optimum.temporary_bps + order.risk_aversion * optimum.expected_risk).mean().item()
            for name, policies in contenders.items():
                for believed in (s for s in settings if s.name in policies):
                    days = replace(own, known=believed.information(paths))
                    reached = days.utility(policies[believed.name], noise()).double()
                    capture = ((reached - floor).mean() / (best - floor).mean()).item()
                    regret = (x / cost for x in paired_interval(best - reached))
                    rows.append((name, believed.name, tested.name, reference, capture, *regret))
    columns = ["policy", "setting", "tested_in", "reference", "capture", "regret"]
    return pd.DataFrame(rows, columns=[*columns, "regret_ci_low", "regret_ci_high"])
