"""`digits_levels` with noise that the walls of [0, 1] reflect in place of Gaussian noise, all else the same: its bits per pixel compare."""

from ml_collections import ConfigDict

from experiments.configs import digits_levels


def config():
    c = digits_levels.config()
    c.space = "box"
    c.schedule = ConfigDict({"name": "ve", "sigma_min": 0.01, "sigma_max": 5.0})
    c.sampler.name = "reflected"
    return c
