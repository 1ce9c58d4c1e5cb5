"""Every field there is, with the value it has where an experiment does not say otherwise."""

from ml_collections import ConfigDict


def config() -> ConfigDict:
    c = ConfigDict()
    c.seed = 0  # of the parameters, the batches and the noise: same seed, same run, bit for bit
    c.steps = 6_000
    c.batch_size = 512  # examples a step, over all devices
    c.learning_rate = 2e-3  # after warm-up
    c.ema_decay = 0.999  # of the average of the parameters, which is what samples are drawn with
    c.log_every = 100  # steps between lines of metrics.jsonl
    c.sample_every = 1_000  # steps between pictures; 0 = only the last
    c.checkpoint_every = 1_000
    c.keep_checkpoints = 3  # the newest so many
    c.layout = "jit"  # jit | pmap | shard_map: the same numbers by three ways of using many devices

    c.data = ConfigDict()
    c.data.name = "spiral"
    c.data.dir = ""  # where tfds keeps its data sets; "" = ~/tensorflow_datasets
    c.data.train = "train"  # split names, as tfds writes them: "train[:90%]"
    c.data.test = "test"
    c.data.size = 0  # images are cropped square and resized to so many pixels; 0 = as they are
    c.data.flip = False  # mirror half of the images

    c.space = (
        "plane"  # plane | box: Gaussian noise, or noise that the walls of [0, 1] reflect, for data between two bounds
    )
    c.schedule = ConfigDict({"name": "vp_linear"})  # further fields go to the schedule, e.g. beta_max
    c.network = ConfigDict({"name": "mlp"})  # further fields go to the network
    c.prediction = (
        "eps"  # x0 | eps | v | flow | score | levels: what the network's output means; on the box score | levels
    )
    c.walls = False  # on the box: a score that is 0 at the walls whatever the network says
    c.loss = "squared"  # squared | absolute
    c.weighting = "uniform"  # uniform | snr | truncated_snr | min_snr | sigmoid | edm | likelihood
    c.times = "stratified"  # stratified | uniform | logit_normal: how times are drawn
    c.conditional = False  # whether the network is told the class
    c.drop_label = 0.1  # share of classes hidden in training, for guidance

    c.optimizer = ConfigDict()
    c.optimizer.name = "adam"  # adam | adamw | sgd
    c.optimizer.clip = 1.0  # largest norm of the gradient; 0 = as it comes
    c.optimizer.warmup = 100  # steps of linear warm-up
    c.optimizer.decay = "cosine"  # cosine | constant: learning rate after warm-up, over `steps`
    c.optimizer.weight_decay = 0.0  # adamw only

    c.mixture = ConfigDict()  # where examples are made of several kinds of things (torsions, joint, crystals, ...)
    c.mixture.components = 8  # of the mixture that a guess is drawn from
    c.mixture.own_times = 0.25  # share of examples whose parts have a time each of their own
    c.mixture.held = 0.25  # share with one part clean, for generating the others given it

    c.sampler = ConfigDict()
    c.sampler.name = "ancestral"  # ancestral | ddim | dpmpp3 | unipc3 | ... | bridge, on the box reflected | ... ; `sample --help` lists them
    c.sampler.eta = 0.0  # ddim and dpmpp_2s: 0 deterministic, 1 as much fresh noise as ancestral steps
    c.sampler.churn = 0.0  # heun only: EDM's S_churn
    c.sampler.noise = 1.0  # reflected, projected and corrected: share of fresh noise, from 0 (probability flow) to 1 (reverse diffusion)
    c.sampler.anneal = 0.0  # likewise: the share falls as (noise level)^this through the walk; 0 = all the same
    c.sampler.ratio = 0.16  # corrected: the signal-to-noise ratio of its Langevin steps
    c.sampler.steps = 100
    c.sampler.spacing = "uniform"  # uniform | quadratic | karras | logsnr | trailing
    c.sampler.start = 1.0  # first and last time
    c.sampler.stop = 0.0
    c.sampler.guidance = 0.0  # classifier-free, only where conditional
    c.sampler.denoise = False  # end with the estimate of x_0, where the schedule keeps some noise to its end
    c.sampler.clip = 0.0  # the estimate of x_0 is held within +- this; 0 = free
    c.sampler.clocks = ""  # of parts: when in the walk each moves, "elements=0:.5, lattice=.5:1"; "" = together
    c.sampler.chunk = 512  # examples on a device at once

    c.evaluate = ConfigDict()
    c.evaluate.num = 2_000  # samples measured
    c.evaluate.splits = 5  # of real data against real data, for the floor
    return c
