"""The range of conditions a policy is trained on, each drawn at random path by path."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flowoe_lib.market import Heston, Impact, Liquidity, Market, Order, scalar

__all__ = ["TrainingRange"]


@dataclass(frozen=True)
class TrainingRange:
    """Lowest and highest value of everything that differs between conditions.

    A covariate that never varied in training is extrapolated arbitrarily, so each one that a policy
    observes is drawn. Volatility, size and risk aversion are log-uniform, the rest uniform.
    """

    kappa: float
    rho: float
    volatility: tuple[float, float] = (0.005, 0.05)
    """sqrt(theta), per square root of a day."""
    illiquidity: tuple[float, float] = (1.0, 4.0)
    cv: tuple[float, float] = (0.4, 1.8)
    size: tuple[float, float] = (0.01, 0.25)
    """phi, of ADV."""
    risk_aversion: tuple[float, float] = (4e-5, 1e-3)
    """lambda, per bps."""
    depth_sd: tuple[float, float] = (0.0, 0.0)
    depth_reversion: float = 12.0
    profile_amplitude: tuple[float, float] = (0.0, 0.0)
    beta: float = 0.6

    def draw(self, n: int, generator: torch.Generator) -> tuple[Market, Order]:
        """A market and an order with fields of shape [n]."""

        def uniform(bounds: tuple[float, float]) -> Tensor:
            return bounds[0] + (bounds[1] - bounds[0]) * torch.rand(n, generator=generator)

        def log_uniform(bounds: tuple[float, float]) -> Tensor:
            return torch.exp(uniform((math.log(bounds[0]), math.log(bounds[1]))))

        heston = Heston(
            theta=log_uniform(self.volatility).square(),
            kappa=scalar(self.kappa),
            cv=uniform(self.cv),
            rho=scalar(self.rho),
        )
        liquidity = Liquidity(
            illiquidity=uniform(self.illiquidity),
            depth_sd=uniform(self.depth_sd),
            depth_reversion=scalar(self.depth_reversion),
            profile_amplitude=uniform(self.profile_amplitude),
        )
        order = Order(size=log_uniform(self.size), risk_aversion=log_uniform(self.risk_aversion))
        return Market(heston, Impact(beta=scalar(self.beta)), liquidity), order
