"""Functions from a predictor to a predictor, applied before sampling; they compose.

`mixing` joins two predictions, or a prediction and a likelihood: `classifier_free`, `autoguidance`, `classifier`, with `interval` to guide at some
times only and `rescaled` to keep the contrast. `estimates` changes the estimate of x_0: `static_threshold`, `dynamic_threshold`,
`self_conditioned`. `inverse` bends it towards an observation: `inpaint`, `dps`, `pigdm`, `kalman`.

What is exact. Guidance changes the score at every noise level; its law is known where the changed scores are those of one noised density. So
`classifier` with the true p(y | x_t) and weight 1 samples p(x | y) exactly, and `kalman` does on Gaussian data, `pigdm` on isotropic ones. A weight
other than 1 is no such family: a plain sampler then ends elsewhere than at p(x) p(y|x)^w, while Langevin steps at the last noise level
(`samplers.langevin`, `samplers.correctors`) do reach it. `dps` and `inpaint` are approximations, `inpaint` a better one the more often
each step is repeated (`samplers.correctors.resampled`).
"""

from diffjax.guidance.estimates import dynamic_threshold, self_conditioned, static_threshold
from diffjax.guidance.inverse import dps, inpaint, kalman, pigdm
from diffjax.guidance.mixing import autoguidance, classifier, classifier_free, extrapolate, interval, rescaled

__all__ = [
    "autoguidance",
    "classifier",
    "classifier_free",
    "dps",
    "dynamic_threshold",
    "extrapolate",
    "inpaint",
    "interval",
    "kalman",
    "pigdm",
    "rescaled",
    "self_conditioned",
    "static_threshold",
]
