"""Networks whose tangent kernels are timed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    """For 3 x 32 x 32 images: a 3 x 3 stem and no pooling before the stages; P = 11.2e6."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()
        )
        widths = (64, 64, 128, 256, 512)
        self.stages = nn.Sequential(
            *(
                nn.Sequential(Block(a, b, 1 if a == b else 2), Block(b, b, 1))
                for a, b in pairwise(widths)
            )
        )
        self.head = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


class WideBlock(nn.Module):
    """Normalisation before convolution; the first normalisation also feeds the shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        x = x if self.shortcut is None else self.shortcut(y)
        return x + self.conv2(F.relu(self.bn2(self.conv1(y))))


class WideResNet(nn.Module):
    """WideResNet-28-10 (Zagoruyko, Komodakis 2016) for 3 x 32 x 32 images; P = 36.5e6."""

    def __init__(self, depth: int = 28, width: int = 10, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        widths = (16, 16 * width, 32 * width, 64 * width)
        self.stages = nn.Sequential(
            *(
                nn.Sequential(
                    WideBlock(a, b, 1 if a == 16 else 2),
                    *(WideBlock(b, b, 1) for _ in range((depth - 4) // 6 - 1)),
                )
                for a, b in pairwise(widths)
            )
        )
        self.norm, self.head = nn.BatchNorm2d(widths[-1]), nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.stages(self.stem(x)))).mean((2, 3)))


class VisionTransformer(nn.Module):
    """Small ViT for 3 x 32 x 32 images: patches of 4, width 192, 9 layers, class token; P = 4e6."""

    def __init__(
        self, width: int = 192, layers: int = 9, heads: int = 6, classes: int = 10
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.position = nn.Parameter(torch.randn(1, 65, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(len(x), -1, -1), y], 1) + self.position
        return self.head(self.norm(self.encoder(y)[:, 0]))


class TextTransformer(nn.Module):
    """Encoder of 128 tokens of a vocabulary of 10 000, width 256, 4 layers, mean; P = 5.8e6."""

    def __init__(self, width: int = 256, layers: int = 4, heads: int = 4, classes: int = 4) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(10_000, width), nn.Embedding(128, width)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.encoder(self.words(tokens) + self.places(places)).mean(1))


def resnet18() -> ResNet18:
    torch.manual_seed(0)
    return ResNet18().eval()


def images(n: int) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def tokens(n: int) -> Tensor:
    return torch.randint(0, 10_000, (n, 128), generator=torch.Generator().manual_seed(1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "resnet18": (ResNet18, images),
    "wide_resnet": (WideResNet, images),
    "vit": (VisionTransformer, images),
    "text": (TextTransformer, tokens),
}
"""Name -> what makes the network, and n points for it."""


def make(name: str, n: int) -> tuple[nn.Module, Tensor]:
    """Return a network in eval mode with fixed weights, and n points for it."""
    torch.manual_seed(0)
    network, points = NETWORKS[name]
    return network().eval(), points(n)
