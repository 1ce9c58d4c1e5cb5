"""Networks in Flax Linen, one calling convention. Needs the extra `nn` (flax).

    params = net.init(key, xt, t, label=None, x0_prev=None)
    guess  = net.apply(params, xt, t, label=None, x0_prev=None)      # of xt's shape

    MLP    vectors
    UNet   images, NHWC

`t` is a scalar or one time an example, `label` an integer class (`-1` or None: none), `x0_prev` the last estimate of x_0.
"""

from diffjax.networks import layers
from diffjax.networks.mlp import MLP
from diffjax.networks.unet import UNet

__all__ = ["MLP", "UNet", "layers"]
