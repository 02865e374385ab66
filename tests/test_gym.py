"""The environments: the market of execute(), equal rewards for batched and single orders, no look-ahead."""

import dataclasses

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from torch import Tensor

from flowoe_lib.execution.environment import (
    ExecutionEnv,
    Reward,
    advance,
    advantage_over_twap,
    controlled_utility,
    realised_utility,
    twap_value,
)
from flowoe_lib.execution.execution import (
    ACTION_LIMIT,
    NO_IMPACT,
    Execution,
    Observation,
    OrderSimulation,
    Policy,
    execute,
    fraction_of_score,
)
from flowoe_lib.execution.features import FEATURES, features
from flowoe_lib.execution.information import Perceive, blind_to_regimes, with_errors
from flowoe_lib.market.batching import map_tensors
from flowoe_lib.market.model import Heston, Impact, Liquidity, Market, Order, Regimes, scalar
from flowoe_lib.market.simulator import MarketPaths, simulate
from flowoe_lib.policies.schedules import twap
from flowoe_lib.randomness import generator
from flowoe_lib.training.vector_environment import ExecutionVecEnv

N = 9
PLAIN = Market(Heston(scalar(4e-4), scalar(5.0), scalar(1.2), scalar(-0.5)))
RICH = Market(
    PLAIN.heston,
    Impact(delta=scalar(0.7)),
    Liquidity(scalar(2.0), scalar(0.5), scalar(12.0), scalar(0.8)),
    drift=scalar(30.0),
)
SWITCHING = dataclasses.replace(
    RICH, regimes=Regimes(scalar(2.0), scalar(3.0), enter=scalar(2.0), leave=scalar(6.0))
)
SELL = Order(scalar(0.1), scalar(5e-4))
BUY = Order(scalar(0.1), scalar(5e-4), scalar(-1.0))
CASES = [
    pytest.param(PLAIN, SELL, id="plain"),
    pytest.param(RICH, BUY, id="rich"),
    pytest.param(SWITCHING, SELL, id="switching"),
]
REWARDS = [controlled_utility, realised_utility, advantage_over_twap]


def days(market: Market, n: int, seed: int = 3) -> MarketPaths:
    """What an ExecutionVecEnv of ``n`` orders and this seed draws first."""
    return simulate(market, n, N, generator(seed, "market"))


def only(paths: MarketPaths, i: int) -> MarketPaths:
    """The day of one order."""
    shared = paths.dt, paths.n_buckets, paths.n_paths
    return map_tensors(lambda x: x.expand(shared[1], shared[2])[:, i : i + 1], paths)  # type: ignore[no-any-return]


def random_scores(n: int) -> Tensor:
    scores = 2 * torch.randn(N - 1, n, generator=generator(5, "scores"))
    return scores.clamp(-ACTION_LIMIT, ACTION_LIMIT)


def replay(scores: Tensor) -> Policy:
    def policy(obs: Observation, noise: Tensor) -> Tensor:
        return fraction_of_score(scores[obs.k], N - obs.k)

    return policy


def rewards_of(simulation: OrderSimulation, scores: Tensor, reward: Reward) -> tuple[Tensor, Tensor]:
    """Rewards [N - 1, paths] of a sequence of scores, and the inventory before each [N, paths]."""
    inventory = torch.ones_like(scores[0])
    held, earned = [inventory], []
    for k, score in enumerate(scores):
        inventory, bps = advance(simulation, k, inventory, score, reward, NO_IMPACT)
        held.append(inventory)
        earned.append(bps)
    return torch.stack(earned), torch.stack(held)


# Scores are meant to be within +-4: a policy that starts with a unit normal in a rescaled +-1 hardly learns.
@pytest.mark.filterwarnings("ignore:.*normalized space:UserWarning")
@pytest.mark.parametrize(("market", "order"), CASES)
def test_gymnasium_finds_nothing_wrong(market: Market, order: Order) -> None:
    env = gymnasium.make("flowoe_lib.execution.environment:flowoe/Execution-v0", market=market, order=order)
    check_env(env.unwrapped, skip_render_check=True)


def test_spaces_match_the_features_and_the_limit() -> None:
    env = ExecutionEnv()
    assert env.observation_space.shape == (len(FEATURES),)
    assert isinstance(env.action_space, gymnasium.spaces.Box)
    assert (env.action_space.low.item(), env.action_space.high.item()) == (-ACTION_LIMIT, ACTION_LIMIT)


@pytest.mark.parametrize(("market", "order"), CASES)
def test_every_observation_lies_in_the_space_that_of_the_close_too(market: Market, order: Order) -> None:
    env, many = ExecutionEnv(market, order, N), ExecutionVecEnv(market, order, 3, N, 3)
    observed, _ = env.reset(seed=0)
    met = [observed, *many.reset()]
    for k in range(N - 1):
        observed, _, terminated, _, _ = env.step(np.full(1, 0.5, np.float32))
        rows, _, _, infos = many.step(np.full((3, 1), 0.5, np.float32))
        assert isinstance(rows, np.ndarray)
        met += [observed, *rows]
        assert terminated == (k == N - 2)
    met += [info["terminal_observation"] for info in infos]
    assert all(env.observation_space.contains(row) for row in met)


@pytest.mark.parametrize("reward", REWARDS)
@pytest.mark.parametrize(("market", "order"), CASES)
def test_one_order_and_many_earn_the_same(market: Market, order: Order, reward: Reward) -> None:
    n, unit = 5, 0.7
    many = ExecutionVecEnv(market, order, n, N, 3, reward, unit)
    scores, paths = random_scores(n), days(market, n)
    first = many.reset()
    batched = [many.step(scores[k][:, None].numpy()) for k in range(N - 1)]
    for i in range(n):
        env = ExecutionEnv(market, order, N, reward)
        observed, _ = env.reset(options={"paths": only(paths, i)})
        np.testing.assert_allclose(observed, first[i], atol=1e-5)
        for k in range(N - 1):
            observed, earned, terminated, truncated, _ = env.step(scores[k, i : i + 1].numpy())
            obs, rewards, dones, infos = batched[k]
            assert isinstance(obs, np.ndarray)
            assert earned / unit == pytest.approx(float(rewards[i]), abs=2e-4)
            assert (terminated, truncated) == (bool(dones[i]), False) == (k == N - 2, False)
            ending = infos[i]["terminal_observation"] if terminated else obs[i]
            np.testing.assert_allclose(observed, ending, atol=1e-5)


@pytest.mark.parametrize(("market", "order"), CASES)
def test_rewards_sum_to_the_utility_of_execute(market: Market, order: Order) -> None:
    scores, paths = random_scores(200), days(market, 200)
    done = execute(replay(scores), paths, market, order, generator(0, "unused"))
    totals: dict[Reward, Tensor] = {
        controlled_utility: done.utility_bps(order),
        realised_utility: done.pnl_bps - order.risk_aversion * done.risk,
    }
    for reward, expected in totals.items():
        earned, held = rewards_of(OrderSimulation(paths, market, order), scores, reward)
        torch.testing.assert_close(earned.sum(0), expected, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(held[:-1], done.inventory[:-2])


@pytest.mark.parametrize(("market", "order"), CASES)
def test_advantages_telescope_on_every_path(market: Market, order: Order) -> None:
    market, order = map_tensors(Tensor.double, market), map_tensors(Tensor.double, order)
    scores, paths = random_scores(200).double(), days(market, 200)
    simulation = OrderSimulation(paths, market, order)
    earned, _ = rewards_of(simulation, scores, advantage_over_twap)
    done = execute(replay(scores), paths, market, order, generator(0, "unused"))
    held = done.inventory
    surprises = sum(
        twap_value(simulation, k, k, held[k], NO_IMPACT)
        - twap_value(simulation, k - 1, k, held[k], NO_IMPACT)
        for k in range(1, N)
    )
    expected = done.utility_bps(order) - twap_value(simulation, 0, 0, held[0], NO_IMPACT) - surprises
    torch.testing.assert_close(earned.sum(0), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("market", "order"), CASES)
def test_advantages_sum_to_the_gain_over_twap_in_expectation(market: Market, order: Order) -> None:
    paths = days(market, 20_000)

    def reactive(obs: Observation, noise: Tensor) -> Tensor:
        surprise = (obs.variance / market.heston.theta).clamp_min(1e-3).log() + obs.log_depth
        return fraction_of_score(0.5 * surprise.expand_as(noise), N - obs.k)

    done, even = (
        execute(p, paths, market, order, generator(0, "unused")).utility_bps(order) for p in (reactive, twap)
    )
    simulation, inventory, total = (
        OrderSimulation(paths, market, order),
        torch.ones(20_000),
        torch.zeros(20_000),
    )
    for k in range(N - 1):
        fraction = reactive(simulation.observe(k, inventory), inventory)
        score = torch.logit(fraction) + torch.log(torch.tensor(N - k - 1.0))
        inventory, earned = advance(simulation, k, inventory, score, advantage_over_twap, NO_IMPACT)
        total += earned
    excess = (total - (done - even)).double()
    assert (done - even).mean().abs() > 0.02
    assert excess.mean().abs() < 4 * excess.std() / 20_000**0.5


@pytest.mark.parametrize(("market", "order"), CASES)
def test_the_twap_trade_earns_nothing_over_twap(market: Market, order: Order) -> None:
    earned, _ = rewards_of(
        OrderSimulation(days(market, 100), market, order), torch.zeros(N - 1, 100), advantage_over_twap
    )
    assert earned.abs().max() < 1e-4


@pytest.mark.parametrize("ahead", [0, 1], ids=["from now", "from the next bucket"])
@pytest.mark.parametrize("k", [0, 4, N - 2])
@pytest.mark.parametrize(("market", "order"), CASES)
def test_value_of_twap_is_the_mean_of_simulated_twap_from_any_state(
    market: Market, order: Order, k: int, ahead: int
) -> None:
    n = 40_000
    paths = days(market, n, seed=11)
    simulation = OrderSimulation(paths, market, order)
    q = torch.rand(n, generator=generator(1, "inventory"))
    start, left = k + ahead, q
    simulated = torch.zeros(n)
    for j in range(start, N):
        before = left
        left, *costs = simulation.fill(j, before, before / (N - j))
        simulated += simulation.book(j, torch.stack((before, left)), *costs).utility_bps(order)
    error = (simulated - twap_value(simulation, k, start, q, NO_IMPACT)).double()
    # Unbiased in every state: the error is orthogonal to every feature of the state.
    depth, stressed = (x[k].expand(n) for x in (paths.log_depth, paths.stressed))
    states = torch.ones(n), q, paths.variance[k] / market.heston.theta, depth, stressed
    for state in (s.double() for s in states):
        z = (error * state).mean() / ((error * state).std() / n**0.5 + 1e-6)
        assert z.abs() < 4


def test_value_of_twap_in_the_last_bucket_is_exact() -> None:
    simulation, q = OrderSimulation(days(RICH, 50), RICH, BUY), torch.rand(50)
    left, *costs = simulation.fill(N - 1, q, q)
    sold = simulation.book(N - 1, torch.stack((q, left)), *costs).utility_bps(BUY)
    torch.testing.assert_close(twap_value(simulation, N - 1, N - 1, q, NO_IMPACT), sold)


def test_advantages_do_not_depend_on_what_comes_later() -> None:
    now, other = days(RICH, 50), days(RICH, 50, seed=4)
    k = 4

    def spliced(name: str) -> Tensor:
        mine, theirs = getattr(now, name), getattr(other, name)
        # What is drawn over bucket k itself, the move and the integral, is not known when it opens.
        known = k if name in ("martingale_bps", "integrated_variance") else k + 1
        return torch.cat((mine[:known], theirs[known:]))

    changed = dataclasses.replace(
        now,
        martingale_bps=spliced("martingale_bps"),
        integrated_variance=spliced("integrated_variance"),
        variance=spliced("variance"),
        expected_variance=spliced("expected_variance"),
        log_depth=spliced("log_depth"),
    )
    scores = random_scores(50)
    mine, theirs = (
        rewards_of(OrderSimulation(p, RICH, SELL), scores, advantage_over_twap)[0] for p in (now, changed)
    )
    torch.testing.assert_close(mine[: k + 1], theirs[: k + 1], rtol=0, atol=0)
    assert not torch.allclose(mine[k + 1 :], theirs[k + 1 :])


@pytest.mark.parametrize(
    ("market", "perceive"),
    [
        pytest.param(RICH, with_errors, id="estimates"),
        pytest.param(SWITCHING, blind_to_regimes, id="regimes"),
    ],
)
def test_parallel_orders_observe_estimates_and_are_rewarded_by_the_true_market(
    market: Market, perceive: Perceive
) -> None:
    env = ExecutionVecEnv(market, SELL, 40, N, 3, perceive=perceive)
    first = env.reset()
    draws = generator(3, "market")
    paths = simulate(market, 40, N, draws)
    known = perceive(paths, market, draws)
    perceived = OrderSimulation(paths, market, SELL, known)
    np.testing.assert_array_equal(first, features(perceived.observe(0, torch.ones(40))).numpy())
    assert not np.allclose(
        first, features(OrderSimulation(paths, market, SELL).observe(0, torch.ones(40))).numpy()
    )
    scores = random_scores(40)
    _, rewards, _, _ = env.step(scores[0][:, None].numpy())
    truth = rewards_of(OrderSimulation(paths, market, SELL), scores, advantage_over_twap)[0]
    np.testing.assert_allclose(rewards, truth[0], rtol=1e-5, atol=1e-5)


def test_orders_of_different_conditions_share_a_tensor() -> None:
    levels = torch.tensor([1e-4, 4e-4, 2e-3])
    mixed = dataclasses.replace(PLAIN, heston=dataclasses.replace(PLAIN.heston, theta=levels))
    paths, scores = days(mixed, 3), random_scores(3)
    together = rewards_of(OrderSimulation(paths, mixed, SELL), scores, advantage_over_twap)[0]
    for i, theta in enumerate(levels):
        alone = dataclasses.replace(PLAIN, heston=dataclasses.replace(PLAIN.heston, theta=theta))
        simulation = OrderSimulation(only(paths, i), alone, SELL)
        earned = rewards_of(simulation, scores[:, i : i + 1], advantage_over_twap)[0]
        torch.testing.assert_close(earned[:, 0], together[:, i], rtol=1e-4, atol=1e-4)
    env = ExecutionVecEnv(mixed, SELL, 3, N, 3)
    env.reset()
    _, rewards, _, _ = env.step(scores[0][:, None].numpy())
    np.testing.assert_allclose(rewards, together[0], rtol=1e-4, atol=1e-4)


def test_many_orders_end_together_sold_and_terminated_then_start_anew() -> None:
    env = ExecutionVecEnv(RICH, SELL, 2_000, N, 1)
    first = env.reset()
    for k in range(N - 1):
        observed, _, dones, infos = env.step(env.action_space.sample() * np.ones((2_000, 1), np.float32))
        assert dones.all() == dones.any() == (k == N - 2)
    left = FEATURES.index("inventory")
    ends = np.stack([info["terminal_observation"] for info in infos])
    assert (ends[:, left] == -1).all()
    assert not any("TimeLimit.truncated" in info for info in infos)
    assert isinstance(observed, np.ndarray)
    assert (env.k, observed[:, left].min()) == (0, 1)
    variance = FEATURES.index("log variance over its mean")
    assert not np.allclose(observed[:, variance], first[:, variance])
    env.seed(7)
    again = env.reset()
    env.seed(7)
    np.testing.assert_array_equal(env.reset(), again)


def test_an_order_is_sold_when_it_ends_and_then_needs_a_reset() -> None:
    env = ExecutionEnv(n_buckets=2)
    with pytest.raises(ResetNeeded, match="reset"):
        env.step(np.zeros(1, np.float32))
    env.reset(seed=0)
    _, _, terminated, truncated, _ = env.step(np.full(1, -ACTION_LIMIT, np.float32))
    assert (terminated, truncated, env.inventory.item()) == (True, False, 0)
    with pytest.raises(ResetNeeded, match="reset"):
        env.step(np.zeros(1, np.float32))


def test_scores_beyond_the_limit_count_as_at_the_limit() -> None:
    simulation = OrderSimulation(days(PLAIN, 2), PLAIN, SELL)
    pair = [
        advance(simulation, 0, torch.ones(2), s * torch.tensor([1.0, -1.0]), controlled_utility, NO_IMPACT)
        for s in (1e6, ACTION_LIMIT)
    ]
    torch.testing.assert_close(pair[0], pair[1], rtol=0, atol=0)


@pytest.mark.parametrize("score", [np.nan, np.inf])
def test_a_score_that_is_no_number_is_refused(score: float) -> None:
    env = ExecutionEnv(n_buckets=N)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=f"action = {score}: must be finite"):
        env.step(np.full(1, score, np.float32))


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="n_buckets = 1: must be at least 2"):
        ExecutionEnv(n_buckets=1)
    with pytest.raises(ValueError, match="n_buckets = 1: must be at least 2"):
        ExecutionVecEnv(PLAIN, SELL, 2, 1, 0)
    env = ExecutionEnv(n_buckets=N)
    with pytest.raises(ValueError, match=r"options \['path'\]: the only option is 'paths'"):
        env.reset(options={"path": 1})
    with pytest.raises(ValueError, match=f"has 2 paths of {N} buckets: must be 1 path of {N}"):
        env.reset(options={"paths": days(PLAIN, 2)})
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action of shape \[2\]: must be a single score"):
        env.step(np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="n_orders = 0: must be at least 1"):
        ExecutionVecEnv(PLAIN, SELL, 0, N, 0)
    sizes = dataclasses.replace(SELL, size=torch.full((3,), 0.1))
    with pytest.raises(ValueError, match=r"of shape \[3\]: must be float32 of shape \[\] or \[2\]"):
        ExecutionVecEnv(PLAIN, sizes, 2, N, 0)
    with pytest.raises(ValueError, match=r"torch.float64 of shape \[\]: must be float32"):
        ExecutionEnv(order=dataclasses.replace(SELL, size=SELL.size.double()))
    many = ExecutionVecEnv(PLAIN, SELL, 2, N, 0)
    with pytest.raises(TypeError, match="share their attributes"):
        many.set_attr("k", 3)
    with pytest.raises(TypeError, match="no separate environments"):
        many.env_method("reset")


def test_observations_stay_in_their_space_whatever_the_type_of_an_action() -> None:
    env = ExecutionEnv(n_buckets=N)
    env.reset(seed=0)
    for _ in range(2):
        obs, *_ = env.step(np.array([0.5]))
        assert env.observation_space.contains(obs)


def test_a_reward_of_ones_own_is_a_function() -> None:
    def sold(simulation: OrderSimulation, k: int, booked: Execution) -> Tensor:
        return booked.inventory[0] - booked.inventory[1]

    earned, _ = rewards_of(OrderSimulation(days(PLAIN, 4), PLAIN, SELL), random_scores(4), sold)
    torch.testing.assert_close(earned.sum(0), torch.ones(4))
