"""What all tests share: no network."""

from __future__ import annotations

import os

# Before any test module imports huggingface_hub, which reads it once: a test that reaches for the Hub fails at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
