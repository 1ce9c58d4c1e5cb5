"""Oxford flowers at 64x64 in colour, without classes: for a GPU.

python -m experiments.prepare oxford_flowers102
python -m experiments.train --config flowers
"""

from experiments.configs import default


def config():
    c = default.config()
    c.steps = 40_000
    c.batch_size = 64
    c.learning_rate = 2e-4
    c.ema_decay = 0.9998
    c.data.name = "oxford_flowers102"
    c.data.train = "train+validation"
    c.data.size = 64
    c.data.flip = True
    c.schedule.name = "cosine"
    c.prediction = "v"
    c.optimizer.warmup = 1_000
    c.network.name = "unet"
    c.network.channels = 64
    c.network.multipliers = (1, 2, 3, 4)
    c.network.blocks = 2
    c.network.attention_levels = (2, 3)
    c.network.dropout = 0.1
    c.network.dtype = "float32"  # bfloat16 is faster on a GPU or TPU
    c.sampler.steps = 100
    c.sampler.clip = 1.0
    c.sampler.chunk = 64
    c.evaluate.num = 500
    return c
