"""A position, an angle, a rotation and a symbol learned together; any one may be held while the rest is drawn. Two minutes."""

from experiments.configs import default


def config():
    c = default.config()
    c.steps = 8_000
    c.sample_every = 4_000
    c.batch_size = 256
    c.learning_rate = 1e-3
    c.data.name = "joint"
    c.network.features = (128, 128, 128, 128)
    c.mixture.own_times = 0.5  # so that parts may also be drawn one after the other
    c.sampler.name = "bridge"
    return c
