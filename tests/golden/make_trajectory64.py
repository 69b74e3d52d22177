"""Writes trajectory64.npz: the golden trajectory's twelve steps in float64. Needs PyTorch; run from the root as

python -m tests.golden.make_trajectory64
"""

from pathlib import Path

import numpy as np
import torch

from benchmarks.speed.pytorch import Net, make_step

HERE = Path(__file__).parent


def main() -> None:
    golden = np.load(HERE / "trajectory.npz")
    net = Net().double()
    initial = {name.removeprefix("init/"): torch.tensor(golden[name]) for name in golden if name.startswith("init/")}
    net.load_state_dict(initial, strict=False)  # without the batch counters
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=12)
    step = make_step(net, optimizer)
    figures = []
    for i in range(12):
        images = ((torch.tensor(golden["images"][i]).double() / 255 - 0.1307) / 0.3081)[:, None]
        figures.append([float(value) for value in step(images, torch.tensor(golden["labels"][i]).long())])
        if i < 11:
            scheduler.step()
    loss, grad_norm = np.array(figures).T
    final = {f"final/{k}": v.numpy() for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    np.savez_compressed(HERE / "trajectory64.npz", loss=loss, grad_norm=grad_norm, **final)


if __name__ == "__main__":
    main()
