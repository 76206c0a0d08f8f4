"""Diagnostics and plans as text, JSON, GitHub annotations, SARIF and HTML: data in, text out, nothing is decided."""

from __future__ import annotations

__all__: list[str] = []
