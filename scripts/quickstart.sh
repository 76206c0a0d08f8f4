#!/usr/bin/env bash
# The main job on real weights: quantize all-MiniLM-L6-v2 by two rule files, and say how close the embeddings stay.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/environment.sh
exec python examples/minilm/quickstart.py "$@"
