"""emcee samples a Gaussian with schwimmbad's MPIPool, and draws the same chain as without."""

import sys

import emcee
import numpy as np
from schwimmbad import MPIPool


def log_prob(x):
    return -0.5 * float(np.sum((x - 3.0) ** 2))


def chain(pool):
    start = np.random.default_rng(1).normal(size=(16, 2))
    sampler = emcee.EnsembleSampler(16, 2, log_prob, pool=pool)
    state = emcee.State(start, random_state=np.random.RandomState(7).get_state())
    sampler.run_mcmc(state, 60)
    return sampler.get_chain()


with MPIPool() as pool:
    if not pool.is_master():
        pool.wait()
        sys.exit(0)
    parallel = chain(pool)
serial = chain(None)
assert np.array_equal(parallel, serial)
assert abs(parallel[30:].mean() - 3) < 0.5
print("emcee: held")
