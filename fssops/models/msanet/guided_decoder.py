"""The trained part of MSANet: embeddings, channel attention, and the decoder of BAM's meta learner.

Source: Iqbal et al., "MSANet", 2022, sections 3.3 and 3.4; the decoder is that of Lang et al., BAM, CVPR 2022.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fssops.models.layers.convolution import ConvNorm
from fssops.models.layers.derived import Conv2d


class Embedding(nn.Module):
    """1x1 convolution of two feature maps as if concatenated (the concatenation is not formed), ReLU, dropout.

    Args:
        high: channels of the first map.
        low: channels of the second.
        channels: of the result.
        dropout: probability that a channel is dropped.
    """

    def __init__(self, high: int, low: int, channels: int, dropout: float) -> None:
        super().__init__()
        self.high = high
        self.convolution = nn.Conv2d(high + low, channels, 1, bias=False)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        """[B, channels, h, w] of maps of one size."""
        weight = self.convolution.weight
        x = F.conv2d(high, weight[:, : self.high]) + F.conv2d(low, weight[:, self.high :])
        embedded: Tensor = self.dropout(F.relu_(x))
        return embedded


class ChannelGate(nn.Module):
    """A factor in (0, 1) for every channel, from the mean of the masked features over all positions.

    Args:
        channels: of the features.
        dropout: probability.
        dropout_on: "logits" as published, between the last convolution and the sigmoid, where a dropped channel gets
            the factor 0.5; or "hidden", after the ReLU.
    """

    def __init__(self, channels: int, dropout: float, dropout_on: str) -> None:
        super().__init__()
        self.squeeze = Conv2d(channels, channels, 1)
        self.expand = Conv2d(channels, channels, 1)
        self.dropout = nn.Dropout(dropout)
        self.dropout_on = dropout_on

    def forward(self, pooled: Tensor) -> Tensor:
        """[B, C, 1, 1] of pooled features [B, C, 1, 1]."""
        hidden = F.relu(self.squeeze(pooled))
        if self.dropout_on == "hidden":
            return torch.sigmoid(self.expand(self.dropout(hidden)))
        return torch.sigmoid(self.dropout(self.expand(hidden)))


class ASPP(nn.Module):
    """Global pooling, a 1x1 and three dilated 3x3 convolutions side by side, each with bias and ReLU."""

    def __init__(self, channels: int, dilations: tuple[int, ...] = (6, 12, 18)) -> None:
        super().__init__()
        self.pooled = ConvNorm(channels, channels, 1, activation=True)
        self.branches = nn.ModuleList(
            [ConvNorm(channels, channels, 1, activation=True)]
            + [ConvNorm(channels, channels, 3, dilation=rate, activation=True) for rate in dilations]
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """[B, 5 C, h, w] of [B, C, h, w]."""
        pooled = self.pooled(x.mean((-2, -1), keepdim=True)).expand_as(x)
        return torch.cat([pooled, *(branch(x) for branch in self.branches)], dim=1)


class GuidedDecoder(nn.Module):
    """Query features and what the supports say about them, to logits of background and foreground.

    Args:
        channels: C of query, prototype and attention.
        similarity_channels: of the reduced similarity maps.
    """

    def __init__(self, channels: int, similarity_channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.merge = nn.Conv2d(3 * channels + similarity_channels + 1, channels, 1, bias=False)
        self.aspp = ASPP(channels)
        self.reduce = ConvNorm(5 * channels, channels, 1, bias=False, activation=True)
        self.residual1 = ConvNorm(channels, channels, 3, bias=False, activation=True)
        self.residual2 = ConvNorm(channels, channels, 3, bias=False, activation=True)
        self.convolution = ConvNorm(channels, channels, 3, bias=False, activation=True)
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = Conv2d(channels, 2, 1)

    def merged(self, query: Tensor, prototype: Tensor, similarity: Tensor, prior: Tensor, attention: Tensor) -> Tensor:
        """1x1 convolution of everything as if concatenated, and ReLU; the prototype is the same at every position.

        Args:
            query: [R, C, h, w].
            prototype: [R, C].
            similarity: [R, S, h, w].
            prior: [R, 1, h, w].
            attention: [R, C, h, w].

        Returns:
            [R, C, h, w].
        """
        weight, c = self.merge.weight, self.channels
        maps = torch.cat([query, similarity, prior, attention], dim=1)
        constant = F.linear(prototype, weight[:, c : 2 * c, 0, 0])
        x = F.conv2d(maps, torch.cat([weight[:, :c], weight[:, 2 * c :]], dim=1)) + constant[:, :, None, None]
        return F.relu_(x)

    def forward(self, merged: Tensor) -> Tensor:
        """Logits [R, 2, h, w] of the result of :meth:`merged`."""
        x = self.reduce(self.aspp(merged))
        x = x + self.residual2(self.residual1(x))
        logits: Tensor = self.classifier(self.dropout(self.convolution(x)))
        return logits


class ShotScorer(nn.Module):
    """Weights of K shots from how far each one's scene is from the query's.

    Args:
        shots: K.
        hidden: width of the layer between; 0 is one linear map, at first the mean.
        unsort: give every shot the weight that was found for it. As published, the weight of the i-th nearest goes to
            the i-th of the list.
    """

    def __init__(self, shots: int, hidden: int, *, unsort: bool) -> None:
        super().__init__()
        self.unsort = unsort
        if hidden:
            self.layers = nn.Sequential(nn.Conv2d(shots, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, shots, 1))
        else:
            self.layers = nn.Sequential(nn.Conv2d(shots, shots, 1, bias=False))
            nn.init.constant_(self.layers[0].weight, 1 / shots)  # type: ignore[arg-type]

    def forward(self, distances: Tensor) -> Tensor:
        """[R, K], sum 1, of scene distances [R, K]."""
        nearest = distances.sort(dim=1)
        with torch.autocast(distances.device.type, enabled=False):
            weights: Tensor = self.layers(nearest.values[..., None, None])[..., 0, 0].softmax(1)
        return weights.gather(1, nearest.indices.argsort(1)) if self.unsort else weights
