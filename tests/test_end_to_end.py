"""Whole walks with an exact guess: from the prior to the data in five steps, in every space and in all at once.

The data are a few words, each two letters of a space (two numbers, two angles, two rotations ..), with weights that no product law has. The
guess is a draw from the exact posterior over the words, from `log_prob`; no network. Then the walk is exact, and two things
follow, both without tolerances for a model's error:

* it ends on words, in their frequencies, whatever the number of steps;
* what it ends on, given any point x_t on the way, has the posterior law at x_t. (The end's law alone would not see a bridge that
  forgets x_t: every step would have the right marginal.)

With some letters held the same holds for the posterior given these letters.

Both are one chi-square test, `misfit`. Its bound is exceeded with probability 1e-7, so that a right walk fails in this file by chance less
than once in 10,000 runs.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffjax import numerics, schedules
from diffjax.processes import cube, discrete, gaussian, joint, masked, rates, simplex, so3, torus
from diffjax.processes.base import Process
from diffjax.samplers import bridge

RARE = 1e-7
STEPS = 5


class Space(NamedTuple):
    parts: Any  # a process, or a tree of processes for their joint
    words: Any  # [M, 2, *letter], or a tree of such
    times: Any  # [STEPS + 1], or a tree of such
    weights: np.ndarray  # [M]
    near: float = 0.0  # how far from a word its landing may be, by rounding


# ---------------------------------------------------------------------------------------------------------- spaces

# M = 6 words from letters 0, 1, 2: every letter stands in two words at least, at both sites.
PAIRS = np.array([(0, 0), (0, 1), (1, 0), (1, 2), (2, 2), (2, 1)])
WEIGHTS = np.array([0.3, 0.05, 0.1, 0.2, 0.1, 0.25])


def spell(letters, second=None):
    """Words of three letters, the same at the second site or others."""
    first, second = jnp.asarray(letters), jnp.asarray(letters if second is None else second)
    return jnp.stack([first[PAIRS[:, 0]], second[PAIRS[:, 1]]], axis=1)


def grows_to(sigma):
    """sigma(t) = sigma t: no noise at t = 0, so that walks end on the data."""
    return lambda t: (jnp.ones_like(jnp.asarray(t, jnp.float32)), sigma * jnp.asarray(t, jnp.float32))


def spiral():
    """Ten points of a square spiral: each coordinate alone leaves several."""
    points = [(0, 0), (1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (2, -1)]
    weights = np.arange(1.0, 11.0)
    return 0.7 * jnp.asarray(points, jnp.float32), weights / weights.sum()


def rate_matrix():
    off = np.random.default_rng(0).gamma(1.0, size=(4, 4))
    return off - np.diag(off.sum(1))


def clock(*times):
    """`[STEPS + 1]` times: where the guess is unsure, for elsewhere no error would show."""
    return np.array([1.0, *times, 0.0], np.float32)


EVEN = clock(0.8, 0.6, 0.4, 0.2)
_plane, _weights = spiral()
_symbols = spell([0, 1, 3]).astype(jnp.int32)

SPACES = {
    "gaussian": Space(gaussian.process(schedules.cosine()), _plane, EVEN, _weights, 1e-5),
    "ornstein-uhlenbeck": Space(
        gaussian.ornstein_uhlenbeck(0.3, jnp.array([1.0, 1.5]), jnp.array([0.5, 1.0]), horizon=25.0),
        _plane,
        clock(0.1, 0.06, 0.03, 0.01),  # of 25 units of time
        _weights,
        1e-5,
    ),
    # Both walls, and points between.
    "cube": Space(
        cube.process(grows_to(3.0)),
        spell([0.0, 0.3, 0.75], [0.25, 0.7, 1.0]),
        clock(0.23, 0.15, 0.13, 0.1),
        WEIGHTS,
        1e-6,
    ),
    "simplex": Space(
        simplex.process(grows_to(3.0)),
        spell([[0.8, 0.1, 0.1], [0.1, 0.3, 0.6], [0.5, 0.5, 0.0]]),
        clock(0.23, 0.15, 0.13, 0.1),
        WEIGHTS,
        1e-5,
    ),
    # Three points a third of the circle apart, one of them at the cut.
    "torus": Space(
        torus.process(grows_to(6.0)),
        spell(np.float32(-3.1 + 2 * np.pi / 3 * np.arange(3))),
        clock(0.4, 0.31, 0.2, 0.1),
        WEIGHTS,
    ),
    # One, and a half turn from it, and a third of a turn.
    "so3": Space(
        so3.process(grows_to(5.0)),
        spell(so3.exp(jnp.array([[0.0, 0.0, 0.0], [np.pi, 0.0, 0.0], [1.2, -1.2, 1.2]]))),
        clock(0.4, 0.31, 0.2, 0.1),
        WEIGHTS,
    ),
    "uniform": Space(discrete.uniform(schedules.cosine(), vocab=4), _symbols, EVEN, WEIGHTS),
    "absorbing": Space(discrete.absorbing(schedules.rectified(), vocab=4), _symbols, EVEN, WEIGHTS),
    "jump": Space(discrete.jump(schedules.rectified(), stationary=[0.1, 0.2, 0.3, 0.4]), _symbols, EVEN, WEIGHTS),
    "markov": Space(
        discrete.markov(discrete.gaussian_steps(np.random.default_rng(3).uniform(0.02, 1.5, 20), vocab=4)),
        _symbols,
        clock(0.4, 0.25, 0.15, 0.05),
        WEIGHTS,
    ),
    "rates": Space(rates.process(rate_matrix(), schedules.cosine()), _symbols, EVEN, WEIGHTS),
}


def together(nest, pace, words=12):
    """A joint of some of these: word m is made of one word of each space, drawn at random, so that the parts depend on one another."""
    rng = np.random.default_rng(1)
    picks = {name: rng.integers(0, len(space.weights), words) for name, space in SPACES.items()}
    weights = rng.gamma(2.0, size=words)
    # All together tell more of the word than one does, so that clocks linger where it is noisy.
    slow = lambda times: np.append(np.interp(pace * np.arange(STEPS), range(STEPS + 1), times), 0).astype(np.float32)
    return Space(
        jax.tree.map(lambda name: SPACES[name].parts, nest),
        jax.tree.map(lambda name: SPACES[name].words[picks[name]], nest),
        jax.tree.map(lambda name: slow(SPACES[name].times), nest),
        weights / weights.sum(),
        1e-5,
    )


# Two planes with the same points: what they tell adds up only if their noise is not the same, from one key.
SPACES["a few"] = together({"flat": ("gaussian", "gaussian"), "others": {"box": "cube", "text": ["absorbing"]}}, 0.7)
SPACES["all"] = together(
    {
        "flat": ("gaussian", "ornstein-uhlenbeck"),
        "bounded": {"cube": "cube", "simplex": "simplex"},
        "curved": ["torus", "so3"],
        "symbols": {name: name for name in ("uniform", "absorbing", "jump", "markov", "rates")},
    },
    0.45,
)


def whole(parts):
    return parts if isinstance(parts, Process) else joint(parts)


# ------------------------------------------------------------------------------------------------------------ walks


def log_posterior(space, process, frozen):
    """`(xt, t) -> log p(word | x_t, the frozen letters)` `[n, M]`, by Bayes' rule."""

    def agree(words, x, held):
        same = (x[:, None] == words[None]) | ~numerics.expand_right(held[:, None], x[:, None])
        return jnp.all(same, axis=tuple(range(2, same.ndim)))

    def function(xt, t):
        n = jax.tree.leaves(xt)[0].shape[0]
        clocks = jax.tree.map(lambda u: jnp.full(n, u), t)

        def likelihood(word):
            return process.log_prob(jax.tree.map(lambda w: jnp.broadcast_to(w, (n, *w.shape)), word), xt, clocks)

        logs = jnp.log(jnp.asarray(space.weights, jnp.float32))[None] + jax.vmap(likelihood, out_axes=1)(space.words)
        if frozen is not None:
            for each in jax.tree.leaves(jax.tree.map(agree, space.words, xt, frozen)):
                logs = jnp.where(each, logs, -jnp.inf)
        return jax.nn.log_softmax(logs)

    return function


def walk(space, n, frozen=None, seed=0):
    """Numbers `[n]` of words, the ends of `n` walks, and the posteriors `[STEPS, n, M]` at all points these walks came by.

    With `frozen` (bool, `[n]` or `[n, 2]`, or a tree of such) a walk keeps the frozen letters of its word; else it knows nothing of it.
    """
    drawn = np.random.default_rng(seed).choice(len(space.weights), n, p=space.weights)
    start = jax.tree.map(lambda w: w[drawn], space.words)

    @jax.jit
    def run(key, start, frozen):
        process = whole(space.parts if frozen is None else jax.tree.map(masked, space.parts, frozen))
        posterior = log_posterior(space, process, frozen)

        def guess(key, xt, t):
            return jax.tree.map(lambda w: w[jax.vmap(jax.random.categorical)(key, posterior(xt, t))], space.words)

        # A key for each walk: two draws that share a key by mistake are then the same draw, not a neighbour's.
        key_prior, key_walk = jax.random.split(key, (2, n))
        x1 = process.prior(key_prior, start)
        return bridge.sample(
            key_walk, guess, x1, space.times, process=process, track=lambda x0, xt, t: jnp.exp(posterior(xt, t))
        )

    end, posteriors = run(jax.random.key(seed), start, frozen)
    return drawn, end, np.asarray(posteriors, np.float64)


def landing(space, end):
    """The number of the word `[n]` that each walk ended on, and how far from it in its largest entry."""

    def distance(words, x):
        # A rotation is q and -q.
        x, words = (jnp.where(v[..., :1] < 0, -v, v) if v.shape[-1] == 4 else v for v in (x, words))
        gap = jnp.abs(x[:, None] - words[None]).astype(jnp.float32)
        return jnp.max(gap, axis=tuple(range(2, gap.ndim)))

    gaps = functools.reduce(jnp.maximum, jax.tree.leaves(jax.tree.map(distance, space.words, end)))
    return np.asarray(jnp.argmin(gaps, 1)), np.asarray(jnp.min(gaps, 1))


def misfit(drawn, p):
    """The p-value of: `drawn` `[n]` are independent draws, each from its own law `p` `[n, M]`.

    Residuals `[drawn = m] - p_m`, each summed with weight 1 and with weight p_m in standard units (at most 3, so that sums are normal), have mean 0 and a
    known covariance: a chi-square. Directions in which they vary by less than 200 draws' worth are left out for the same reason.
    """
    spread = p.std(0)
    varies = spread > 1e-4  # and is no rounding
    standard = np.where(varies, np.clip((p - p.mean(0)) / np.where(varies, spread, 1), -3, 3), 0)
    weight, law = np.concatenate([np.ones_like(p), standard], 1), np.tile(p, 2)
    total = (weight * np.tile(np.eye(p.shape[1])[drawn] - p, 2)).sum(0)
    same = np.tile(np.eye(p.shape[1]), (2, 2))
    covariance = same * ((weight * law).T @ weight) - (weight * law).T @ (weight * law)
    values, vectors = np.linalg.eigh(covariance)
    sure = values > 200
    if not sure.any():
        return 1.0  # all is certain, and nothing is left to chance
    return stats.chi2(sure.sum()).sf(((vectors.T @ total)[sure] ** 2 / values[sure]).sum())


def check(space, end, posteriors, law):
    drawn, gap = landing(space, end)
    assert gap.max() <= space.near, f"a walk ended {gap.max():.3g} away from the data"
    values = {"in all": misfit(drawn, law)} | {
        f"given x at step {i}": misfit(drawn, p) for i, p in enumerate(posteriors)
    }
    assert min(values.values()) > RARE, values
    # The steps are worth taking: in the middle the guess is no longer blind and not yet sure.
    unsure = [np.mean(p.max(-1) < 0.9) for p in posteriors]
    assert unsure[-2] > 0.1, unsure
    assert np.mean(np.abs(posteriors[-2] - law)) > 0.01


WALKS = {name: 8_000 if name in ("so3", "all") else 20_000 for name in SPACES}
HEAVY = ("ornstein-uhlenbeck", "absorbing", "jump", "so3", "a few", "all")
light_and_heavy = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in HEAVY else []) for name in SPACES]
)


@light_and_heavy
def test_walks_end_on_the_data_in_their_frequencies(name):
    space = SPACES[name]
    _, end, posteriors = walk(space, WALKS[name])
    check(space, end, posteriors, np.broadcast_to(space.weights, posteriors[0].shape))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "a few" else [pytest.mark.slow]) for name in SPACES]
)
def test_with_letters_held_walks_end_in_the_conditional_law(name):
    """Each walk holds letters of its own choice, one in three of all (simplex vectors and rotations are letters; of a joint also whole parts)."""
    space, n, rng = SPACES[name], WALKS[name], np.random.default_rng(7)
    leaves, tree = jax.tree.flatten(space.words)
    # With many parts each is held more seldom; every third part is held as a whole.
    frozen = [rng.random((n, 2)[: 1 if i % 3 == 1 else 2]) < 1 / (2 + len(leaves)) for i in range(len(leaves))]
    drawn, end, posteriors = walk(space, n, jax.tree.unflatten(tree, list(map(jnp.asarray, frozen))))

    law = np.tile(space.weights, (n, 1))
    for words, held, x in zip(leaves, frozen, jax.tree.leaves(end), strict=True):
        words, held, x = np.asarray(words), held.reshape(n, -1) & np.ones((n, 2), bool), np.asarray(x)
        np.testing.assert_array_equal(x[held], words[drawn][held])
        for site in range(2):
            same = (words[:, None, site] == words[None, :, site]).reshape(len(words), len(words), -1).all(-1)
            law = np.where(held[:, site, None], law * same[drawn], law)
    assert 0.3 < np.mean((law > 0).sum(1) > 1) < 1  # of several words to choose from, by most
    check(space, end, posteriors, law / law.sum(1, keepdims=True))
