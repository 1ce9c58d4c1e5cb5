"""Three symbols of four with a strongly dependent law, recovered from draws of each symbol alone."""

from experiments.configs import default


def config():
    c = default.config()
    c.steps = 6_000
    c.batch_size = 256
    c.learning_rate = 1e-3
    c.data.name = "symbols"
    c.network.features = (128, 128, 128, 128)
    c.sampler.name = "bridge"
    return c
