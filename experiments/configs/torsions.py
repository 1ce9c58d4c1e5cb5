"""Backbone angles of proteins on the torus, with a network that guesses a mixture of wrapped normal laws. A minute."""

from experiments.configs import default


def config():
    c = default.config()
    c.steps = 3_000
    c.batch_size = 256
    c.learning_rate = 1e-3
    c.data.name = "torsions"
    c.network.features = (128, 128, 128, 128)
    c.sampler.name = "bridge"
    return c
