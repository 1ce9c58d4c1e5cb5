"""scikit-learn's 8x8 digits with a small U-Net that is told the class. Minutes on two CPU cores, no download."""

from experiments.configs import default


def config():
    c = default.config()
    c.steps = 2_000
    c.batch_size = 128
    c.learning_rate = 1e-3
    c.log_every = 50
    c.sample_every = 250
    c.checkpoint_every = 500
    c.data.name = "digits"
    c.schedule.name = "cosine"
    c.prediction = "v"
    c.conditional = True
    c.network.name = "unet"
    c.network.channels = 32
    c.network.multipliers = (1, 2)
    c.network.blocks = 1
    c.network.attention_levels = (1,)
    c.network.dropout = 0.1
    c.sampler.steps = 50
    c.sampler.clip = 1.0
    c.sampler.chunk = 64
    c.evaluate.num = 500
    return c
