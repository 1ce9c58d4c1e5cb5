"""Every process factory through every law. A process is done when it stands in `CASES` and passes.

Statistical laws compare two samples by the means of features (moments, waves, frequencies). With `FEATURES` of them over all cases and
a bound of 5.5 standard errors, a right process fails by chance less than once in 10,000 runs of this file.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import numerics, schedules
from diffjax.processes import cube, discrete, gaussian, joint, masked, rates, simplex, so3, torus
from diffjax.processes.base import Process
from diffjax.samplers import bridge

N = 40_000
BOUND = 5.5


@dataclasses.dataclass(frozen=True)
class Case:
    """A process with what a test must know of its space."""

    process: Process
    x0: Any  # one clean event
    features: Callable[[Any], jax.Array]  # [n, *event] -> [n, m], what samples are compared by
    distance: Callable[[Any, Any], Any] | None = None  # largest distance of two arrays of events; equality for symbols
    # Quadrature (points [n, *event], weights [n]) over the space, for x0 at `time`; "lines": each entry is a real number alone,
    # over the whole line or between two numbers.
    grid: Any = None
    ends: tuple[float, float] | None = None
    time: float = 0.3
    gradient: Callable[..., Any] | None = None  # autodiff of log_prob in the space's own tangent
    half: bool = True  # data may be bfloat16
    clean: float = 1e-4  # how close t -> 0 comes to x0 (a schedule may start at some noise)


def euclid(a, b):
    return jnp.max(jnp.abs(a.astype(jnp.float32) - b.astype(jnp.float32)))


def moments(scale=1.0):
    def features(x):
        x = x.reshape(x.shape[0], -1).astype(jnp.float32) / scale
        waves = [f(k * x) for f in (jnp.cos, jnp.sin) for k in (1.0, 2.5)]
        return jnp.concatenate([jnp.clip(x, -9, 9), jnp.clip(x * x, 0, 81), *waves], axis=1)

    return features


def plain_gradient(case, x0, xt, t):
    return jax.grad(lambda x: jnp.sum(case.process.log_prob(x0, x, t)))(xt)


@functools.cache
def gauss_legendre(n=300):
    return np.polynomial.legendre.leggauss(n)


def line(low, high):
    """Quadrature on an interval: points [n], weights [n]."""
    nodes, weights = gauss_legendre()
    x = (low + high) / 2 + (high - low) / 2 * nodes
    return jnp.asarray(x, jnp.float32), jnp.asarray(weights * (high - low) / 2, jnp.float32)


def flat_case(process, scale=1.0, clean=1e-4):
    return Case(
        process=process,
        x0=jnp.array([0.6, -1.3]),
        features=moments(scale),
        distance=euclid,
        gradient=plain_gradient,
        clean=clean,
        grid="lines",
    )


_plane = gaussian.process(schedules.cosine())
_mask = jnp.array([[True, False]])

CASES = {
    "gaussian cosine": flat_case(gaussian.process(schedules.cosine())),
    "gaussian rectified": flat_case(gaussian.process(schedules.rectified())),
    "gaussian vp_linear": flat_case(gaussian.process(schedules.vp_linear())),
    "gaussian karras": flat_case(gaussian.process(schedules.karras()), scale=80.0, clean=0.02),
    "ornstein-uhlenbeck": flat_case(
        gaussian.ornstein_uhlenbeck(0.3, jnp.array([1.0, 1.5]), jnp.array([0.5, 1.0]), horizon=25.0),
        scale=1.0,
        clean=0.02,
    ),
    "masked": dataclasses.replace(flat_case(masked(_plane, _mask)), grid=None),
    "joint": Case(
        process=joint({"a": _plane, "b": (gaussian.process(schedules.rectified()),)}),
        x0={"a": jnp.array([0.6]), "b": (jnp.array([-1.0]),)},
        features=lambda x: moments()(jnp.concatenate([x["a"], x["b"][0]], axis=-1)),
        distance=lambda a, b: jnp.maximum(euclid(a["a"], b["a"]), euclid(a["b"][0], b["b"][0])),
        gradient=plain_gradient,
    ),
}


# Angles: chordal distances. The box and the circle are reached by sigma(1) = 5 to float32.
_sigma = schedules.ve(0.001, 5.0)


def waves(x):
    x = x.reshape(x.shape[0], -1).astype(jnp.float32)
    return jnp.concatenate([f(k * x) for f in (jnp.cos, jnp.sin) for k in (1.0, 2.0, 5.0)], axis=1)


CASES["torus"] = Case(
    process=torus.process(_sigma),
    x0=jnp.array([0.6, -2.9]),
    features=waves,
    distance=lambda a, b: jnp.max(jnp.abs(torus.wrap(a - b))),
    gradient=plain_gradient,
    grid="lines",
    ends=(-np.pi, np.pi),
    time=0.6,
    clean=0.02,
)
CASES["cube"] = Case(
    process=cube.process(_sigma),
    x0=jnp.array([0.4, 0.97]),
    features=lambda x: waves(np.pi * x),
    distance=euclid,
    gradient=plain_gradient,
    grid="lines",
    ends=(0.0, 1.0),
    time=0.6,
    clean=0.02,
)


# ------------------------------------------------------------------------------------------------------ the simplex


def gradient_along(case, x0, xt, t):
    """Off the simplex there is no law to follow: of the ambient gradient the part whose entries sum to 0 has a meaning."""
    gradient = plain_gradient(case, x0, xt, t)
    return gradient - gradient.mean(-1, keepdims=True)


def triangle(n=120):
    """Quadrature over the first two of three probabilities: p = (a, (1 - a) b, (1 - a)(1 - b)) has the area element (1 - a) da db."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    a, b = np.meshgrid((nodes + 1) / 2, (nodes + 1) / 2, indexing="ij")
    points = np.stack([a, (1 - a) * b, (1 - a) * (1 - b)], -1).reshape(-1, 3)
    return jnp.asarray(points, jnp.float32), jnp.asarray(
        (np.outer(weights, weights) / 4 * (1 - a)).ravel(), jnp.float32
    )


CASES["simplex"] = Case(
    process=simplex.process(schedules.ve(0.001, 5.0)),
    x0=jnp.array([0.55, 0.05, 0.4]),
    features=lambda x: waves(np.pi * x),
    distance=euclid,
    gradient=gradient_along,
    grid=triangle(),
    time=0.6,
    clean=0.02,
)


# ------------------------------------------------------------------------------------------------------- rotations


def body_gradient(case, x0, xt, t):
    turned = lambda v: jnp.sum(case.process.log_prob(x0, so3.compose(xt, so3.exp(v)), t))
    return jax.grad(turned)(jnp.zeros((*xt.shape[:-1], 3)))


def turns(q):
    m = so3.to_matrix(q).reshape(q.shape[0], -1)
    return jnp.concatenate([m, m * m], axis=1)


def ball(q0):
    """Quadrature over SO(3) about q0 for functions of the angle alone: Haar measure is (1 - cos w) / pi dw."""
    nodes, weights = gauss_legendre()
    w = (nodes + 1) * np.pi / 2
    v = np.outer(w, [0.48, 0.6, 0.64])
    points = so3.compose(jnp.broadcast_to(q0, (len(w), 4)), so3.exp(jnp.asarray(v, jnp.float32)))
    return points, jnp.asarray(weights * (1 - np.cos(w)) / 2, jnp.float32)


_q = so3.exp(jnp.array([1.0, 0.5, -2.0]))
CASES["so3"] = Case(
    process=so3.process(schedules.ve(0.001, 4.0)),
    x0=_q,
    features=turns,
    distance=lambda a, b: 2 * jnp.max(jnp.linalg.norm(so3.log(so3.relative(a, b)), axis=-1)) if a.ndim > 1 else 0.0,
    gradient=body_gradient,
    grid=ball(_q),
    time=0.6,
    clean=0.02,
)
CASES["rigid motions"] = Case(
    process=joint((_plane, so3.process(schedules.ve(0.001, 4.0)))),
    x0=(jnp.array([0.6, -1.0, 0.2]), _q),
    features=lambda x: jnp.concatenate([moments()(x[0]), turns(x[1])], axis=1),
    distance=lambda a, b: jnp.maximum(euclid(a[0], b[0]), CASES["so3"].distance(a[1], b[1])),
    gradient=lambda case, x0, xt, t: (
        jax.grad(lambda x: jnp.sum(case.process.log_prob(x0, (x, xt[1]), t)))(xt[0]),
        jax.grad(lambda v: jnp.sum(case.process.log_prob(x0, (xt[0], so3.compose(xt[1], so3.exp(v))), t)))(
            jnp.zeros((*xt[1].shape[:-1], 3))
        ),
    ),
    clean=0.02,
)

# --------------------------------------------------------------------------------------------------------- symbols


def symbol_case(process, symbols):
    words = np.stack(np.meshgrid(*[np.arange(symbols)] * 2, indexing="ij"), -1).reshape(-1, 2)
    return Case(
        process=process,
        x0=jnp.array([1, 3], jnp.int32),
        features=lambda x: jax.nn.one_hot(x[:, 0] * symbols + x[:, 1], symbols * symbols),
        grid=(jnp.asarray(words, jnp.int32), jnp.ones(len(words))),
        half=False,
    )


_law = np.array([0.1, 0.4, 0.05, 0.25, 0.2])
_rate = np.random.default_rng(0).gamma(1.0, size=(5, 5))
_rate -= np.diag(_rate.sum(1))
CASES |= {
    "discrete uniform": symbol_case(discrete.uniform(schedules.cosine(), vocab=5), 5),
    "discrete absorbing": symbol_case(discrete.absorbing(schedules.rectified(), vocab=5), 6),
    "discrete jump": symbol_case(discrete.jump(schedules.rectified(), stationary=_law), 5),
    "discrete markov": symbol_case(discrete.markov(discrete.uniform_steps(np.full(20, 0.45), vocab=5)), 5),
    "rates": symbol_case(rates.process(_rate, schedules.cosine()), 5),
}
FEATURES = 500  # in all


def stack(case, n):
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *x.shape)), case.x0)


def same_law(case, a, b):
    fa, fb = (np.asarray(case.features(x), np.float64) for x in (a, b))
    error = np.sqrt(fa.var(0) / len(fa) + fb.var(0) / len(fb)) + 1e-6
    z = np.abs(fa.mean(0) - fb.mean(0)) / error
    assert z.max() < BOUND, f"features differ by {z.max():.1f} standard errors (the largest, number {z.argmax()})"


each = pytest.mark.parametrize("name", CASES)


@each
def test_bridge_after_corrupt_has_the_marginal_and_bridges_compose(name):
    case, p = CASES[name], CASES[name].process
    s, u, t = 0.25, 0.4, 0.7

    @jax.jit
    def draw(key, x0):
        a, b, c, d, e = jax.random.split(key, 5)
        xt = p.corrupt(a, x0, t)
        xs = p.bridge(b, x0, xt, s, t)
        one = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), xt)  # one fixed far end
        return p.corrupt(c, x0, s), xs, p.bridge(d, x0, one, s, t), p.bridge(b, x0, p.bridge(e, x0, one, u, t), s, u)

    direct, bridged, jump, hop = draw(jax.random.key(0), stack(case, N))
    same_law(case, direct, bridged)
    same_law(case, jump, hop)  # Chapman-Kolmogorov for the bridge


@each
def test_the_end_is_the_prior(name):
    case, p = CASES[name], CASES[name].process
    x0 = stack(case, N // 4)
    same_law(case, p.corrupt(jax.random.key(0), x0, 1.0), p.prior(jax.random.key(1), x0))
    if "masked" not in name:
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), x0)
        jax.tree.map(
            lambda a, b: np.testing.assert_array_equal(a, b),
            p.prior(jax.random.key(1), like),
            p.prior(jax.random.key(1), x0),
        )


@each
def test_bridge_at_its_ends(name):
    case, p = CASES[name], CASES[name].process
    x0 = stack(case, 64)
    distance = case.distance or (lambda a, b: jnp.mean((a != b).astype(jnp.float32)))
    for t in (0.3, 1.0):
        xt = p.corrupt(jax.random.key(1), x0, t)
        assert distance(p.bridge(jax.random.key(2), x0, xt, t, t), xt) < 1e-3  # s = t is the identity
        assert distance(p.bridge(jax.random.key(2), x0, xt, 0.0, t), x0) < case.clean  # s = 0 is x0
    assert distance(p.corrupt(jax.random.key(3), x0, 0.0), x0) < case.clean
    assert distance(p.bridge(jax.random.key(2), x0, x0, 0.0, 0.0), x0) < case.clean


@each
def test_score_is_the_gradient_of_log_prob(name):
    case, p = CASES[name], CASES[name].process
    if p.score is None:
        pytest.skip("symbols have no score")
    for t in (0.05, 0.5, 1.0):
        x0 = stack(case, 16)
        xt = p.corrupt(jax.random.key(0), x0, t)
        truth, ours = case.gradient(case, x0, xt, t), p.score(x0, xt, t)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3 * float(jnp.abs(b).max())), ours, truth
        )


@each
def test_density_integrates_to_one(name):
    case, p = CASES[name], CASES[name].process
    if case.grid is None:
        pytest.skip("no quadrature for this space")
    t = case.time
    if case.grid == "lines":
        draws = p.corrupt(jax.random.key(0), stack(case, 1000), t)
        for i in range(case.x0.shape[0]):
            center, width = float(draws[:, i].mean()), 12 * float(draws[:, i].std())
            points, weights = line(*(case.ends or (center - width, center + width)))
            x = jnp.broadcast_to(case.x0, (len(points), *case.x0.shape)).at[:, i].set(points)
            # Elementwise times give the density of each entry alone.
            density = jnp.exp(p.log_prob(stack(case, len(points)), x, jnp.full(x.shape, t))[:, i])
            np.testing.assert_allclose(jnp.sum(weights * density), 1.0, rtol=2e-5)
    else:
        points, weights = case.grid
        n = len(weights)
        np.testing.assert_allclose(
            jnp.sum(weights * jnp.exp(p.log_prob(stack(case, n), points, jnp.full(n, t)))), 1.0, rtol=2e-5
        )


@each
def test_transformations(name):
    """jit = eager, vmap = loop, pmap = loop, a scalar time = a constant one, an array of keys = each alone."""
    case, p = CASES[name], CASES[name].process
    x0, t, s = stack(case, 8), jnp.linspace(0.1, 1.0, 8), jnp.linspace(0.05, 0.9, 8)
    keys = jax.random.split(jax.random.key(4), 8)

    def both(key, x0, s, t):
        xt = p.corrupt(key, x0, t)
        out = {"xt": xt, "xs": p.bridge(key, x0, xt, s, t)}
        if p.log_prob is not None:
            out["log_prob"] = p.log_prob(x0, xt, t)
        if p.score is not None:
            out["score"] = p.score(x0, xt, t)
        return out

    def equal(a, b, rtol=2e-5):
        def close(x, y):
            assert x.dtype == y.dtype
            assert x.shape == y.shape
            x, y = np.asarray(x), np.asarray(y)
            if np.issubdtype(x.dtype, np.integer):
                np.testing.assert_array_equal(x, y)
            else:
                np.testing.assert_allclose(
                    x, y, rtol=rtol, atol=rtol * max(1.0, np.abs(y[np.isfinite(y)]).max(initial=0.0))
                )

        jax.tree.map(close, a, b)

    eager = both(keys, x0, s, t)  # keys per example: rows do not depend on their batch
    assert jax.tree.leaves(eager["xt"])[0].shape[0] == 8
    equal(jax.jit(both)(keys, x0, s, t), eager)
    if "masked" not in name:  # its mask has a batch axis of its own
        equal(jax.jit(jax.vmap(both))(keys, x0, s, t), eager)
        row = lambda i: jax.tree.map(lambda x: x[i], (keys, x0, s, t))
        equal(both(*row(3)), jax.tree.map(lambda x: x[3], eager))
        split = lambda tree: jax.tree.map(lambda x: x.reshape(2, 4, *x.shape[1:]), tree)
        mapped = jax.pmap(both, devices=jax.devices()[:2])(*split((keys, x0, s, t)))
        equal(jax.tree.map(lambda x: np.asarray(x).reshape(8, *x.shape[2:]), mapped), jax.tree.map(np.asarray, eager))
    scalar = both(keys, x0, jnp.float32(0.2), jnp.float32(0.6))
    constant = both(keys, x0, jnp.full(8, 0.2), jnp.full(8, 0.6))
    equal(scalar["xs"], constant["xs"])
    equal(both(keys, x0, 0.2, 0.6)["xs"], constant["xs"])  # Python numbers
    if p.log_prob is not None:
        np.testing.assert_allclose(scalar["log_prob"], jnp.sum(constant["log_prob"]), rtol=1e-4)


@each
def test_self_conditioning_hands_on_every_guess_from_zeros(name):
    case, p = CASES[name], CASES[name].process
    if "masked" in name:
        pytest.skip("what is frozen ignores the guess")
    x0 = p.corrupt(jax.random.key(0), stack(case, 16), 0.3)

    def guess(key, xt, t, x0_prev):  # the data at first, then the last guess moved on by one example
        first = jnp.all(jnp.stack([jnp.all(x == 0) for x in jax.tree.leaves(x0_prev)]))
        moved = jax.tree.map(lambda a, b: jnp.where(first, a, jnp.roll(b, 1, axis=0)), narrow, x0_prev)
        # A guess may be wider than the data.
        return jax.tree.map(lambda x: x.astype(jnp.int32) if jnp.issubdtype(x.dtype, jnp.integer) else x, moved)

    # Symbols in few bits, and none of them masked: a mask is no guess.
    letters = lambda x: jnp.minimum(x, 4).astype(jnp.int8) if jnp.issubdtype(x.dtype, jnp.integer) else x
    narrow = jax.tree.map(letters, x0)

    @jax.jit
    def walk(key):
        x1 = p.prior(key, narrow)
        return bridge.sample(key, guess, x1, schedules.times(5), process=p, self_condition=True)

    end, truth = walk(jax.random.key(1)), jax.tree.map(lambda x: jnp.roll(x, 4, axis=0), narrow)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.dtype, b.dtype), end, truth)
    distance = case.distance or (lambda a, b: jnp.mean((a != b).astype(jnp.float32)))
    if "absorbing" in name:  # each symbol stays at the guess that revealed it
        moves = jnp.stack([jnp.roll(narrow, i, axis=0) for i in range(5)])
        assert (end[None] == moves).any(0).all()
        assert (end != narrow).any()
    else:
        assert distance(end, truth) < case.clean


@each
def test_half_precision_stays_half(name):
    case, p = CASES[name], CASES[name].process
    if not case.half:
        pytest.skip("symbols are integers")
    x0 = jax.tree.map(lambda x: x.astype(jnp.bfloat16), stack(case, 8))
    t = jnp.linspace(0.1, 1.0, 8)
    key = jax.random.key(0)
    xt = p.corrupt(key, x0, t)
    outs = [p.prior(key, x0), xt, p.bridge(key, x0, xt, t / 2, t)]
    outs += [p.score(x0, xt, t)] if p.score is not None else []
    for out in outs:
        assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(out))
    # Computed in float32: only the last rounding differs.
    wide = p.corrupt(key, jax.tree.map(lambda x: x.astype(jnp.float32), x0), t)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=1e-2, atol=1e-2), xt, wide)
    if p.log_prob is not None:
        assert p.log_prob(x0, xt, t).dtype == jnp.float32


@each
def test_gradients_are_finite_at_the_edges(name):
    case, p = CASES[name], CASES[name].process
    if not case.half:
        pytest.skip("symbols have no gradient")
    x0 = stack(case, 3)
    s, t = jnp.array([0.0, 0.0, 1.0]), jnp.array([0.0, 1.0, 1.0])
    total = lambda tree: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(tree))
    key = jax.random.key(0)

    @jax.jit
    def gradients(x0, s, t):
        xt = p.corrupt(key, x0, t)
        out = [jax.grad(lambda x, t: total(p.corrupt(key, x, t)), argnums=(0, 1))(x0, t)]
        out.append(jax.grad(lambda a, b, s, t: total(p.bridge(key, a, b, s, t)), argnums=(0, 1, 2, 3))(x0, xt, s, t))
        if p.score is not None:
            out.append(jax.grad(lambda a, b: total(p.score(a, b, t)), argnums=(0, 1))(x0, xt))
        return out

    for leaf in jax.tree.leaves(gradients(x0, s, t)):
        assert np.isfinite(leaf).all()


@each
def test_joint_of_one_is_the_one(name):
    case, p = CASES[name], CASES[name].process
    if jax.tree.structure(case.x0) != jax.tree.structure(0):
        pytest.skip("a joint already")
    one = joint({"only": p})
    wrap = lambda x: {"only": x}
    x0, t, key = stack(case, 8), jnp.linspace(0.1, 1.0, 8), jax.random.key(0)
    xt = p.corrupt(key, x0, t)
    np.testing.assert_array_equal(one.corrupt(key, wrap(x0), t)["only"], xt)
    np.testing.assert_array_equal(one.prior(key, wrap(x0))["only"], p.prior(key, x0))
    np.testing.assert_array_equal(
        one.bridge(key, wrap(x0), wrap(xt), t / 2, t)["only"], p.bridge(key, x0, xt, t / 2, t)
    )
    for f in ("log_prob", "score"):
        assert (getattr(one, f) is None) == (getattr(p, f) is None)
    if p.log_prob is not None:
        np.testing.assert_array_equal(one.log_prob(wrap(x0), wrap(xt), t), p.log_prob(x0, xt, t))
    if p.score is not None:
        np.testing.assert_array_equal(one.score(wrap(x0), wrap(xt), t)["only"], p.score(x0, xt, t))


@each
def test_a_wrong_time_or_structure_is_refused_at_the_door(name):
    case, p = CASES[name], CASES[name].process
    x0 = stack(case, 4)
    with pytest.raises(ValueError, match=r"got t=1\.5"):
        p.corrupt(jax.random.key(0), x0, 1.5)
    with pytest.raises(ValueError, match="prefix of the data's shape"):
        p.corrupt(jax.random.key(0), x0, jnp.full(5, 0.5))


# ------------------------------------------------------------------------------------------------------------ masks


def maskable():
    return [n for n, c in CASES.items() if n not in ("masked", "joint", "rigid motions")]


@pytest.mark.parametrize("name", maskable())
def test_masked_holds_what_is_frozen_and_moves_the_rest_inside_jit(name):
    case, p = CASES[name], CASES[name].process
    x0, t = stack(case, 6), jnp.linspace(0.2, 1.0, 6)
    guess = p.corrupt(jax.random.key(9), x0, t)  # anything but x0
    compiled = []

    @jax.jit
    def run(frozen):
        compiled.append(1)
        m = masked(p, frozen)
        xt = m.corrupt(jax.random.key(0), x0, t)
        out = {"xt": xt, "xs": m.bridge(jax.random.key(1), guess, xt, t / 2, t), "x1": m.prior(jax.random.key(2), x0)}
        return (
            out,
            None if p.log_prob is None else m.log_prob(x0, xt, t),
            None if p.score is None else m.score(x0, xt, t),
        )

    free_xt = p.corrupt(jax.random.key(0), x0, t)
    for frozen in (jnp.arange(6) < 3, jnp.arange(6) % 2 == 0):
        out, log_prob, score = run(frozen)
        for x in out.values():
            np.testing.assert_array_equal(x[frozen], x0[frozen])
        np.testing.assert_allclose(out["xt"][~frozen], free_xt[~frozen], rtol=1e-6, atol=1e-6)
        if log_prob is not None:
            np.testing.assert_array_equal(log_prob[frozen], 0)
            np.testing.assert_allclose(log_prob[~frozen], p.log_prob(x0, free_xt, t)[~frozen], rtol=1e-5, atol=1e-5)
        if score is not None:
            np.testing.assert_array_equal(score[frozen], 0)
    assert len(compiled) == 1


def test_masked_per_element_counts_only_what_moves():
    p = gaussian.process(schedules.cosine())
    frozen = jnp.array([[True, False, False], [False, True, True]])
    m, x0, t = masked(p, frozen), jnp.ones((2, 3)), jnp.array([0.4, 0.8])
    xt = m.corrupt(jax.random.key(0), x0, t)
    np.testing.assert_allclose(m.log_prob(x0, xt, t)[0], p.log_prob(x0[0, 1:], xt[0, 1:], 0.4), rtol=1e-5)
    np.testing.assert_allclose(m.log_prob(x0, xt, t)[1], p.log_prob(x0[1, :1], xt[1, :1], 0.8), rtol=1e-5)
    with pytest.raises(TypeError, match="bool array"):
        masked(p, jnp.ones((2, 3)))
    with pytest.raises(TypeError, match="ShapeDtypeStruct"):
        m.prior(jax.random.key(0), jax.ShapeDtypeStruct((2, 3), jnp.float32))


# ------------------------------------------------------------------------------------------------------------ joints


def test_joint_parts_are_independent_with_clocks_of_their_own():
    a, b = gaussian.process(schedules.cosine()), gaussian.process(schedules.rectified())
    both = joint({"a": a, "b": b})
    x0 = {"a": jnp.ones((N, 1)), "b": jnp.zeros((N, 1))}
    xt = both.corrupt(jax.random.key(0), x0, {"a": 0.2, "b": jnp.full(N, 0.9)})
    z = (np.asarray(xt["a"]) - np.asarray(xt["a"]).mean()) * np.asarray(xt["b"])
    assert abs(z.mean() / (z.std() / np.sqrt(N))) < BOUND  # no shared noise
    np.testing.assert_allclose(xt["b"].std(), 0.9, rtol=0.03)
    np.testing.assert_allclose(xt["a"].std(), schedules.cosine()(0.2)[1], rtol=0.03)
    t = jnp.linspace(0.1, 0.9, N)
    np.testing.assert_allclose(
        both.log_prob(x0, xt, t), a.log_prob(x0["a"], xt["a"], t) + b.log_prob(x0["b"], xt["b"], t), rtol=1e-6
    )
    with pytest.raises(ValueError, match="structure of the processes"):
        both.corrupt(jax.random.key(0), {"a": x0["a"]}, 0.5)
    with pytest.raises(ValueError, match="leaves are diffjax Process"):
        joint({})
    assert numerics.tree_keys(jax.random.key(0), x0).keys() == x0.keys()
