#!/usr/bin/env bash
# Everything that CI checks; pytest comes last. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/environment.sh
ruff check .
ruff format --check .
mypy
lint-imports --no-logo
python -m pytest -n auto "$@"
