"""A density on the square that lies at its walls, learned by reflected diffusion: nothing ever leaves the square. A minute or two."""

from experiments.configs import default


def config():
    c = default.config()
    c.steps = 10_000
    c.data.name = "box2d"
    c.space = "box"
    c.schedule.name = "ve"
    c.schedule.sigma_min = 0.003  # a tenth of the narrowest feature
    c.schedule.sigma_max = 5.0
    c.prediction = "score"
    c.walls = True
    c.weighting = "likelihood"
    c.network.features = (128, 128, 128)
    c.sampler.name = "reflected"
    c.sampler.steps = 500
    c.evaluate.num = 5_000
    return c
