"""Settings of the whole suite."""

import os
import tempfile
from pathlib import Path

import torch

# The tensors here are tiny. On a busy machine, torch's threads wait for one another ten times longer than they work.
torch.set_num_threads(1)

# tests/test_keras.py runs the other one too.
os.environ.setdefault("KERAS_BACKEND", "torch")

# What one process has compiled, the others need not: JAX compiles much longer here than it computes.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"polylosses-jax-{os.getuid()}"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
