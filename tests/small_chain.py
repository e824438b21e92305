"""A small chain of convolutions, with images and labels for it: what tests train, change and save after pruning."""

import torch
from torch import nn

WIDTH, SHAPE = 8, (3, 11, 11)
METHODS = {"l2-gkp": {"groups": 4}, "l2": {"tolerance": 0.9}}  # with the options that suit it
X, Y = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4


class Net(nn.Module):
    """A stem, two convolutions with a BatchNorm between them, and a classifier."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.stem, self.a, self.b = nn.Conv2d(3, WIDTH, 3), nn.Conv2d(WIDTH, WIDTH, 3), nn.Conv2d(WIDTH, WIDTH, 3)
        self.norm, self.fc = nn.BatchNorm2d(WIDTH), nn.Linear(WIDTH, 4)

    def features(self, x):
        return self.b(self.norm(self.a(self.stem(x).relu())).relu()).relu()

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))
