"""Trains with NAMID in a plain PyTorch loop: python FILE, or torchrun --nproc-per-node 2 FILE."""

import os

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import raymi

workers = int(os.environ.get("WORLD_SIZE", "1"))
if workers > 1:
    dist.init_process_group("gloo")
digits = load_digits()
images = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1)
data = TensorDataset(images[:640], torch.tensor(digits.target[:640]))
sampler = DistributedSampler(data) if workers > 1 else None
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))
model = DistributedDataParallel(net) if workers > 1 else net
loss = raymi.NAMIDLoss(num_classes=10, image_size=8, hidden=64, base_width=16, depth=1)
sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for epoch in range(5):
    for x, y in DataLoader(data, 64 // workers, sampler=sampler, shuffle=sampler is None):
        x_adv = raymi.pgd(net, x, y, eps=0.1, alpha=0.03, steps=5)
        logits, logits_adv = model(torch.cat([x, x_adv])).chunk(2)
        loss.update(x, x_adv, logits.detach(), logits_adv.detach())
        sgd.zero_grad()
        loss(x, x_adv, logits, logits_adv, y).backward()
        sgd.step()
    values = {name: round(value.item(), 3) for name, value in loss.metrics.items()}
    print(
        f"epoch {epoch + 1}: loss {values['loss']}, MI gap in nats {values['loss_mi']}", flush=True
    )
if workers > 1:
    dist.destroy_process_group()
