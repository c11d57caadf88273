"""Small networks of many kinds, and the literal Jacobian their kernels are checked against."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def literal_jacobian(model: nn.Module, x, weights: Tensor) -> Tensor:
    """(N, R, P): gradient of weights_r . f(x_i), one point and output at a time, in eval mode."""
    flags = [(m, m.training) for m in model.modules()]
    model.eval()
    parameters = [p for p in model.parameters() if p.requires_grad]
    n = len(next(iter(x.values()))) if isinstance(x, dict) else len(x)
    rows = []
    for i in range(n):
        y = (
            model(**{k: v[i : i + 1] for k, v in x.items()})
            if isinstance(x, dict)
            else model(x[i : i + 1])
        )
        y = y.reshape(-1)
        for w in weights.to(y.dtype):
            grads = torch.autograd.grad(y @ w, parameters, retain_graph=True, allow_unused=True)
            rows.append(
                torch.cat(
                    [
                        (torch.zeros_like(p) if g is None else g.to_dense()).reshape(-1)
                        for g, p in zip(grads, parameters, strict=True)
                    ]
                )
            )
    for m, flag in flags:
        m.training = flag
    return torch.stack(rows).view(n, len(weights), -1)


def output_weights(kind: str | int, k: int) -> Tensor:
    if kind == "sum":
        return torch.full((1, k), 1 / math.sqrt(k), dtype=torch.float64)
    if kind == "full":
        return torch.eye(k, dtype=torch.float64)
    return torch.eye(k, dtype=torch.float64)[[0 if kind == "single" else kind]]


class ConvNet(nn.Module):
    """Strides, groups, dilation, padding modes and in-place activations."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(2, 6, 3, stride=2, padding=1, padding_mode="circular"),
            nn.ReLU(inplace=True),
            nn.Conv2d(6, 4, (2, 3), groups=2, padding="same", bias=False),
            nn.Tanh(),
            nn.Conv2d(4, 4, 3, dilation=2, padding=2, groups=4),
            nn.GELU(),
            nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1, groups=2),
            nn.Flatten(),
            nn.LazyLinear(3),
        )
        self.net(torch.zeros(1, 2, 7, 9))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Block(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c)
        self.conv2, self.bn2 = nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += x
        return F.relu_(y)


class ResNet(nn.Module):
    """Residual blocks, BatchNorm with statistics, in-place sums."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, padding=1)
        self.block1, self.block2 = Block(5), Block(5)
        self.head = nn.Linear(5, 4)
        for m in self.modules():
            if isinstance(m, nn.BatchNorm2d):
                nn.init.normal_(m.running_mean)
                nn.init.uniform_(m.running_var, 0.5, 2)
                nn.init.uniform_(m.weight, 0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block2(self.block1(self.stem(x))).mean((2, 3)))


class TextNet(nn.Module):
    """Embedding with padding, LayerNorm, a Linear on sequences used twice, a free parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6, padding_idx=0)
        self.position = nn.Parameter(0.3 * torch.randn(1, 5, 6))
        self.shared = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.position
        x = self.norm(x + torch.tanh(self.shared(x)))
        x = self.norm(x + torch.tanh(self.shared(x)))
        return self.head(x.mean(1))


class TiedText(nn.Module):
    """A bag of words whose decoder is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.hidden = nn.Linear(4, 4)
        self.decoder = nn.Linear(4, 7, bias=False)
        self.decoder.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decoder(torch.tanh(self.hidden(self.embedding(tokens))).sum(1))


class Attention(nn.Module):
    """A transformer layer (functional weights inside nn.MultiheadAttention) with a class token."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.embed = nn.Linear(3, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, batch_first=batch_first)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), 1, 8), self.embed(x)], 1)
        x = self.layer(x) if self.batch_first else self.layer(x.transpose(0, 1)).transpose(0, 1)
        return self.head(x[:, 0])


class Functional(nn.Module):
    """Weights used where no module hook can see them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.scale = nn.Parameter(torch.randn(5))
        self.second = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x)) * self.scale
        x = torch.tanh(F.linear(x, self.first.weight.T[:4, :4].repeat(1, 2)[:, :5], None))
        return self.second(F.pad(x, (0, 1)))


class Everything(nn.Module):
    """One of each normalisation and of each convolution dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv1d(2, 4, 3, padding=1, padding_mode="reflect")
        self.gn = nn.GroupNorm(2, 4, eps=0.1)
        self.t1 = nn.ConvTranspose1d(4, 3, 4, stride=2, padding=1)
        self.inorm = nn.InstanceNorm1d(3, eps=0.1, affine=True)
        self.prelu = nn.PReLU(3)
        self.c3 = nn.Conv3d(3, 2, (1, 2, 1), padding="valid")
        self.bn = nn.BatchNorm3d(2)
        self.t3 = nn.ConvTranspose3d(2, 2, (2, 1, 2), bias=False)
        self.rms = nn.RMSNorm(4, eps=0.1)
        self.bilinear = nn.Bilinear(4, 4, 2)
        nn.init.normal_(self.bn.running_mean)
        nn.init.uniform_(self.bn.running_var, 0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.gn(self.c1(x)))
        x = self.prelu(self.inorm(self.t1(x)))
        x = x.view(len(x), 3, 1, 2, -1)
        x = torch.tanh(self.bn(self.c3(x)))
        x = self.rms(torch.nn.functional.adaptive_avg_pool3d(self.t3(x), (1, 1, 4)).flatten(1, 3))
        return self.bilinear(x[:, 0], x[:, 1])


def networks() -> dict[str, tuple[nn.Module, Tensor | dict[str, Tensor]]]:
    """Name -> (float64 network in training mode, five points)."""
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    tokens = torch.randint(0, 7, (5, 5), generator=g)
    return {
        "mlp": (nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double(), randn(5, 4)),
        "conv": (ConvNet().double(), randn(5, 2, 7, 9)),
        "resnet": (ResNet().double(), randn(5, 3, 6, 6)),
        "text": (TextNet().double(), tokens),
        "tied": (TiedText().double(), tokens),
        "attention": (Attention().double(), randn(5, 4, 3)),
        "sequence_first": (Attention(False).double(), randn(5, 5, 3)),
        "functional": (Functional().double(), randn(5, 4)),
        "everything": (Everything().double(), randn(5, 2, 8)),
        "one_logit": (nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)).double(), randn(5, 4)),
        "dict": (
            WithMask().double(),
            {"x": randn(5, 4, 3), "mask": torch.rand(5, 4, generator=g) > 0.3},
        ),
    }


class WithMask(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.head((torch.tanh(self.embed(x)) * mask[..., None]).sum(1))
