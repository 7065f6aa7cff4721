"""The Python examples of the research code's README, word for word except for their import lines."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

from streamsplit.config import load_settings
from streamsplit.edge.settings import EdgeSettings
from streamsplit.errors import ConfigError
from streamsplit.server.settings import ServerSettings

FRAMEWORK = """
import asyncio
import numpy as np
import torch
from streamsplit import StreamSplitFramework, StreamSplitConfig, StreamSplitMode
from streamsplit import MobileNetV3EdgeEncoder, MobileNetV3ServerEncoder

# Configure framework
config = StreamSplitConfig(
    device_id="edge_device_1",
    device_type="raspberry_pi_4b",
    sample_rate=16000,
    n_mels=128,
    embedding_dim=128,
    learning_rate=1e-4,
    memory_bank_size_min=64,
    memory_bank_size_max=512,
    split_reward_weights={
        'accuracy': 1.0,
        'resource_usage': -0.5,
        'latency': -0.3,
        'privacy_risk': -0.2
    }
)

# Initialize framework
framework = StreamSplitFramework(config)

# Start in dynamic split mode
async def run_streamsplit():
    await framework.start(mode=StreamSplitMode.DYNAMIC_SPLIT)
    
    # Process audio stream (example with synthetic audio)
    audio_data = np.random.randn(16000).astype(np.float32)  # 1 second at 16kHz
    result = await framework.process_audio_stream(audio_data)
    
    print(f"Processing mode: {result['mode']}")
    print(f"Latency: {result['latency']:.2f}ms")
    print(f"Split point: {result['split_point']}")
    
    await framework.stop()

# Run the example
asyncio.run(run_streamsplit())
"""

EDGE_ONLY = """
import torch
from streamsplit import EdgeModule
from streamsplit import EdgeTrainer, TrainingConfig
from streamsplit import MobileNetV3EdgeEncoder

# Create edge model
edge_model = MobileNetV3EdgeEncoder(
    input_dim=128,
    embedding_dim=128,
    width_multiplier=0.75
)

# Configure edge trainer
edge_config = TrainingConfig(
    learning_rate=1e-4,
    temperature=0.1,
    momentum=0.999,
    batch_size=32,
    memory_bank_min_size=64,
    memory_bank_max_size=512
)

# Initialize edge trainer
edge_trainer = EdgeTrainer(edge_config, edge_model, device='cpu')

# Process audio spectrogram
spectrogram = torch.randn(128, 64)  # Mel spectrogram
result = edge_trainer.train_step(spectrogram)

print(f"Loss: {result['loss']['total_loss']:.4f}")
print(f"Memory bank size: {result['memory_bank_stats']['current_size']}")
"""

SERVER = """
import asyncio
import time
import torch
from streamsplit import ServerModule
from streamsplit import ServerTrainer, ServerTrainingConfig
from streamsplit import MobileNetV3ServerEncoder

# Create server model
server_model = MobileNetV3ServerEncoder(
    intermediate_dim=256,
    embedding_dim=128,
    num_layers=4
)

# Configure server trainer
server_config = ServerTrainingConfig(
    learning_rate=5e-4,
    batch_size=256,
    sw_projections=100,
    laplacian_k_neighbors=5,
    laplacian_weight=0.5
)

# Initialize server trainer
server_trainer = ServerTrainer(server_config, server_model, device='cuda')

# Start server training
async def run_server():
    await server_trainer.start_training()
    
    # Simulate receiving embeddings from edge device
    embeddings_data = {
        'embeddings': torch.randn(128),
        'timestamps': [time.time()],
        'metadata': {'device_id': 'edge_1', 'split_point': 8}
    }
    
    await server_trainer.receive_embeddings('edge_1', embeddings_data)
    
    # Get training metrics
    metrics = server_trainer.get_training_metrics()
    print(f"Global step: {metrics['global_step']}")
    print(f"Average loss: {metrics['average_loss']:.4f}")
    
    await server_trainer.stop_training()

asyncio.run(run_server())
"""

SPLITTING = """
import asyncio
from streamsplit import DynamicSplittingAgent

# Create splitting config (normally loaded from YAML)
class SplittingConfig:
    def __init__(self):
        self.bandwidth_range = (0.5, 8.0)
        self.latency_range = (50, 200)
        self.split_agent_lr = 1e-3
        self.split_reward_weights = {
            'accuracy': 1.0,
            'resource_usage': -0.5,
            'latency': -0.3,
            'privacy_risk': -0.2
        }

splitting_config = SplittingConfig()
splitting_agent = DynamicSplittingAgent(splitting_config)

# Start splitting agent
async def run_splitting():
    await splitting_agent.start()
    
    # Get split decision
    split_decision = await splitting_agent.get_split_decision()
    print(f"Split point: {split_decision['split_point']}")
    print(f"Confidence: {split_decision['confidence']:.3f}")
    print(f"Reasoning: {split_decision['reasoning']}")
    
    await splitting_agent.stop()

asyncio.run(run_splitting())
"""

EVALUATION = """
from streamsplit import MetricsCollector, evaluate_embeddings
import torch
import numpy as np

# Create sample embeddings and labels
embeddings = torch.randn(1000, 128)  # 1000 samples, 128D embeddings
labels = np.random.randint(0, 10, 1000)  # 10 classes

# Evaluate embeddings
results = evaluate_embeddings(
    embeddings, 
    labels, 
    device='cpu',
    include_visualization=True
)

# Print results
print(f"Classification Accuracy: {results['classification_accuracy'].value:.3f}")
print(f"Precision@10: {results['precision_at_10'].value:.3f}")
print(f"Embedding Separability: {results['embedding_separability'].value:.3f}")

# Use metrics collector for comprehensive monitoring
collector = MetricsCollector(device='cpu')
collector.start_monitoring()

# ... run your experiments ...

collector.stop_monitoring()
report = collector.get_comprehensive_report()
collector.export_metrics('results/metrics.json', format='json')
"""

PRETRAINED = """
# Loading models (when available)
from streamsplit import MobileNetV3EdgeEncoder

edge_model = MobileNetV3EdgeEncoder(input_dim=128, embedding_dim=128)
# edge_model.load_state_dict(torch.load('path/to/pretrained_edge_model.pth'))
"""

EXAMPLES = {
    "framework": FRAMEWORK, "edge only": EDGE_ONLY, "server": SERVER, "splitting": SPLITTING, "evaluation": EVALUATION,
    "pretrained": PRETRAINED,
}  # fmt: skip


EDGE_YAML = """
# Key configuration sections
device:
  id: "edge_device_1"
  type: "raspberry_pi_4b"

audio:
  sample_rate: 16000
  n_mels: 128
  window_duration: 0.025

training:
  learning_rate: 1e-4
  temperature: 0.1
  batch_size: 32

memory_bank:
  min_size: 64
  max_size: 512

splitting:
  enabled: true
  agent:
    learning_rate: 1e-3
    reward_weights:
      accuracy: 1.0
      resource_usage: -0.5
      latency: -0.3
      privacy_risk: -0.2
"""

SERVER_YAML = """
# Key configuration sections
server:
  bind_address: "0.0.0.0"
  port: 8888

training:
  learning_rate: 5e-4
  batch_size: 256

loss:
  sliced_wasserstein:
    num_projections: 100
    weight: 1.0
  laplacian:
    k_neighbors: 5
    weight: 0.5

aggregation:
  temporal_window: 30.0
  min_devices_per_update: 2
"""


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    monkeypatch.chdir(folder)
    scope: dict[str, object] = {"__name__": "__main__"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="device 'cuda' was asked for")
        exec(compile(EXAMPLES[name], f"<example: {name}>", "exec"), scope)
    return scope


def body(example: str) -> list[str]:
    """An example without its import lines and blank ends."""
    lines = [line.rstrip() for line in example.strip("\n").splitlines()]
    kept = [line for line in lines if not re.match(r"(from \S+ import |import )", line)]
    while kept and not kept[0]:
        kept.pop(0)
    return kept


def test_the_examples_are_the_readmes_but_for_the_import_lines():
    readme = Path(__file__).resolve().parents[2] / "shared" / "seeds" / "streamsplit-readme.md"
    if not readme.is_file():
        pytest.skip("the research code's README is not here")
    blocks = re.findall(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
    runnable = [block for block in blocks if not re.match(r"class \w+:\n    (async )?def", block)]
    assert [body(block) for block in runnable] == [body(example) for example in EXAMPLES.values()]


def test_the_settings_files_are_the_readmes():
    readme = Path(__file__).resolve().parents[2] / "shared" / "seeds" / "streamsplit-readme.md"
    if not readme.is_file():
        pytest.skip("the research code's README is not here")
    blocks = re.findall(r"```yaml\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
    assert [block.strip() for block in blocks] == [EDGE_YAML.strip(), SERVER_YAML.strip()]


def test_the_edge_settings_example(tmp_path):
    path = tmp_path / "edge_config.yaml"
    path.write_text(EDGE_YAML)
    settings = load_settings(path, EdgeSettings)
    assert settings.device.profile.name == "pi4"
    assert settings.training.learning_rate == 1e-4 and settings.memory_bank.max_size == 512
    assert settings.policy.greedy.quality == 10.0 and settings.policy.greedy.energy == 5.0


def test_the_server_settings_example_asks_for_a_token_on_an_open_address(tmp_path, monkeypatch):
    path = tmp_path / "server_config.yaml"
    path.write_text(SERVER_YAML)
    monkeypatch.delenv("STREAMSPLIT_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="token"):
        load_settings(path, ServerSettings)
    monkeypatch.setenv("STREAMSPLIT_TOKEN", "secret")
    settings = load_settings(path, ServerSettings)
    assert settings.training.batch_size == 256 and settings.loss.sliced_wasserstein.weight == 1.0
    assert settings.aggregation.min_devices_per_update == 2


def test_the_framework_example(tmp_path, monkeypatch, capsys):
    run("framework", tmp_path, monkeypatch)
    shown = capsys.readouterr().out
    assert "Processing mode: dynamic_split" in shown
    assert float(re.search(r"Latency: ([\d.]+)ms", shown)[1]) > 0
    assert 0 <= int(re.search(r"Split point: (\d+)", shown)[1]) <= 13


def test_the_edge_only_example(tmp_path, monkeypatch, capsys):
    run("edge only", tmp_path, monkeypatch)
    assert "Loss: 0.0000\nMemory bank size: 1" in capsys.readouterr().out  # nothing to compare with yet


def test_the_server_example(tmp_path, monkeypatch, capsys):
    run("server", tmp_path, monkeypatch)
    shown = capsys.readouterr().out
    assert "Global step: 1" in shown
    assert float(re.search(r"Average loss: (-?[\d.]+)", shown)[1]) > 0


def test_the_splitting_example(tmp_path, monkeypatch, capsys):
    run("splitting", tmp_path, monkeypatch)
    shown = capsys.readouterr().out
    assert 0 <= int(re.search(r"Split point: (\d+)", shown)[1]) <= 13
    assert 0 < float(re.search(r"Confidence: ([\d.]+)", shown)[1]) <= 1
    assert len(re.search(r"Reasoning: (.+)", shown)[1]) > 10


def test_the_evaluation_example(tmp_path, monkeypatch, capsys):
    run("evaluation", tmp_path, monkeypatch)
    accuracy = float(re.search(r"Classification Accuracy: ([\d.]+)", capsys.readouterr().out)[1])
    assert accuracy < 0.25  # ten classes of noise
    assert (tmp_path / "results" / "metrics.json").stat().st_size > 2


def test_the_pretrained_example(tmp_path, monkeypatch):
    scope = run("pretrained", tmp_path, monkeypatch)
    assert sum(p.numel() for p in scope["edge_model"].parameters()) > 100_000
