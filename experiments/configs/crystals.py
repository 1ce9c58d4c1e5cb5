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
    # About a thousand cells for each triple: with 2,000 in all, chance alone moves some triple's share of distorted ones by 8 points at times.
    c.evaluate.num = 8_000
    return c
