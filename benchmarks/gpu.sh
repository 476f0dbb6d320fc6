#!/bin/sh
# All measurements of training on one GPU, in ten minutes: see benchmarks/gpu.py. PYTHON chooses the interpreter.
set -eu
cd "$(dirname "$0")/.."
PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" benchmarks/gpu.py "$@"
