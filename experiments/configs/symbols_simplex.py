"""The words of `symbols` as corners of a simplex: noise moves inside it, and the walk back ends at corners."""

from experiments.configs import symbols


def config():
    c = symbols.config()
    c.data.name = "corners"
    c.steps = 20_000
    c.mixture.own_times = 0.5  # a letter is learned best from others that are nearly clean
    return c
