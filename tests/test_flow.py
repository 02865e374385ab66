"""The flow against an independent ODE solver, exact Gaussian fields and the theory of its loss."""

import math
from collections.abc import Callable

import pytest
import torch
from scipy.integrate import quad
from torch import Tensor
from torchdiffeq import odeint

from flowoe_lib.execution.execution import Observation
from flowoe_lib.execution.features import FEATURES, features
from flowoe_lib.market.model import Heston, Market, Order, scalar
from flowoe_lib.market.pre_trade import PreTrade
from flowoe_lib.policies.flow import (
    EndpointField,
    FlowPolicy,
    TrainingRun,
    interpolate,
    matching_loss,
    pack,
    sample,
    unpack,
)
from flowoe_lib.randomness import generator
from flowoe_lib.training.imitation import Demonstrations, imitate

WEIGHTS, MEANS, SPREADS = (0.35, 0.65), (-1.0, 1.0), (0.4, 0.4)


class Exact(EndpointField):
    """A field given by a formula of position and time."""

    def __init__(self, formula: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(generator(0, "init"))
        self.formula = formula

    def forward(self, x: Tensor, t: Tensor, encoded: Tensor) -> Tensor:
        return self.formula(x, t)


def field(seed: int = 1, n_features: int = len(FEATURES)) -> EndpointField:
    """A random one whose dependence on position and time is marked."""
    made = EndpointField(generator(seed, "init"), n_features)
    with torch.no_grad():
        made.corrupt.weight.mul_(2)
        made.out.weight.mul_(3)
    return made


def posterior_mean(x: Tensor, t: Tensor) -> Tensor:
    """E[x_1 | x_t = x] where x_1 is the Gaussian mixture and x_t = (1 - t) x_0 + t x_1."""
    likelihood, mean = [], []
    for w, m, s in zip(WEIGHTS, MEANS, SPREADS, strict=True):
        spread = (1 - t) ** 2 + (t * s) ** 2
        likelihood.append(w * torch.exp(-((x - t * m) ** 2) / (2 * spread)) / spread.sqrt())
        mean.append(m + t * s**2 / spread * (x - t * m))
    weight = torch.stack(likelihood)
    return (weight * torch.stack(mean)).sum(0) / weight.sum(0)


def mixture_cdf(x: Tensor) -> Tensor:
    parts = zip(WEIGHTS, MEANS, SPREADS, strict=True)
    return torch.stack([w * torch.special.ndtr((x - m) / s) for w, m, s in parts]).sum(0)


def ranks(n: int) -> Tensor:
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_sampler_converges_to_the_ode_at_order_one(seed: int) -> None:
    made, draws = field(seed).double(), generator(seed, "test")
    encoded = made.encode(torch.randn(200, len(FEATURES), generator=draws, dtype=torch.float64))
    noise = torch.randn(200, generator=draws, dtype=torch.float64)

    def endpoint(x: Tensor, t: Tensor) -> Tensor:
        # The pull of the position fades, so that the path is smooth up to its end; where it does not, with a
        # slope a of x1hat in x, the path ends like (1 - t)^(1 - a), and no fixed step has its full order.
        answer: Tensor = made((1 - t) * x, t, encoded)
        return answer

    def velocity(s: Tensor, x: Tensor) -> Tensor:
        # In the clock s = -log(1 - t) the velocity (x1hat - x) / (1 - t) has no pole at the end.
        return endpoint(x, (1 - torch.exp(-s)).expand_as(x)) - x

    with torch.no_grad():
        ends = torch.tensor([0.0, 16.0], dtype=torch.float64)
        exact = odeint(velocity, noise, ends, method="dopri5", rtol=1e-9, atol=1e-9)[-1]
        errors = [
            (sample(Exact(endpoint), encoded, noise, k) - exact).abs().mean() for k in (1, 64, 128, 256, 2000)
        ]
    assert errors[0] > 0.005
    assert math.log2(errors[1] / errors[2]) == pytest.approx(1, abs=0.03)
    assert math.log2(errors[2] / errors[3]) == pytest.approx(1, abs=0.03)
    assert errors[4] < 2e-4


def test_sampler_of_a_network_converges_to_its_ode() -> None:
    made, draws = field().double(), generator(2, "test")
    encoded = made.encode(torch.randn(200, len(FEATURES), generator=draws, dtype=torch.float64))
    noise = torch.randn(200, generator=draws, dtype=torch.float64)

    def velocity(s: Tensor, x: Tensor) -> Tensor:
        endpoint: Tensor = made(x, (1 - torch.exp(-s)).expand_as(x), encoded)
        return endpoint - x

    with torch.no_grad():
        ends = torch.tensor([0.0, 16.0], dtype=torch.float64)
        exact = odeint(velocity, noise, ends, method="dopri5", rtol=1e-9, atol=1e-9)[-1]
        errors = [(sample(made, encoded, noise, k) - exact).abs().max() for k in (1, 20, 2000)]
    assert errors[0] > 0.05
    assert errors[1] < errors[0] / 10
    assert errors[2] < 2e-3


def test_exact_field_carries_noise_to_the_mixture() -> None:
    # One-dimensional flows keep ranks, so the quantiles of the noise must become those of the mixture.
    rank = ranks(2000)
    noise = torch.special.ndtri(rank)
    errors = []
    for steps in (50, 100, 200, 400):
        x = sample(Exact(posterior_mean), noise, noise, steps)
        assert (x.diff() > 0).all()
        errors.append(float((mixture_cdf(x) - rank).abs().mean()))
    assert errors[-1] < 2e-3
    assert math.log2(errors[2] / errors[3]) == pytest.approx(1, abs=0.15)
    mean = sum(w * m for w, m in zip(WEIGHTS, MEANS, strict=True))
    second = sum(w * (m**2 + s**2) for w, m, s in zip(WEIGHTS, MEANS, SPREADS, strict=True))
    assert float(x.mean()) == pytest.approx(mean, abs=5e-3)
    assert float(x.square().mean()) == pytest.approx(second, abs=1e-2)
    # A single step lands on the mean instead: it cannot show two modes.
    assert float(sample(Exact(posterior_mean), noise, noise, 1).std()) < 0.05


def test_imitation_recovers_both_modes_of_either_mixture() -> None:
    """One observation sees the mixture, another its mirror image."""
    draws, n = generator(3, "test"), 20_000
    first = torch.rand(n, generator=draws) < WEIGHTS[0]
    shock = torch.randn(n, generator=draws)
    scores = torch.where(first, MEANS[0] + SPREADS[0] * shock, MEANS[1] + SPREADS[1] * shock)
    mirrored = torch.rand(n, generator=draws) < 0.5
    observed = torch.zeros(n, len(FEATURES))
    observed[mirrored, 3] = 1
    shown = Demonstrations(observed, torch.where(mirrored, -scores, scores), torch.ones(n))
    learned = imitate(shown, 1500, 4, learning_rate=1e-2)
    noise = torch.special.ndtri(ranks(4000)).float()
    for mirror in (False, True):
        obs = torch.zeros(4000, len(FEATURES))
        obs[:, 3] = float(mirror)
        with torch.no_grad():
            x = sample(learned.field, learned.field.encode(obs), noise, 100) * (-1 if mirror else 1)
        distance = (mixture_cdf(x.double().sort().values) - ranks(4000)).abs()
        assert distance.max() < 0.08
        assert distance.mean() < 0.035
        # Few lie between the modes, where a policy that averaged its experts would be.
        for low, high in ((-9.0, -0.5), (-0.25, 0.25), (0.5, 9.0)):
            ends = mixture_cdf(torch.tensor([low, high], dtype=torch.float64))
            share = ((x > low) & (x < high)).double().mean()
            assert float(share) == pytest.approx(float(ends[1] - ends[0]), abs=0.05)
    curve = learned.curves["loss"]
    assert curve.shape == (1500,)
    assert curve[-100:].mean() < 0.7 * curve[:10].mean()


def test_matching_loss_is_least_at_the_conditional_mean() -> None:
    """Where the action is linear in the observation with Gaussian noise everything is known."""
    draws, n, spread = generator(5, "test"), 400_000, 0.6
    observed = torch.randn(n, len(FEATURES), generator=draws)
    mean = 0.8 * observed[:, 0] - 0.5
    x1 = mean + spread * torch.randn(n, generator=draws)
    x0, t = torch.randn(n, generator=draws), torch.rand(n, generator=draws)

    def conditional_mean(x: Tensor, t: Tensor) -> Tensor:
        gain = t * spread**2 / ((1 - t) ** 2 + t**2 * spread**2)
        return mean + gain * (x - t * mean)

    def loss(formula: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return matching_loss(Exact(formula), observed, x1, x0, t).double()

    least = loss(conditional_mean)
    # What is left at the minimum is the conditional variance of the action.
    variance = quad(lambda u: (spread * (1 - u)) ** 2 / ((1 - u) ** 2 + (u * spread) ** 2), 0, 1)[0]
    assert abs(float((least.mean() - variance) / least.std())) * math.sqrt(n) < 4.5
    # Any departure h adds exactly E[h^2]: the error at the minimum is orthogonal to everything seen.
    violations: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda x, t: 0.3 * torch.ones_like(x),
        lambda x, t: 0.3 * x,
        lambda x, t: 0.3 * torch.sin(3 * x) * t,
        lambda x, t: 0.3 * observed[:, 0] * (1 - t),
    ]
    for h in violations:
        added = loss(lambda x, t, h=h: conditional_mean(x, t) + h(x, t)) - least  # type: ignore[misc]
        excess = added - h(interpolate(x0, x1, t), t).double().square()
        assert abs(float(excess.mean() / excess.std())) * math.sqrt(n) < 4.5
        assert added.mean() > 4.5 * added.std() / math.sqrt(n)


def test_path_is_straight_from_noise_to_action() -> None:
    x0, x1 = torch.randn(2, 50)
    torch.testing.assert_close(interpolate(x0, x1, torch.zeros(50)), x0)
    torch.testing.assert_close(interpolate(x0, x1, torch.ones(50)), x1)
    torch.testing.assert_close(interpolate(x0, x1, torch.full((50,), 0.25)), x0 + (x1 - x0) / 4)


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_last_step_lands_on_the_predicted_endpoint(steps: int) -> None:
    visited: list[tuple[Tensor, Tensor]] = []
    inner = field()
    encoded = inner.encode(torch.randn(40, len(FEATURES), generator=generator(6, "test")))

    def watched(x: Tensor, t: Tensor) -> Tensor:
        endpoint: Tensor = inner(x, t, encoded)
        visited.append((t, endpoint))
        return endpoint

    noise = torch.randn(40, generator=generator(7, "test"))
    with torch.no_grad():
        end = sample(Exact(watched), encoded, noise, steps)
    torch.testing.assert_close(end, visited[-1][1])
    times = torch.stack([t for t, _ in visited])
    torch.testing.assert_close(times, (torch.arange(steps) / steps)[:, None].expand(-1, 40))
    # A field that returns the true endpoint gives it in any number of steps.
    torch.testing.assert_close(
        sample(Exact(lambda x, t: torch.full_like(x, 2.5)), encoded, noise, steps), torch.full((40,), 2.5)
    )


def observation(n_paths: int) -> Observation:
    market = Market(Heston(scalar(4e-4), scalar(5.0), scalar(0.8), scalar(-0.6)))
    draws = generator(8, "test")
    return Observation(
        k=7,
        n_buckets=39,
        inventory=torch.rand(n_paths, generator=draws),
        return_bps=torch.randn(n_paths, generator=draws),
        variance=4e-4 * torch.rand(n_paths, generator=draws),
        log_depth=torch.zeros(1),
        volume=torch.ones(39, 1),
        market=market,
        order=Order(scalar(0.1), scalar(5e-4)),
        pre_trade=PreTrade.of(market, Order(scalar(0.1), scalar(5e-4))),
    )


def test_policy_encodes_once_and_decides_as_if_it_encoded_at_every_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, obs = field(), observation(30)
    noise = torch.randn(30, generator=generator(9, "test"))
    calls: list[Tensor] = []
    encode = made.encode

    def counted(observed: Tensor) -> Tensor:
        calls.append(observed)
        return encode(observed)

    monkeypatch.setattr(made, "encode", counted)
    with torch.no_grad():
        fraction = FlowPolicy(made, 4)(obs, noise)
        assert len(calls) == 1
        x = noise
        for i in range(4):
            x = x + (made(x, torch.full((30,), i / 4), encode(features(obs))) - x) / (4 - i)
    # The fraction 1 / (1 + (n - 1) exp(-z)) of a score z, which x corrects in its unit, and n = 32.
    score = (obs.anchor + obs.pre_trade.correction_unit * x).clamp(-10, 10)
    torch.testing.assert_close(fraction, 1 / (1 + 31 * torch.exp(-score)))


def test_policy_is_a_function_of_observation_and_noise() -> None:
    policy, obs = FlowPolicy(field(), 3), observation(30)
    noise = torch.randn(30, generator=generator(9, "test"))
    with torch.no_grad():
        first, second = policy(obs, noise), policy(obs, noise)
        other = policy(obs, -noise)
    assert torch.equal(first, second)
    assert (first != other).all()
    assert ((first > 0) & (first < 1)).all()


@pytest.mark.parametrize("through", ["loss", "sample"])
def test_gradient_reaches_every_parameter(through: str) -> None:
    made, draws = field(), generator(10, "test")
    observed = torch.randn(64, len(FEATURES), generator=draws)
    x0, x1, t = (
        torch.randn(64, generator=draws),
        torch.randn(64, generator=draws),
        torch.rand(64, generator=draws),
    )
    if through == "loss":
        matching_loss(made, observed, x1, x0, t).mean().backward()
    else:
        sample(made, made.encode(observed), x0, 3).square().mean().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().max() > 0, name
        if parameter.dim() == 2:
            # No unit is cut off.
            assert (parameter.grad.abs().amax(1) > 0).float().mean() > 0.95


def test_weights_come_from_the_generator_alone() -> None:
    made = []
    for world, seed in ((5, 1), (6, 1), (5, 2)):
        torch.manual_seed(world)
        made.append(EndpointField(generator(seed, "init")))
    first, again, other = made
    for (name, a), b, c in zip(first.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        if name.endswith("weight"):
            assert not torch.equal(a, c), name
            # He's uniform law with a = sqrt(5): within 1 / sqrt(inputs).
            assert a.abs().max() <= 1 / math.sqrt(a.shape[1])
            assert float(a.detach().std()) == pytest.approx(1 / math.sqrt(3 * a.shape[1]), rel=0.15)
        else:
            assert not a.any(), name


def test_runs_are_packed_into_tensors_and_back() -> None:
    runs = {
        3: TrainingRun(field(3), {"loss": torch.rand(5)}),
        11: TrainingRun(field(11), {"loss": torch.rand(4)}),
    }
    back = unpack(pack(runs))
    assert list(back) == [3, 11]
    for seed, run in runs.items():
        assert torch.equal(back[seed].curves["loss"], run.curves["loss"])
        for name, value in run.field.state_dict().items():
            assert torch.equal(back[seed].field.state_dict()[name], value)
    narrow = EndpointField(generator(1, "init"), n_features=4, width=16)
    twin = EndpointField.of(narrow.state_dict())
    observed = torch.randn(6, 4)
    assert torch.equal(twin.encode(observed), narrow.encode(observed))
    with pytest.raises(RuntimeError, match="corrupt"):
        EndpointField.of({k: v for k, v in narrow.state_dict().items() if k != "corrupt.weight"})
