"""Settings of the whole suite."""

import torch

# The tensors here are tiny. On a busy machine, torch's threads wait for one another ten times longer than they work.
torch.set_num_threads(1)
