"""Optimizers: ordinary torch.optim.Optimizer classes that take a closure, for this loop or anyone's.

A class whose update is elementwise says so with `elementwise = True`; the engine then hands it all parameters as one
flat tensor, which changes nothing in the result and makes a step a few operations whatever the depth of the model.
"""
