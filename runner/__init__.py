"""Compose any published loss, optimizer, sharpness method, quantizer and federated algorithm into one training loop."""

import os

__version__ = "0.1.0"

# How often an OpenMP thread looks for the next piece of work before it sleeps; read when torch is loaded. By default it
# looks 300,000 times: beside other work, threads that wait for one without a core then keep the cores from it.
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "1000"
