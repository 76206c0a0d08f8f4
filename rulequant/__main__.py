"""`python -m rulequant`, the same as the command."""

from __future__ import annotations

from rulequant.cli.main import main

if __name__ == "__main__":
    main()
