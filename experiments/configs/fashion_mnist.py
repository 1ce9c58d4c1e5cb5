"""Fashion-MNIST, as MNIST.

python -m experiments.prepare fashion_mnist
python -m experiments.train --config fashion_mnist
"""

from experiments.configs import mnist


def config():
    c = mnist.config()
    c.data.name = "fashion_mnist"
    return c
