"""What all tests share: no network."""

from __future__ import annotations

import os

# Read when huggingface_hub is imported, so before any test module is: a test that would reach for the Hub fails at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
