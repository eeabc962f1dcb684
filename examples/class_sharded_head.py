"""Many classes on many devices: each device has some of the classes, and none ever has all logits.

    pip install 'polylosses[torch]'
    torchrun --nproc-per-node 2 examples/class_sharded_head.py

The last layer is sharded by classes, its logits stay sharded (a DTensor), and ``loss_parallel`` computes cross-entropy
in place. PolyLoss is computed from its result, one number for each row.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import ColwiseParallel, loss_parallel, parallelize_module

from polylosses.torch import PolyCrossEntropyLoss


def main() -> float:
    """Trains on points around 64 centers, prints the loss before and after, and returns the latter."""
    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (dist.get_world_size(),))
    torch.manual_seed(0)  # the same model and data in every process
    centers, y = torch.randn(64, 16), torch.arange(1024) % 64
    x = centers[y] + 0.1 * torch.randn(1024, 16)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 64))
    parallelize_module(model, mesh, {"2": ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)})
    criterion = PolyCrossEntropyLoss(epsilon=1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        with loss_parallel():
            loss = criterion(model(x), y)
            loss.backward()
        optimizer.step()
        losses.append(loss.full_tensor().item())
    if dist.get_rank() == 0:
        print(f"loss: {losses[0]:.3f} before training, {losses[-1]:.3f} after, on {dist.get_world_size()} processes")
    return losses[-1]


if __name__ == "__main__":
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    main()
    dist.destroy_process_group()
