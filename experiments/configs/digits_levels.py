"""Digits as what they are, pixels of 17 levels: the network tells levels apart, and its likelihood is bounded in bits per pixel.

Minutes on two CPU cores, no download.
A learned schedule (`schedule.name = "learned"`, with the same `low` and `high`) bends the log-SNR between its ends for a loss of less variance.
"""

from ml_collections import ConfigDict

from experiments.configs import digits


def config():
    c = digits.config()
    c.sample_every = 500
    c.schedule = ConfigDict({"name": "linear_logsnr", "low": -8.0, "high": 6.0})
    c.prediction = "levels"
    c.weighting = "likelihood"
    c.sampler.name = "ddim"
    c.sampler.denoise = True
    c.sampler.clip = 0.0
    return c
