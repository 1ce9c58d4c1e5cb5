"""Perovskite cells: fifteen angles, five symbols and a lattice constant together. Real cells with --config.data.dir=DIR. Ten minutes."""

from experiments.configs import default


def config():
    c = default.config()
    c.steps = 12_000
    c.sample_every = 6_000
    c.batch_size = 256
    c.learning_rate = 1e-3
    c.data.name = "crystals"
    c.network.features = (512, 512, 512, 512)
    c.sampler.name = "bridge"
    c.evaluate.num = 8_000  # the rarest of seven triples then has hundreds of cells: of 2,000, chance alone bends its share by 8 points at times
    return c
