"""MNIST at 28x28 with a U-Net that is told the class: minutes on a GPU, hours on a CPU.

python -m experiments.prepare mnist
python -m experiments.train --config mnist
"""

from experiments.configs import default


def config():
    c = default.config()
    c.steps = 20_000
    c.batch_size = 256
    c.learning_rate = 5e-4
    c.ema_decay = 0.9995
    c.data.name = "mnist"
    c.schedule.name = "cosine"
    c.prediction = "v"
    c.conditional = True
    c.optimizer.warmup = 500
    c.network.name = "unet"
    c.network.channels = 64
    c.network.multipliers = (1, 2, 2)
    c.network.blocks = 2
    c.network.attention_levels = (2,)
    c.network.dropout = 0.1
    c.network.dtype = "float32"  # bfloat16 is faster on a GPU or TPU
    c.sampler.steps = 100
    c.sampler.clip = 1.0
    c.sampler.chunk = 250
    c.evaluate.num = 1_000
    return c
