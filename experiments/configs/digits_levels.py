"""Digits as what they are, pixels of 17 levels: the network tells levels apart, and its likelihood is bounded in bits per pixel.

Minutes on two CPU cores, no download.
A learned schedule (`schedule.name = "learned"`, with the same `low` and `high`) bends the log-SNR between its ends for a loss of less variance.
"""

from experiments.configs import default


def config():
    c = default.config()
    c.steps = 2_000
    c.batch_size = 128
    c.learning_rate = 1e-3
    c.log_every = 50
    c.sample_every = 500
    c.checkpoint_every = 500
    c.data.name = "digits"
    c.schedule.name = "linear_logsnr"
    c.schedule.low = -8.0
    c.schedule.high = 6.0
    c.prediction = "levels"
    c.weighting = "likelihood"
    c.conditional = True
    c.network.name = "unet"
    c.network.channels = 32
    c.network.multipliers = (1, 2)
    c.network.blocks = 1
    c.network.attention_levels = (1,)
    c.network.dropout = 0.1
    c.sampler.name = "ddim"
    c.sampler.steps = 50
    c.sampler.denoise = True
    c.sampler.chunk = 64
    c.evaluate.num = 500
    return c
