"""The key encoder: an exponential moving average of the query encoder, used for inference and for all uplink."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def make_key(query: M) -> M:
    """A frozen copy of `query`."""
    key = copy.deepcopy(query)
    key.requires_grad_(False)
    return key.eval()


@torch.no_grad()
def follow(key: nn.Module, query: nn.Module, momentum: float) -> None:
    """key <- momentum key + (1 - momentum) query, in place; buffers are copied, parameters of both stay."""
    for slow, fast in zip(key.parameters(), query.parameters(), strict=True):
        if slow is not fast:
            slow.lerp_(fast.detach(), 1.0 - momentum)
    for mine, theirs in zip(key.buffers(), query.buffers(), strict=True):
        mine.copy_(theirs)
