"""StreamSplit: audio devices that listen, learn and stream continuously together with a server.

The names below load what they need when they are first used; importing the package alone is light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "StreamSplitFramework": "streamsplit.framework",
    "StreamSplitConfig": "streamsplit.facade.config",
    "StreamSplitMode": "streamsplit.facade.config",
    "EdgeModule": "streamsplit.facade.edge",
    "EdgeTrainer": "streamsplit.facade.edge_trainer",
    "TrainingConfig": "streamsplit.facade.edge_trainer",
    "ServerModule": "streamsplit.facade.server",
    "ServerTrainer": "streamsplit.facade.server_trainer",
    "ServerTrainingConfig": "streamsplit.facade.server_trainer",
    "DynamicSplittingAgent": "streamsplit.facade.splitting",
    "MobileNetV3EdgeEncoder": "streamsplit.facade.encoders",
    "MobileNetV3ServerEncoder": "streamsplit.facade.encoders",
    "MetricsCollector": "streamsplit.evaluation.metrics",
    "evaluate_embeddings": "streamsplit.evaluation.metrics",
    "load_pretrained": "streamsplit.facade.pretrained",
    "save_pretrained": "streamsplit.facade.pretrained",
    "TinyStream": "streamsplit.codec.tinystream.model",
    "ModelChunker": "streamsplit.weights.streaming.chunker",
    "StreamingModel": "streamsplit.facade.streaming",
    "StreamingBertModel": "streamsplit.facade.streaming",
    "StreamingGPT2Model": "streamsplit.facade.streaming",
    "StreamingLlamaModel": "streamsplit.facade.streaming",
    "StreamingT5Model": "streamsplit.facade.streaming",
    "StreamingConfig": "streamsplit.facade.streaming_config",
    "StreamingEncoder": "streamsplit.facade.streaming_encoder",
    "StreamingMonitor": "streamsplit.facade.streaming_monitor",
    "WeightServer": "streamsplit.facade.weight_server",
    "AdvancedWeightServer": "streamsplit.facade.weight_server",
}

__all__ = [
    "AdvancedWeightServer",
    "DynamicSplittingAgent",
    "EdgeModule",
    "EdgeTrainer",
    "MetricsCollector",
    "MobileNetV3EdgeEncoder",
    "MobileNetV3ServerEncoder",
    "ModelChunker",
    "ServerModule",
    "ServerTrainer",
    "ServerTrainingConfig",
    "StreamSplitConfig",
    "StreamSplitFramework",
    "StreamSplitMode",
    "StreamingBertModel",
    "StreamingConfig",
    "StreamingEncoder",
    "StreamingGPT2Model",
    "StreamingLlamaModel",
    "StreamingModel",
    "StreamingMonitor",
    "StreamingT5Model",
    "TinyStream",
    "TrainingConfig",
    "WeightServer",
    "__version__",
    "evaluate_embeddings",
    "load_pretrained",
    "save_pretrained",
]

if TYPE_CHECKING:
    from streamsplit.codec.tinystream.model import TinyStream
    from streamsplit.evaluation.metrics import MetricsCollector, evaluate_embeddings
    from streamsplit.facade.config import StreamSplitConfig, StreamSplitMode
    from streamsplit.facade.edge import EdgeModule
    from streamsplit.facade.edge_trainer import EdgeTrainer, TrainingConfig
    from streamsplit.facade.encoders import MobileNetV3EdgeEncoder, MobileNetV3ServerEncoder
    from streamsplit.facade.pretrained import load_pretrained, save_pretrained
    from streamsplit.facade.server import ServerModule
    from streamsplit.facade.server_trainer import ServerTrainer, ServerTrainingConfig
    from streamsplit.facade.splitting import DynamicSplittingAgent
    from streamsplit.facade.streaming import (
        StreamingBertModel,
        StreamingGPT2Model,
        StreamingLlamaModel,
        StreamingModel,
        StreamingT5Model,
    )
    from streamsplit.facade.streaming_config import StreamingConfig
    from streamsplit.facade.streaming_encoder import StreamingEncoder
    from streamsplit.facade.streaming_monitor import StreamingMonitor
    from streamsplit.facade.weight_server import AdvancedWeightServer, WeightServer
    from streamsplit.framework import StreamSplitFramework
    from streamsplit.weights.streaming.chunker import ModelChunker


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'streamsplit' has no attribute '{name}'")
    import importlib

    try:
        module = importlib.import_module(home)
    except ModuleNotFoundError as error:
        extras = {
            "torch": "learn",
            "sklearn": "server",
            "matplotlib": "server",
            "starlette": "server",
            "uvicorn": "server",
        }
        extra = extras.get(error.name or "")
        if extra is None:
            raise
        from streamsplit.errors import MissingExtraError

        raise MissingExtraError(f"streamsplit.{name}", extra, str(error)) from error
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
