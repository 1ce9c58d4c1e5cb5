"""A noisy spiral in the plane: the first thing to run. A minute on two CPU cores."""

from experiments.configs import default


def config():
    c = default.config()
    c.learning_rate = 5e-3
    c.prediction = "v"
    c.network.features = (128, 128, 128)
    return c
