"""Settings of the whole suite."""

import atexit
import os
import sys
import tempfile

# What pip has not compiled, the first process that imports it compiles for all: without, every process takes 25 s more.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

import torch  # noqa: E402

# The tensors here are tiny. On a busy machine, torch's threads wait for one another ten times longer than they work.
torch.set_num_threads(1)

# Triton's kernels run on the CPU.
os.environ.setdefault("TRITON_INTERPRET", "1")

# tests/test_keras.py runs the other one too.
os.environ.setdefault("KERAS_BACKEND", "torch")

# XLA compiles much longer here than the result runs.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

# What one process has compiled, the others need not: JAX compiles much longer here than it computes. The first process
# makes the folder, and those that it starts have its environment.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    folder = tempfile.TemporaryDirectory(prefix="polylosses-jax-")
    atexit.register(folder.cleanup)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
