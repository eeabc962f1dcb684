"""Settings of the whole suite."""

import os

import torch

# tests/test_keras.py runs the other one too.
os.environ.setdefault("KERAS_BACKEND", "torch")

# The tensors here are tiny. On a busy machine, torch's threads wait for one another ten times longer than they work.
torch.set_num_threads(1)
