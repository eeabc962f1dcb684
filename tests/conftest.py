"""Settings of the whole suite."""

import atexit
import os
import sys
import tempfile

# Write .pyc files: pip may not have compiled the packages, and without bytecode every process takes 25 s longer.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

import torch  # noqa: E402

# The tensors are tiny. On a busy machine, torch's threads wait for one another ten times longer than they compute.
torch.set_num_threads(1)

# Run the Triton kernels on the CPU.
os.environ.setdefault("TRITON_INTERPRET", "1")

# tests/test_keras.py runs itself on the other backends too.
os.environ.setdefault("KERAS_BACKEND", "torch")

# In these tests, XLA's compilation takes much longer than the compiled programs.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

# Share compiled programs between processes, since compilation takes most of JAX's time here. The first process creates
# the folder, and its child processes inherit the environment variable.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    folder = tempfile.TemporaryDirectory(prefix="polylosses-jax-")
    atexit.register(folder.cleanup)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
