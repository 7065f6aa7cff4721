"""`EdgeModule`: the device's half of `StreamSplitFramework`: a learner with the shared encoder, and what it sends."""

from __future__ import annotations
