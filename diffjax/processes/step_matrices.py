"""Symbols that move by step matrices: D3PM, a chain in T steps.

    q(x_k | x_{k-1}) = Q_k[x_{k-1}, x_k],        q(x_k | x_0) = (Q_1 ... Q_k)[x_0, x_k],        t = k / T.

Row i of a matrix is the law of the next symbol after i. `markov` makes the process; the others make matrices `[T, K, K]` in float64
NumPy from noise rates betas `[T]`. All are to be had from `diffjax.processes.discrete` too.

Source: Austin et al. 2021 (D3PM), arXiv:2107.03006, sec. 3 and app. A.2.
"""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from diffjax import numerics
from diffjax.numerics import expand_right
from diffjax.processes import chains
from diffjax.processes.base import Process


def markov(step_matrices: ArrayLike) -> Process:
    """The D3PM process of T step matrices: `q(x_k | x_{k-1}) = Q_k[x_{k-1}, x_k]` at the times t = k / T.

    Args:
      step_matrices: `[T, K, K]`, Q_1 to Q_T, rows summing to 1, known now (not traced). `gaussian_steps` and its like make them.

    Returns:
      a `Process` on integers in [0, K), all capabilities but `score`; times are rounded to the nearest k / T. `prior` draws from the
      average row of Q_1 ... Q_T, which is every row where the chain has forgotten its start. Products from 0 are tables made in
      float64, so a step to the neighbouring time costs O(K) a site in `bridge` and O(K^2) in `posterior_logits`; a longer one multiplies
      as many matrices as it is long. The tables take 2 T K^2 numbers: for many symbols and steps prefer `jump` or `rates.process`.

    Raises:
      ValueError: not `[T, K, K]` or no stochastic matrices.

    Source: Austin et al. 2021, arXiv:2107.03006, eq. 1-3.

    Example:
      >>> p = markov(gaussian_steps(np.full(10, 0.1), vocab=8))
      >>> x0 = jnp.full((3, 5), 4)
      >>> xt = p.corrupt(jax.random.key(0), x0, 0.1)
      >>> xt.shape, p.posterior_logits(jnp.zeros((3, 5, 8)), xt, 0.1, 0.2).shape
      ((3, 5), (3, 5, 8))
    """
    q = np.asarray(step_matrices, np.float64)
    if q.ndim != 3 or q.shape[1] != q.shape[2] or not (q >= 0).all() or not np.allclose(q.sum(-1), 1, atol=1e-4):
        raise ValueError(f"expected step matrices [T, K, K] >= 0 whose rows sum to 1, got shape {q.shape}")
    q = q / q.sum(-1, keepdims=True)
    count, symbols = q.shape[:2]
    products = [np.eye(symbols)]
    for step in q:
        products.append(products[-1] @ step)
    # Entry 0 of both is the identity: the step that is taken once the goal is reached.
    from_start, steps = np.stack(products), np.concatenate([np.eye(symbols)[None], q])

    def index(t):
        numerics.check_time(t)
        return jnp.round(numerics.upcast(t)[0] * count).astype(jnp.int32)

    def column(xt, s, t):
        table = jnp.asarray(steps)
        j, k = jnp.broadcast_arrays(index(s), index(t))
        one_step = table[jnp.where(expand_right(k > j, xt), expand_right(k, xt), 0), :, xt]

        def back(i, v):
            at = k - 1 - i
            matrix = table[jnp.where(at > j, at, 0)]
            return chains.product(v, jnp.swapaxes(matrix, -1, -2))

        return jax.lax.fori_loop(0, jnp.max(k - j) - 1, back, one_step)

    return chains.process(
        row=lambda x0, t: jnp.asarray(from_start)[expand_right(index(t), x0), x0],
        reach=lambda xt, t: jnp.asarray(from_start)[expand_right(index(t), xt), :, xt],
        column=column,
        push=lambda weights, s: chains.product(weights, jnp.asarray(from_start)[index(s)]),
        prior=products[-1].mean(0),
    )


# ------------------------------------------------------------------------------------------------ kinds of matrices


def _betas(betas: ArrayLike, most: float = 1.0) -> np.ndarray:
    b = np.asarray(betas, np.float64)
    if b.ndim != 1 or not ((b >= 0) & (b <= most)).all():
        raise ValueError(
            f"expected noise rates betas [T] in [0, {most}], got shape {b.shape} from {b.min()} to {b.max()}"
        )
    return b[:, None, None]


def _stay(steps: np.ndarray) -> np.ndarray:
    """Off-diagonal probabilities completed by the diagonal."""
    eye = np.eye(steps.shape[-1], dtype=bool)
    off = np.where(eye, 0, steps)
    return off + np.where(eye, 1 - off.sum(-1, keepdims=True), 0)


def uniform_steps(betas: ArrayLike, *, vocab: int) -> np.ndarray:
    """`Q_k = (1 - beta_k) I + beta_k / K`: with probability beta_k a fresh uniform symbol. `[T, K, K]`.

    Source: Austin et al. 2021, arXiv:2107.03006, app. A.2.1.

    Example:
      >>> print(uniform_steps([0.3], vocab=3)[0])
      [[0.8 0.1 0.1]
       [0.1 0.8 0.1]
       [0.1 0.1 0.8]]
    """
    b = _betas(betas)
    return (1 - b) * np.eye(vocab) + b / vocab


def absorbing_steps(betas: ArrayLike, *, vocab: int) -> np.ndarray:
    """`Q_k`: with probability beta_k the mask, the symbol `vocab`. `[T, vocab + 1, vocab + 1]`.

    `beta_k = 1 / (T - k + 1)` masks evenly over the steps.

    Source: Austin et al. 2021, arXiv:2107.03006, app. A.2.2.

    Example:
      >>> print(absorbing_steps([0.25], vocab=2)[0])
      [[0.75 0.   0.25]
       [0.   0.75 0.25]
       [0.   0.   1.  ]]
    """
    b = _betas(betas)
    eye = np.eye(vocab + 1)
    return (1 - b) * eye + b * eye[vocab]


def gaussian_steps(betas: ArrayLike, *, vocab: int) -> np.ndarray:
    """The discretised Gaussian for ordered symbols: off the diagonal `exp(-4 |i - j|^2 / ((K-1)^2 beta_k))`, normalised over all differences. `[T, K, K]`.

    Doubly stochastic, so its stationary law is uniform; beta / 2 is about the variance of a step where the symbols span [-1, 1].

    Source: Austin et al. 2021, arXiv:2107.03006, app. A.2.3, eq. 8.

    Example:
      >>> print(gaussian_steps([0.5], vocab=3)[0].round(3))
      [[0.893 0.106 0.   ]
       [0.106 0.787 0.106]
       [0.    0.106 0.893]]
    """
    b = np.maximum(_betas(betas, np.inf), 1e-300)
    scale = (vocab - 1) ** 2 * b / 4
    n = np.arange(-(vocab - 1), vocab)
    i = np.arange(vocab)
    return _stay(np.exp(-((i[:, None] - i) ** 2) / scale) / np.exp(-(n**2) / scale).sum(-1, keepdims=True))


def banded_steps(betas: ArrayLike, *, vocab: int, width: int) -> np.ndarray:
    """`Q_k`: probability `beta_k / K` for each symbol at most `width` away. `[T, K, K]`, doubly stochastic.

    Source: Austin et al. 2021, arXiv:2107.03006, app. A.2 (band-diagonal matrices).

    Example:
      >>> print(banded_steps([0.4], vocab=4, width=1)[0])
      [[0.9 0.1 0.  0. ]
       [0.1 0.8 0.1 0. ]
       [0.  0.1 0.8 0.1]
       [0.  0.  0.1 0.9]]
    """
    i = np.arange(vocab)
    return _stay(_betas(betas) / vocab * (np.abs(i[:, None] - i) <= width))


def neighbour_rates(embeddings: ArrayLike, *, neighbours: int) -> np.ndarray:
    """The rate matrix of moves to near symbols: `R = A - diag(sum A)`, `A = (G + G^T) / 2k`, G the k-nearest-neighbour graph. `[K, K]`.

    Symmetric, so its stationary law is uniform on each connected part of the graph. It also serves `rates.process`.

    Args:
      embeddings: `[K, d]`, where the symbols lie.
      neighbours: k, 1 <= k < K.

    Source: Austin et al. 2021, arXiv:2107.03006, app. A.2 (nearest neighbours in embedding space).

    Example:
      >>> print(neighbour_rates([[0.0], [1.0], [3.0]], neighbours=1))
      [[-1.   1.   0. ]
       [ 1.  -1.5  0.5]
       [ 0.   0.5 -0.5]]
    """
    e = np.asarray(embeddings, np.float64)
    if e.ndim != 2 or not 1 <= neighbours < len(e):
        raise ValueError(f"expected embeddings [K, d] and 1 <= neighbours < K, got shape {e.shape} and {neighbours=}")
    squares = (e**2).sum(1)
    distance = squares[:, None] + squares - 2 * e @ e.T
    np.fill_diagonal(distance, np.inf)
    graph = np.zeros_like(distance)
    np.put_along_axis(graph, np.argsort(distance, axis=1, kind="stable")[:, :neighbours], 1.0, axis=1)
    adjacency = (graph + graph.T) / (2 * neighbours)
    return adjacency - np.diag(adjacency.sum(1))


def neighbour_steps(betas: ArrayLike, *, embeddings: ArrayLike, neighbours: int) -> np.ndarray:
    """`Q_k = exp(beta_k R)` with the rates R of `neighbour_rates`. `[T, K, K]`, doubly stochastic.

    Args:
      betas: `[T]`, >= 0, the time each step runs.
      embeddings: `[K, d]`.
      neighbours: k, 1 <= k < K.

    Source: Austin et al. 2021, arXiv:2107.03006, app. A.2 (nearest neighbours in embedding space).

    Example:
      >>> print(neighbour_steps([0.1], embeddings=[[0.0], [1.0], [3.0]], neighbours=1)[0].round(3))
      [[0.909 0.088 0.002]
       [0.088 0.866 0.045]
       [0.002 0.045 0.952]]
    """
    b = _betas(betas, np.inf)
    # R is symmetric, so that its eigenvectors are orthogonal and this is exact to rounding.
    values, vectors = np.linalg.eigh(neighbour_rates(embeddings, neighbours=neighbours))
    steps = np.maximum((vectors * np.exp(b * values)) @ vectors.T, 0)
    return steps / steps.sum(-1, keepdims=True)
