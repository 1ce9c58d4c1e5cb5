"""MNIST by reflected diffusion, else as `mnist`.

python -m experiments.prepare mnist
python -m experiments.train --config mnist_reflected
"""

from ml_collections import ConfigDict

from experiments.configs import mnist


def config():
    c = mnist.config()
    c.space = "box"
    c.schedule = ConfigDict({"name": "ve", "sigma_min": 0.01, "sigma_max": 5.0})
    c.prediction = "score"
    c.weighting = "likelihood"
    c.sampler.name = "reflected"
    c.sampler.denoise = True
    c.sampler.clip = 0.0
    return c
