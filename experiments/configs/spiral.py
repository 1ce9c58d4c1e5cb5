"""A noisy spiral in the plane: the first thing to run. A minute or two on two CPU cores."""

from experiments.configs import default


def config():
    c = default.config()
    c.network.features = (128, 128, 128)
    return c
