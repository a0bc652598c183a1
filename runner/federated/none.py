"""Training in one place."""

from runner.federated import Federated


class Central(Federated):
    """All the data, one model: `trainer.fit()`."""

    def run(self, trainer) -> None:
        trainer.fit()
