"""Networks: what they must not depend on, what they must, and their parts against plain formulas."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffjax.networks import MLP, UNet, layers, unet

KEY = jax.random.key(3)
RNG = np.random.default_rng(0)
MLP_DATA = jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)
IMAGES = jnp.asarray(RNG.normal(size=(4, 8, 8, 2)), jnp.float32)
TIMES = jnp.array([0.1, 0.4, 0.7, 1.0])
LABELS = jnp.array([0, 1, 2, -1])

mlp = functools.partial(MLP, features=(16, 16))
small = functools.partial(UNet, channels=8, multipliers=(1, 2), blocks=1, attention_levels=(1,))
tiny = functools.partial(UNet, channels=8, multipliers=(1,), blocks=1, attention_levels=())
NETWORKS = [pytest.param(mlp, MLP_DATA, id="mlp"), pytest.param(small, IMAGES, id="unet")]
SLOW_UNET = [NETWORKS[0], pytest.param(small, IMAGES, id="unet", marks=pytest.mark.slow)]


@functools.cache
def awake(net, event):
    """Parameters with no zeros among them: an untrained U-Net gives 0 whatever it is shown."""
    shapes = jax.eval_shape(net.init, KEY, jax.ShapeDtypeStruct((1, *event), jnp.float32), jnp.zeros(1))
    rng = np.random.default_rng(9)
    return jax.tree.map(
        lambda p: (
            jnp.asarray(rng.normal(size=p.shape) / np.sqrt(np.prod(p.shape[:-1])), p.dtype)
            if len(p.shape) > 1
            else jnp.asarray(1 + 0.3 * rng.normal(size=p.shape), p.dtype)
        ),
        shapes,
    )


@functools.cache
def compiled(net):
    return jax.jit(net.apply)


def event(net, x):
    return x.shape[-1:] if isinstance(net, MLP) else x.shape[-3:]


def call(net, x, *args, **kwargs):
    return compiled(net)(awake(net, event(net, x)), x, *args, **kwargs)


def full_call(make, x, *, t=TIMES, label=LABELS, x0_prev=None):
    """A network with every input, always called with one signature, so that it is compiled once for all tests."""
    return call(make(num_classes=3, self_condition=True), x, t, label, -x if x0_prev is None else x0_prev)


# --------------------------------------------------------------------------------------------------- features of time


def test_waves_know_only_the_difference_of_two_times():
    # cos a cos b + sin a sin b = cos(a - b): the inner product of two feature vectors moves with neither.
    for features in (functools.partial(layers.sinusoidal, features=16), layers.random_fourier(16)):
        s, t = jnp.array([0.0, 0.2, 0.31]), jnp.array([0.05, 0.25, 0.36])
        products = jnp.sum(features(s) * features(t), -1)
        np.testing.assert_allclose(products, products[0], atol=2e-4)
        np.testing.assert_allclose(jnp.sum(features(t) ** 2, -1), 8.0, rtol=1e-5)


def test_sinusoidal_frequencies_are_those_of_a_thousand_steps():
    # The slopes of the sines at 0 are the frequencies: 1000 / 10000^(k / half), the step number t * 1000 of DDPM.
    slopes = jax.jacfwd(functools.partial(layers.sinusoidal, features=8))(0.0)
    np.testing.assert_allclose(slopes[:4], 0.0, atol=1e-6)
    np.testing.assert_allclose(slopes[4:], [1000.0, 100.0, 10.0, 1.0], rtol=1e-6)


def test_random_fourier_features_make_a_gaussian_kernel():
    # E cos(2 pi f d) = exp(-2 (pi scale d)^2) for f ~ N(0, scale^2). A fixed seed; 20,000 frequencies: s.e. .005.
    features = layers.random_fourier(40_000, scale=2.0)
    for d in (0.0, 0.05, 0.1, 0.2):
        kernel = jnp.mean(features(0.3) * features(0.3 + d)) * 2
        assert float(kernel) == pytest.approx(np.exp(-2 * (np.pi * 2.0 * d) ** 2), abs=0.02)


def test_time_is_seen_in_full_precision_by_a_half_precision_network():
    # Two times that differ by one part in 2,000 are one bfloat16 number; the waves between the two are not.
    net = mlp(dtype=jnp.bfloat16)
    near = call(net, MLP_DATA, jnp.array(0.7)), call(net, MLP_DATA, jnp.array(0.7005))
    assert jnp.bfloat16(0.7) == jnp.bfloat16(0.7005)
    assert float(jnp.abs(near[0] - near[1]).max()) > 1e-3


def test_odd_features_are_refused_in_words():
    for bad in (lambda: layers.sinusoidal(0.1, 7), lambda: layers.random_frequencies(0)):
        with pytest.raises(ValueError, match="positive even number"):
            bad()


# ------------------------------------------------------------------------------------------------- what must not count


@pytest.mark.parametrize(("make", "x"), NETWORKS)
def test_an_example_does_not_see_its_company(make, x):
    first = full_call(make, x)[0]
    other = full_call(
        make,
        x.at[1:].multiply(3),
        t=TIMES[jnp.array([0, 3, 1, 2])],
        label=jnp.array([0, 0, 0, 0]),
        x0_prev=(-x).at[1:].set(1),
    )
    np.testing.assert_array_equal(first, other[0])


@pytest.mark.parametrize(("make", "x"), [NETWORKS[0], pytest.param(tiny, IMAGES, id="unet", marks=pytest.mark.slow)])
def test_a_scalar_time_or_label_serves_all_and_any_batch_shape_works(make, x):
    net = make(num_classes=3)
    whole = call(net, x, jnp.full(4, 0.3), jnp.full(4, 2))
    assert whole.shape == x.shape
    pairs, event = x.reshape(2, 2, *x.shape[1:]), x.shape[1:]
    for other in (
        call(net, x, 0.3, 2),
        call(net, x, jnp.float32(0.3), jnp.full(4, 2)),
        call(net, x, jnp.full(4, 0.3), 2),
        call(net, pairs, jnp.full(2, 0.3), jnp.full((2, 2), 2)),
        call(net, pairs, 0.3, jnp.full(2, 2)),
        jnp.stack([call(net, x[i], 0.3, 2) for i in range(4)]),
        jax.jit(jax.vmap(lambda a: call(net, a, 0.3, 2)))(x),
    ):
        np.testing.assert_allclose(other.reshape(-1, *event), whole, atol=2e-5)


@pytest.mark.parametrize(("make", "x"), NETWORKS)
def test_no_label_is_minus_one_no_estimate_is_zeros_and_one_time_serves_all(make, x):
    spelled_out = full_call(make, x, t=jnp.full(4, 0.3), label=jnp.full(4, -1), x0_prev=jnp.zeros_like(x))
    np.testing.assert_allclose(call(make(num_classes=3, self_condition=True), x, 0.3), spelled_out, atol=2e-5)


# ----------------------------------------------------------------------------------------------------- what must count


@pytest.mark.parametrize(("make", "x"), NETWORKS)
def test_time_class_and_last_estimate_each_change_the_result(make, x):
    results = [full_call(make, x, label=jnp.full(4, k)) for k in (0, 1, 2, -1)]
    results += [full_call(make, x, label=jnp.zeros(4, int), **other) for other in ({"t": TIMES - 0.01}, {"x0_prev": x})]
    for i, a in enumerate(results):
        assert all(float(jnp.abs(a - b).max()) > 1e-3 for b in results[:i])


@pytest.mark.parametrize(("make", "x"), NETWORKS)
def test_a_label_that_is_no_class_gives_nan_to_its_example_alone(make, x):
    result = full_call(make, x, label=jnp.array([0, 3, 1, 99]))
    assert [bool(jnp.isnan(r).all()) for r in result] == [False, True, False, True]
    assert bool(jnp.isfinite(result[::2]).all())


@pytest.mark.parametrize(("make", "x"), SLOW_UNET)
def test_every_parameter_is_learned(make, x):
    net = make(num_classes=3, self_condition=True)
    params = awake(net, x.shape[1:])
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(net.apply(p, x, TIMES, LABELS, x) ** 3)))(params)
    for path, g in jax.tree_util.tree_leaves_with_path(gradient):
        assert bool(jnp.isfinite(g).all()), path
        rows = g if path[-1].key == "table" else g.reshape(1, -1)  # each class, and "no class", on its own
        assert all(float(jnp.abs(row).max()) > 1e-6 for row in rows), path


def test_an_untrained_u_net_gives_zero():
    net = tiny(attention_levels=(0,), num_classes=3)
    result, params = jax.jit(net.init_with_output)(KEY, IMAGES, TIMES, LABELS)
    assert float(jnp.abs(result).max()) == 0.0
    assert sum(bool((p == 0).all()) for p in jax.tree.leaves(params)) < len(jax.tree.leaves(params)) - 10


def test_initial_weights_keep_the_size_of_their_input():
    # Variance 1 / inputs: 3 * 3 * 30 of them. 27,000 draws: s.e. of the variance .9%, of the mean .6% of the deviation.
    weights = np.asarray(layers.lecun(KEY, (3, 3, 30, 100)))
    assert weights.var() * 270 == pytest.approx(1.0, abs=0.04)
    assert abs(weights.mean()) * np.sqrt(270) < 0.03
    assert len(np.unique(weights)) > 26_000


@pytest.mark.parametrize(("make", "x"), NETWORKS)
def test_the_last_axis_may_be_chosen(make, x):
    net = make(outputs=5) if make is mlp else make(out_channels=5)
    assert jax.eval_shape(net.init_with_output, KEY, x, TIMES)[0].shape == (*x.shape[:-1], 5)


# ----------------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize(("make", "x"), NETWORKS)
def test_half_precision_is_inside_only(make, x):
    half = make(num_classes=3, self_condition=True, dtype=jnp.bfloat16)
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(awake(half, x.shape[1:])))
    full, rough = full_call(make, x), call(half, x, TIMES, LABELS, -x)
    assert rough.dtype == jnp.float32
    error = float(jnp.sqrt(jnp.mean((full - rough) ** 2) / jnp.mean(full**2)))
    assert 1e-4 < error < 0.03  # not float32 all through, and not lost
    both = jax.eval_shape(half.init_with_output, KEY, x.astype(jnp.bfloat16), TIMES.astype(jnp.bfloat16))
    assert both[0].dtype == jnp.bfloat16


def test_double_precision_data_come_back_as_such():
    with jax.enable_x64(True):
        x = jnp.ones((2, 3), jnp.float64)
        net = mlp()
        params = net.init(KEY, x, jnp.zeros(2))
        assert net.apply(params, x, jnp.zeros(2)).dtype == jnp.float64


# --------------------------------------------------------------------------------------------------------------- parts


def test_group_norm_is_the_two_pass_formula():
    x = np.asarray(RNG.normal(size=(2, 3, 5, 8)) * 3 + 2, np.float64)
    groups = x.reshape(2, 15, 2, 4)
    expected = ((groups - groups.mean((1, 3), keepdims=True)) / groups.std((1, 3), keepdims=True)).reshape(x.shape)
    norm = unet.Norm(jnp.float32)
    x32 = jnp.asarray(x, jnp.float32)
    np.testing.assert_allclose(norm.apply(norm.init(KEY, x32), x32), expected, atol=2e-5)
    scale, shift = RNG.normal(size=(2, 8)), RNG.normal(size=(2, 8))
    modulation = jnp.asarray(np.concatenate([scale, shift], -1), jnp.float32)
    modulated = expected * (1 + scale)[:, None, None] + shift[:, None, None]
    np.testing.assert_allclose(norm.apply({}, x32, modulation), modulated, atol=5e-5)


def test_attention_is_softmax_over_pixels():
    x = jnp.asarray(RNG.normal(size=(1, 2, 3, 8)), jnp.float32)
    layer = unet.Attention(4, jnp.float32)  # two heads of four
    params = layer.init(KEY, x)["params"]
    params = jax.tree.map(lambda p: jnp.asarray(RNG.normal(size=p.shape) / 2, jnp.float32), params)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    h = np.asarray(unet.Norm(jnp.float32).apply({"params": params["norm"]}, x), np.float64).reshape(6, 8)
    q, k, v = np.split(h @ p["qkv"]["kernel"], 3, -1)
    out = []
    for head in (slice(0, 4), slice(4, 8)):
        weights = np.exp(q[:, head] @ k[:, head].T / 2)
        out.append(weights / weights.sum(-1, keepdims=True) @ v[:, head])
    expected = np.asarray(x) + (np.concatenate(out, -1) @ p["output"]["kernel"] + p["output"]["bias"]).reshape(x.shape)
    np.testing.assert_allclose(layer.apply({"params": params}, x), expected, atol=1e-4)


def test_attention_stands_at_the_levels_asked_for():
    def where(levels):
        net = UNet(channels=8, multipliers=(1, 1, 1), blocks=1, attention_levels=levels)
        params = jax.eval_shape(net.init, KEY, IMAGES, TIMES)["params"]
        return sorted(name.removesuffix("_attention") for name in params if name.endswith("_attention"))

    assert where(()) == []
    assert where((1,)) == ["down_1", "up_1"]
    assert where((0, 2)) == ["down_0", "down_2", "middle_0", "up_0", "up_2"]


@pytest.mark.slow
def test_dropout_works_for_each_example_and_only_with_a_key():
    net = tiny(dropout=0.5)
    keys = jax.random.split(KEY, 4)
    plain = call(net, IMAGES, TIMES)
    np.testing.assert_array_equal(plain, call(tiny(), IMAGES, TIMES))
    dropped = call(net, IMAGES, TIMES, dropout_key=keys)
    assert float(jnp.abs(dropped - plain).max()) > 1e-2
    np.testing.assert_allclose(dropped[2:], call(net, IMAGES[2:], TIMES[2:], dropout_key=keys[2:]), atol=2e-5)
    assert float(jnp.abs(dropped - call(net, IMAGES, TIMES, dropout_key=KEY)).max()) > 1e-2
    assert float(jnp.abs(call(tiny(dropout=0.0), IMAGES, TIMES, dropout_key=keys) - plain).max()) == 0.0


def test_dropout_keeps_the_mean_and_draws_for_each_example():
    # After the mask a block is linear: the mean over 1,000 masks is the block without, to 4.5 s.e. at each of 16 places (a
    # false alarm in 9,000). With a key an example a mask does not depend on the batch; with one key there is one draw for all.
    block = unet.Residual(4, 0.3, jnp.float32)
    x, modulation = jnp.asarray(RNG.normal(size=(1, 2, 2, 4)), jnp.float32), jnp.zeros((1, 8))
    params = jax.tree.map(
        lambda p: jnp.asarray(RNG.normal(size=p.shape), p.dtype), block.init(KEY, x, modulation, None)
    )
    keys, many = jax.random.split(KEY, 1000), jnp.broadcast_to(x, (1000, 2, 2, 4))
    apply = jax.jit(block.apply)
    draws = apply(params, many, modulation, keys)
    error = jnp.std(draws, 0) / np.sqrt(1000)
    assert bool((error > 0).all())
    assert bool((jnp.abs(jnp.mean(draws, 0) - apply(params, x, modulation, None)[0]) < 4.5 * error).all())
    np.testing.assert_allclose(draws[7:9], apply(params, many[7:9], modulation, keys[7:9]), atol=1e-5)
    assert len(np.unique(apply(params, many[:9], modulation, KEY), axis=0)) > 1


# --------------------------------------------------------------------------------------------------------------- NNX


@pytest.mark.parametrize(("make", "x"), [(mlp, MLP_DATA), (tiny, IMAGES)], ids=["mlp", "unet"])
def test_networks_run_through_the_nnx_bridge(make, x):
    net = make(num_classes=3, self_condition=True)
    model = nnx.bridge.ToNNX(net, rngs=nnx.Rngs(0))
    for name, value in awake(net, x.shape[1:])["params"].items():
        setattr(model, name, nnx.data(jax.tree.map(nnx.Param, value)))
    got = nnx.jit(lambda m, *args: m(*args))(model, x, TIMES, LABELS, -x)
    np.testing.assert_allclose(got, full_call(make, x), atol=1e-5)


# -------------------------------------------------------------------------------------------------------------- errors


def test_sizes_the_levels_do_not_divide_are_refused_in_words():
    three = UNet(channels=8, blocks=1)
    assert jax.eval_shape(three.init_with_output, KEY, jnp.zeros((1, 28, 28, 1)), 0.5)[0].shape == (1, 28, 28, 1)
    with pytest.raises(ValueError, match="divisible by 4, got 30x28"):
        three.init(KEY, jnp.zeros((1, 30, 28, 1)), 0.5)


@pytest.mark.parametrize(("make", "x"), NETWORKS)
def test_inputs_that_do_not_fit_are_refused_in_words(make, x):
    def refuse(error, match, net, *args):
        with pytest.raises(error, match=match):
            net.init(KEY, *args)

    refuse(ValueError, r"t.shape=\(3,\)", make(), x, jnp.zeros(3))
    refuse(ValueError, "num_classes=K", make(), x, TIMES, LABELS)
    refuse(ValueError, "self_condition=True", make(), x, TIMES, None, x)
    refuse(ValueError, "one shape", make(self_condition=True), x, TIMES, None, x[:2])
    refuse(ValueError, r"label.shape=\(3,\)", make(num_classes=3), x, TIMES, jnp.zeros(3, jnp.int32))
    refuse(ValueError, r"label in 0..2, .* got label=3", make(num_classes=3), x, TIMES, 3)
    refuse(TypeError, "integer labels", make(num_classes=3), x, TIMES, jnp.zeros(4))
    refuse(TypeError, "floating-point xt", make(), x.astype(jnp.int32), TIMES)


def test_settings_that_make_no_sense_are_refused_in_words():
    for match, net, x in [
        ("3 axes", small(), IMAGES[0, 0]),
        (r"among 0..1, got \(2,\)", small(attention_levels=(2,)), IMAGES),
        ("one level", small(multipliers=()), IMAGES),
        ("one hidden layer", mlp(features=()), MLP_DATA),
        ("dropout=1.0", small(dropout=1.0), IMAGES),
        ("3 heads", small(head_features=5), IMAGES),
    ]:
        with pytest.raises(ValueError, match=match):
            jax.eval_shape(net.init, KEY, x, 0.5)


def test_activation_of_the_perceptron_is_the_one_given():
    # With the identity between the layers the network is affine in x, with any other it is not.
    def bend(net):
        a, b, c = (call(net, x, 0.3) for x in (MLP_DATA, -MLP_DATA, jnp.zeros_like(MLP_DATA)))
        return float(jnp.abs(a + b - 2 * c).max())

    assert bend(mlp(activation=lambda h: h)) < 1e-5
    assert bend(mlp(activation=nn.gelu)) > 1e-2
