"""Federated averaging on Flower's simulation (extra 'flower'): what `fedcl.federated_average` is held against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from streamsplit.errors import MissingExtraError, StreamSplitError
from streamsplit.evaluation.baselines.fedcl import Update
from streamsplit.weights.revision import Weights

Train = Callable[[Weights, int, int], Update]  # (the round's weights, client, round) -> what the client brings


def flower_rounds(weights: Weights, train: Train, clients: int, rounds: int = 1) -> Weights:
    """The weights after `rounds` rounds of Flower's own FedAvg over `clients` clients, each in a worker process.

    `train` is called in the workers, so it must be picklable, and clients keep nothing from round to round. Raises
    MissingExtraError without Flower, StreamSplitError where a round did not end with the weights of all clients.
    """
    try:
        from flwr.client import ClientApp, NumPyClient
        from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
        from flwr.server import ServerApp, ServerAppComponents, ServerConfig
        from flwr.server.strategy import FedAvg
        from flwr.simulation import run_simulation
    except ImportError as error:
        raise MissingExtraError("FedCL on Flower", "flower", str(error)) from error
    names = sorted(weights)
    made: list[list[np.ndarray]] = []

    class Keeping(FedAvg):  # type: ignore[misc]
        """Flower's FedAvg, which leaves every round's average here."""

        def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
            found = super().aggregate_fit(server_round, results, failures)
            if not failures and found[0] is not None and len(results) == clients:
                made.append(parameters_to_ndarrays(found[0]))
            return found

    class Client(NumPyClient):  # type: ignore[misc]
        """One device."""

        def __init__(self, number: int) -> None:
            self._number = number

        def fit(self, parameters: list[np.ndarray], config: dict[str, Any]) -> Any:
            given = {name: np.asarray(array) for name, array in zip(names, parameters, strict=True)}
            update = train(given, self._number, int(config["round"]))
            return [update.weights[name] for name in names], update.windows, {}

    def client_fn(context: Any) -> Any:
        return Client(int(context.node_config["partition-id"])).to_client()

    def server_fn(context: Any) -> Any:
        strategy = Keeping(
            fraction_fit=1.0, fraction_evaluate=0.0, min_fit_clients=clients, min_available_clients=clients,
            initial_parameters=ndarrays_to_parameters([weights[name] for name in names]),
            on_fit_config_fn=lambda number: {"round": number},
        )  # fmt: skip
        return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=rounds))

    run_simulation(
        server_app=ServerApp(server_fn=server_fn), client_app=ClientApp(client_fn=client_fn), num_supernodes=clients,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )  # fmt: skip
    if len(made) != rounds:
        raise StreamSplitError(f"got {len(made)} of {rounds} rounds from Flower's simulation; its log says why")
    return dict(zip(names, made[-1], strict=True))
