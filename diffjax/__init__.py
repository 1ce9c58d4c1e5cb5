"""diffjax: functional diffusion models in JAX.

Read in the order of the theory: a *schedule* says how much signal and noise there is at time `t`
(`diffjax.schedules`), a *process* turns data into noise and back between two known ends
(`diffjax.processes`), a *loss* teaches a network the clean end (`diffjax.losses`), a *sampler* walks back
(`diffjax.samplers`). Networks and the training step (`diffjax.networks`, `diffjax.training`) need the extra
`diffjax[nn]`; nothing else here imports Flax.
"""

__version__ = "0.1.0"
