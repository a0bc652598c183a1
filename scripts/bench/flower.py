"""The federation of `scripts.bench.federated` in Flower's own simulation; for an environment with torch and Flower.

Clients do the same work: plain SGD on tensors in memory, which every worker of Ray keeps between its clients, as it
keeps the network; evaluation is off.
"""

import json
import time
from functools import lru_cache

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn
from torch.nn import functional as F


def mlp(inputs: int, hidden: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def lenet() -> nn.Module:
    body = [nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(
        *body, nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)
    )


NETWORKS = {"mlp 64": lambda: mlp(64, 64), "mlp 784": lambda: mlp(784, 128), "lenet": lenet}


@lru_cache(maxsize=1)
def memory(text: str):
    """(network, inputs, targets, where every client's samples begin), made once in the life of a worker."""
    torch.set_num_threads(1)
    work = json.loads(text)
    starts = [0, *torch.tensor(work["sizes"]).cumsum(0).tolist()]
    x = torch.randint(256, (starts[-1], *work["shape"]), generator=torch.Generator().manual_seed(0))
    y = torch.randint(10, (starts[-1],), generator=torch.Generator().manual_seed(1))
    return NETWORKS[work["name"]](), x.float().sub_(127.5).div_(127.5), y, starts


def train(text: str, client: int, state: dict) -> tuple[dict, int]:
    """The weights after the client's local training, and its samples."""
    work, (model, x, y, starts) = json.loads(text), memory(text)
    model.load_state_dict(state)
    optimizer = torch.optim.SGD(model.parameters(), lr=work["lr"])
    low, high = starts[client], starts[client + 1]
    for _ in range(work["epochs"]):
        for rows in (low + torch.randperm(high - low)).split(work["batch"]):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model.state_dict(), high - low


def main(text: str, rounds: int) -> list[float]:
    """Seconds of every round.

    text : JSON: the network's name, the images' shape, every client's samples, batch, epochs, lr. This must be an
    imported module: workers find its functions by their names.
    """
    clients = len(json.loads(text)["sizes"])
    client_app, server_app, times = ClientApp(), ServerApp(), []

    @client_app.train()
    def _(message, context):
        state = message.content["arrays"].to_torch_state_dict()
        state, samples = train(text, int(context.node_config["partition-id"]), state)
        content = {"arrays": ArrayRecord(state), "metrics": MetricRecord({"num-examples": samples})}
        return Message(content=RecordDict(content), reply_to=message)

    @server_app.main()
    def _(grid, context):
        strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
        initial = ArrayRecord(memory(text)[0].state_dict())

        def note(round_, arrays):
            times.append(time.perf_counter())
            same = zip(arrays.to_torch_state_dict().values(), initial.to_torch_state_dict().values())
            if round_ and all(torch.equal(a, b) for a, b in same):
                raise RuntimeError("no client answered")

        strategy.start(grid=grid, initial_arrays=initial, num_rounds=rounds, evaluate_fn=note)

    backend = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server_app=server_app, client_app=client_app, num_supernodes=clients, backend_config=backend)
    return [after - before for before, after in zip(times, times[1:])]
