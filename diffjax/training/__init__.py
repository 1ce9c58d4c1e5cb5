"""Training: what is remembered, one step, and that step on many devices. Needs the extra `nn` (flax, optax).

state      TrainState, init, make_step, warm_decay
parallel   jit_step, pmap_step, shard_map_step
"""

from diffjax.training import parallel, state
from diffjax.training.state import TrainState, init, make_step, warm_decay

__all__ = ["TrainState", "init", "make_step", "parallel", "state", "warm_decay"]
