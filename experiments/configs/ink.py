"""How a handwritten digit's ink is shared among eight regions: compositions on the simplex, under reflected noise. A minute."""

from experiments.configs import torsions


def config():
    c = torsions.config()
    c.steps = 8_000
    c.data.name = "ink"
    return c
