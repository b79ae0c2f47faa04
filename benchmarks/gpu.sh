#!/bin/sh
# The table of a GPU in a stated time: benchmarks/gpu.py --help
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu.py" "$@"
