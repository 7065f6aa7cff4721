"""Small transformers models with random weights, saved as anyone would save them, and chunked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers", reason="needs the extra 'weights'")
from transformers import BertConfig, GPT2Config, LlamaConfig, T5Config  # noqa: E402

from streamsplit.weights.streaming.chunker import ModelChunker  # noqa: E402
from streamsplit.weights.streaming.manifest import Manifest, read_manifest  # noqa: E402

VOCABULARY = 96
CONFIGS: dict[str, Any] = {
    "BertModel": lambda: BertConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64, vocab_size=VOCABULARY,
        max_position_embeddings=40,
    ),
    "GPT2LMHeadModel": lambda: GPT2Config(
        n_embd=32, n_layer=3, n_head=4, vocab_size=VOCABULARY, n_positions=64, bos_token_id=1, eos_token_id=None
    ),
    "LlamaForCausalLM": lambda: LlamaConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
        vocab_size=VOCABULARY, max_position_embeddings=64, eos_token_id=None,
    ),
    "T5ForConditionalGeneration": lambda: T5Config(
        d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=VOCABULARY, decoder_start_token_id=0,
        eos_token_id=None,
    ),
}  # fmt: skip


def saved(folder: Path, architecture: str, seed: int = 0, **options: Any) -> Any:
    """A model in `folder`, and the model itself in evaluation mode: the oracle."""
    torch.manual_seed(seed)
    model = getattr(transformers, architecture)(CONFIGS[architecture]()).eval()
    with torch.no_grad():  # norms and biases begin as ones and zeros, which would hide a mix-up
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(folder, **options)
    return model


def chunked(source: Path, target: Path, **options: Any) -> Manifest:
    """Chunks of a saved model with embeddings by rows, small as they are."""
    ModelChunker(str(source), target, **{"rows_over_bytes": 1024, **options}).chunk_model()
    return read_manifest(target)
