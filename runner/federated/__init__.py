"""Federated algorithms: who trains on what, and how the updates come together."""


class Federated:
    """Base of every federated algorithm; `federated=none` is plain training."""

    def run(self, trainer) -> None:
        """The whole of training. A client is `trainer.fit` on its own data."""
        raise NotImplementedError
