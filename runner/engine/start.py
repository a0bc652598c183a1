"""`checkpoint=`: a run that starts from the weights of another one."""

from typing import Any

import torch
from torch import nn

from runner.command.build import locate
from runner.core.mistake import ConfigError
from runner.engine.heldout import compare
from runner.loss import Loss
from runner.quantization.none import Identity
from runner.record import origin
from runner.record.files import read_config

SHOWN = 3  # tensors that a message names


class Start:
    """The weights of a run as it evaluates them, an average of them where a hook keeps one.

    Parameters
    ----------
    where : a run's folder, which means its last.pt, what the measures of its last epoch and what post-training
        quantization at its end are of; or a checkpoint in it, such as best_val.pt.

    Raises
    ------
    ConfigError
        There is none, or its network was trained quantized.
    """

    def __init__(self, where: str):
        self.where, self.path = where, origin.find(where)
        state = origin.load(where)
        step = state.get("step", state.get("count"))
        self.step: int | None = step if isinstance(step, int) else None
        self.model, self.loss = origin.weights(state)
        self.config = self._config()
        self._refuse_quantized()

    def _config(self) -> dict[str, Any]:
        """Of the checkpoint's run; empty for a file alone."""
        if not (self.path.parent / ".hydra" / "config.yaml").exists():
            return {}
        try:
            config = read_config(self.path.parent)
        except (ValueError, OSError) as error:
            raise ConfigError(f"checkpoint={self.where}: {error}") from error
        nodes = [config.get(group) for group in ("dataset", "loss", "quantization")] if isinstance(config, dict) else []
        if not nodes or not all(isinstance(node, dict) and "_target_" in node for node in nodes):
            raise ConfigError(
                f"checkpoint={self.where}: {self.path.parent}/.hydra/config.yaml is not a run's config; without that "
                "file the checkpoint is taken as it is"
            )
        return config

    def compare(self, config: dict, fingerprint: str) -> tuple[dict, list[str]]:
        """See `runner.engine.heldout.compare`."""
        facts, lines = compare(self.config, self.path.parent, config, fingerprint)
        if self.path.name == "best_test.pt":
            lines.append("checkpoint: best_test.pt was chosen by its measures on test, which are no estimate then")
        return facts, lines

    def _refuse_quantized(self) -> None:
        option = self.config.get("choices", {}).get("quantization", "")
        if self.config:
            kind = locate(self.config["quantization"]["_target_"], "quantization")
            trained = not (kind.after or kind is Identity)
        else:  # a file alone: its tensors tell of most options
            trained = any(part in f".{name}." for name in self.model for part in (".quantize_", ".factors."))
        if trained:
            with_ = f" with quantization={option}" if option else ""
            raise ConfigError(
                f"checkpoint={self.where}: its network was trained quantized{with_}; start from one in full precision"
            )

    def into_model(self, model: nn.Module) -> None:
        """Raises ConfigError where it is another model: the tensors that differ, here and there."""
        here, there = ({name: tuple(t.shape) for name, t in part.items()} for part in (model.state_dict(), self.model))
        wrong = [
            f"{name} {_shape(there.get(name))} there and {_shape(here.get(name))} here"
            for name in (*here, *(there.keys() - here.keys()))
            if here.get(name) != there.get(name)
        ]
        if wrong:
            more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
            raise ConfigError(
                f"checkpoint={self.where}: another model{self._of('model', 'dataset')}: "
                f"{', '.join(wrong[:SHOWN])}{more}"
            )
        model.load_state_dict(self.model)

    @torch.no_grad()
    def into_loss(self, loss: Loss, name: str, trains: bool) -> dict[str, list[str]]:
        """Load the loss's own parameters, where it has those of the checkpoint in name and shape. Its memories, which
        are of the samples of another run, are left out.

        Returns the tensors that were `left_out` and those that are `fresh`, at their own start.

        Raises
        ------
        ConfigError
            Nothing is to be trained, and the logits are made by a loss whose weights are not the same here and there.
        """
        own = dict(loss.named_parameters())
        fits = all(key in self.loss and self.loss[key].shape == value.shape for key, value in own.items())
        for key, value in own.items() if fits else ():
            value.copy_(self.loss[key])
        left_out = [key for key in self.loss if not (fits and key in own)]
        fresh = [] if fits else list(own)
        if not trains and fresh and _has_head(type(loss)):
            raise ConfigError(
                f"checkpoint={self.where}: loss={name} makes the logits with weights of its own, "
                f"{', '.join(fresh)}, which are not there{self._of('loss')}; without training they mean nothing"
            )
        source = self.config.get("loss", {}).get("_target_")
        if not trains and not own and self.loss and source and _has_head(locate(source, "loss")):
            raise ConfigError(
                f"checkpoint={self.where}: its logits are made by the loss{self._of('loss')}, which has weights of "
                f"its own, {', '.join(self.loss)}; choose the same loss"
            )
        return {"left_out": left_out, "fresh": fresh}

    def _of(self, *groups: str) -> str:
        choices = self.config.get("choices", {})
        shown = " ".join(f"{group}={choices[group]}" for group in groups if group in choices)
        return f" ({shown})" if shown else ""


def _has_head(kind: type) -> bool:
    return getattr(kind, "head", Loss.head) is not Loss.head


def _shape(shape: tuple | None) -> str:
    return "is not" if shape is None else f"is {shape}"
