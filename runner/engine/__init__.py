"""Training: the step, the loop, one run from its config to its result, and K runs as one."""
