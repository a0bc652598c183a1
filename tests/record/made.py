"""Records and loggers for the tests of this room."""

import json

from runner.logger import Logger

CONFIG = {
    "name": "sweep",
    "seed": 3,
    "device": "cpu",
    "choices": {"loss": "poly", "hook": ["ema", "clip"]},
    "loss": {"_target_": "runner.loss.poly.Poly", "epsilon": 1e-05},
    "optim": {"betas": [0.9, 0.999], "fused": None, "nesterov": True},
    # words that YAML would read as something else when written carelessly
    "tricky": {"number": "1e-3", "answer": "no", "nothing": "null", "colon": "a: b", "quote": 'it\'s "so"', "é": "ü"},
}

RESULT = {"id": "0123abcdef", "name": "sweep", "status": "done", "last": {"epoch": 2, "test_accuracy": 0.5}}


class Spy(Logger):
    def __init__(self):
        self.calls = []

    def start(self, folder, run_id, config, resumed):
        self.calls.append(("start", run_id, resumed))

    def log(self, record):
        self.calls.append(("log", record))

    def finish(self, status, result):
        self.calls.append(("finish", status, result))


def line(epoch: int, **measures) -> dict:
    return {"step": 10 * epoch, "epoch": epoch, "lr": 0.1, "train_loss": 1 / epoch, **measures}


def strict(text: str):
    """JSON as the standard has it: NaN and Infinity, which Python reads by default, are errors."""

    def refuse(word):
        raise ValueError(word)

    return json.loads(text, parse_constant=refuse)
