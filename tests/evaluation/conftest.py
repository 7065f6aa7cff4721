"""The corpus that most of these tests learn from."""

from __future__ import annotations

import pytest

from streamsplit.evaluation.corpus import Corpus, synthetic_corpus


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    """Ten scenes and 40 s of stream; nobody changes it. Files that need another one have their own."""
    return synthetic_corpus(10, 40.0)
