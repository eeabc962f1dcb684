"""MONAI: image segmentation with some unlabelled pixels, which are ignored.

pip install 'polylosses[torch]' monai
python examples/monai_segmentation.py
"""

import numpy as np
import torch
from monai.data import DataLoader, Dataset, create_test_image_2d
from monai.networks.nets import UNet
from monai.transforms import Compose, EnsureTyped, RandFlipd
from monai.utils import set_determinism
from torch import Tensor

from polylosses.torch import PolyCrossEntropyLoss

UNKNOWN = 255


def make_data(images: int = 24) -> list[dict[str, object]]:
    """Discs of two classes on a noisy background. The border of the image is not labelled."""
    rows = []
    for seed in range(images):
        image, label = create_test_image_2d(
            32,
            32,
            num_objs=4,
            rad_max=8,
            rad_min=4,
            num_seg_classes=2,
            channel_dim=0,
            random_state=np.random.RandomState(seed),  # MONAI needs a RandomState
        )
        label = label.astype("int64")
        label[:, :2] = label[:, -2:] = label[:, :, :2] = label[:, :, -2:] = UNKNOWN
        rows.append({"image": image, "label": label})
    return rows


def main() -> float:
    """Trains a U-Net, prints the accuracy on held-out images for every class, and returns the lowest."""
    set_determinism(0)
    transform = Compose([RandFlipd(["image", "label"], prob=0.5, spatial_axis=0), EnsureTyped(["image", "label"])])
    loader = DataLoader(Dataset(make_data()[:-8], transform), batch_size=4, shuffle=True)
    model = UNet(spatial_dims=2, in_channels=1, out_channels=3, channels=(8, 16), strides=(2,))
    criterion = PolyCrossEntropyLoss(ignore_index=UNKNOWN, epsilon=1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for _ in range(20):
        for batch in loader:
            # MONAI's labels have a channel axis, (N, 1, H, W); torch's class indices have none.
            loss = criterion(model(batch["image"]), batch["label"].squeeze(1).long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    held_out = next(iter(DataLoader(Dataset(make_data()[-8:], EnsureTyped(["image", "label"])), batch_size=8)))
    label: Tensor = held_out["label"].squeeze(1)
    with torch.no_grad():
        right = model(held_out["image"]).argmax(1) == label
    accuracies = [right[label == kind].float().mean().item() for kind in (0, 1, 2)]
    print("pixels right in held-out images: ground {:.3f}, discs {:.3f} and {:.3f}".format(*accuracies))
    return min(accuracies)


if __name__ == "__main__":
    main()
