"""How many nats a model needs for the data.

`bounds` holds the variational bounds term by term, discrete (DDPM) and continuous (VDM), `scores` those of a score on any space, such as reflected
diffusion; their names are here too. `symbols` has the bounds for symbols (D3PM, masked diffusion), `levels` turns real numbers into probabilities of levels and back
(decoders, dequantisation), `learned_schedule` is a log-SNR with parameters. Exact likelihoods by the probability flow are in
`diffjax.samplers.ode`.
"""

from diffjax.likelihood import learned_schedule, levels, scores, symbols
from diffjax.likelihood.bounds import (
    Bound,
    Decode,
    bits_per_dim,
    continuous,
    discrete,
    mean_and_error,
    step,
    summary,
    transition_std,
)
from diffjax.likelihood.levels import dequantised
from diffjax.likelihood.scores import density, girsanov

__all__ = [
    "Bound",
    "Decode",
    "bits_per_dim",
    "continuous",
    "density",
    "dequantised",
    "discrete",
    "girsanov",
    "learned_schedule",
    "levels",
    "mean_and_error",
    "scores",
    "step",
    "summary",
    "symbols",
    "transition_std",
]
