"""Rotations from each residue of a protein to the next, on SO(3), with a mixture of heat kernels. A minute or two."""

from experiments.configs import default


def config():
    c = default.config()
    c.steps = 3_000
    c.batch_size = 256
    c.learning_rate = 1e-3
    c.data.name = "rotations"
    c.network.features = (128, 128, 128, 128)
    c.sampler.name = "bridge"
    return c
