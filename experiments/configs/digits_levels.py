"""Digits as what they are, pixels of 17 levels: the network tells levels apart, and its likelihood is bounded in bits per pixel.

Seconds on two CPU cores. `--config.schedule.name=learned` trains the log-SNR between its ends, too, for a loss of less variance.
"""

from experiments.configs import default


def config():
    c = default.config()
    c.steps = 1_000
    c.batch_size = 128
    c.learning_rate = 2e-3
    c.ema_decay = 0.99
    c.log_every = 50
    c.sample_every = 500
    c.checkpoint_every = 500
    c.data.name = "digits"
    c.schedule.name = "linear_logsnr"
    c.schedule.low = -8.0
    c.schedule.high = 6.0
    c.prediction = "levels"
    c.weighting = "likelihood"
    c.network.features = (512, 512)
    c.sampler.name = "ddim"
    c.sampler.steps = 50
    c.sampler.denoise = True
    c.evaluate.num = 500
    return c
