"""Players: parts of what is trained that step in turn, each for a loss of its own."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from runner.core.mistake import ConfigError
from runner.core.weights import trainable
from runner.hook import Hook
from runner.loss import Loss

if TYPE_CHECKING:
    from runner.engine.trainer import Trainer


def players(loss: Loss, choice: str, *modules: nn.Module) -> list[str] | None:
    """Whose each of the modules' trainable tensors is, or None where nobody takes turns. modules : model, loss, risk.

    Raises ConfigError where one is nobody's or several's, or a player has none.
    """
    if not loss.turns:
        return None
    name = f"loss={choice}"
    if not all(isinstance(turns, int) and turns > 0 for turns in loss.turns.values()):
        raise ConfigError(f"{name}: turns must be numbers of steps, got {loss.turns}")
    owners: dict[int, str] = {}
    for player in loss.turns:
        part = modules[0] if player == "model" else getattr(loss, player, None)
        own = list(trainable(part)) if isinstance(part, nn.Module) else []
        if not own:
            raise ConfigError(f"{name}: the player '{player}' trains nothing: it is the model or a part of the loss")
        if any(id(parameter) in owners for parameter in own):
            raise ConfigError(f"{name}: the player '{player}' has tensors that are another player's too")
        owners |= dict.fromkeys(map(id, own), player)
    for parameter, tensor in trainable(*modules).items():
        if id(parameter) not in owners:
            raise ConfigError(f"{name}: {tensor} is trained and belongs to none of the players {', '.join(loss.turns)}")
    return [owners[id(parameter)] for parameter in trainable(*modules)]


class Turn(Hook):
    """Says whose turn a step is, a pure function of its number, and keeps the others' slices still: their gradients are
    zero, and what an optimizer finds without a gradient it leaves alone, with its state."""

    def start(self, run: "Trainer") -> None:
        self.order = [player for player, turns in run.loss.turns.items() for _ in range(turns)]
        self.slices = [key.player for key in dict.fromkeys(run.weights.keys)]
        told = ", ".join(f"{player} {turns}" for player, turns in run.loss.turns.items())
        run.notices.append(f"steps are turns: {told}; an epoch's loss is the mean over turns of their players' losses")

    def before(self, run: "Trainer") -> None:
        turn = self.order[run.count % len(self.order)]
        run.loss.turn = turn
        run.weights.idle.clear()
        run.weights.idle.update(number for number, player in enumerate(self.slices) if player != turn)

    @torch.no_grad()
    def step(self, run: "Trainer") -> None:
        run.loss.project()


def refuse(run: "Trainer", choices: dict) -> None:
    """Raise ConfigError for what does not go with turns."""
    if not run.loss.turns:
        return
    name = f"loss={choices['loss']} has players that step in turn"
    if run.balance is not None or run.estimate is not None:
        group, plain = ("gradient", "backprop") if run.balance is None else ("balance", "none")
        raise ConfigError(f"{name}, and {group}={choices[group]} takes that of all weights: set {group}={plain}")
    if choices["federated"] != "none":
        raise ConfigError(f"{name}, and a client's round would be a part of one's: set federated=none")
