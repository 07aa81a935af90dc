"""MSANet written out in plain PyTorch as its published code composes it, for tests and benchmarks to compare with.

It takes the weights from one of our models and does nothing clever: unfolded normalisation, concatenations, a loop over
shots, layers and samples, correlation by matrix products. Square images only, as published.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fssops.models.backbones.resnet import ResNet
from fssops.models.layers.convolution import ConvNorm
from fssops.models.msanet import MSANet


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def _convolved(layer: ConvNorm, x: Tensor) -> Tensor:
    """Convolution, normalisation and ReLU as three passes."""
    x = layer.raw(x)
    norm: Any = layer.norm
    if norm is not None:
        x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
    return F.relu(x) if layer.activation else x


def _gram(features: Tensor) -> Tensor:
    rows = features.flatten(2)
    norm = rows.norm(2, 2, True)
    return torch.bmm(rows, rows.transpose(1, 2)) / (torch.bmm(norm, norm.transpose(1, 2)) + 1e-7)


class PublishedMSANet(nn.Module):
    """The published forward pass in evaluation.

    Args:
        model: whose weights are shared.
    """

    def __init__(self, model: MSANet) -> None:
        super().__init__()
        self.model = model

    @torch.no_grad()
    def forward(self, x: Tensor, s_x: Tensor, s_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The ensemble's, the meta learner's and the base learner's maps.

        Args:
            x: [B, 3, S, S] query images.
            s_x: [B, K, 3, S, S] support images.
            s_y: [B, K, S, S], 1 where the object is.
        """
        model, shots, size = self.model, s_x.shape[1], (x.shape[-2], x.shape[-1])
        query_taps, query_layers = self._extract(x)
        query = self._embedded(query_layers, model.query_embedding)
        prototypes, priors, distances, correlations, attention = [], [], [], [], torch.zeros(())
        for k in range(shots):
            mask = (s_y[:, k] == 1).float()[:, None]
            taps, layers = self._extract(s_x[:, k])
            embedded = self._embedded(layers, model.support_embedding)
            small = _resized(mask, (embedded.shape[-2], embedded.shape[-1]))
            area = F.avg_pool2d(small, small.shape[-2:]) * small[0, 0].numel() + 0.0005
            prototypes.append(F.avg_pool2d(embedded * small, small.shape[-2:]) * small[0, 0].numel() / area)
            correlations.append(self._correlated(query_taps, self._masked(taps, mask)))
            inside = F.interpolate(mask, size=embedded.shape[-2:], mode="nearest")
            gate: Any = model.gate
            pooled = F.adaptive_avg_pool2d(inside * embedded, (1, 1))
            attention = attention + torch.sigmoid(gate.expand(F.relu(gate.squeeze(pooled)))) * embedded
            low = _gram(query_layers[2]) - _gram(layers[2])
            distances.append(low.norm(dim=(1, 2)) / low.shape[-1])
            priors.append(self._prior(query_layers, layers[4], mask))
        attention = attention / shots
        similarity = self._grouped(correlations)
        distance = torch.stack(distances, 1)
        weights = torch.ones_like(distance)
        if model.shot_scorer is not None:
            scorer: Any = model.shot_scorer
            weights = scorer.layers(distance.sort(1).values[..., None, None])[..., 0, 0].softmax(1)
        psi = (weights * distance).sum(1)[:, None, None, None]
        prior = (weights[..., None, None] * torch.cat(priors, 1)).sum(1, True)
        prototype = (weights[..., None, None, None] * torch.stack(prototypes, 1)).sum(1)
        reduced = _convolved(model.similarity, similarity)
        merged = torch.cat([query, prototype.expand_as(query), reduced, prior, attention], 1)
        meta = self._decoded(F.relu(model.decoder.merge(merged)))
        base = self._base(query_layers[4])
        share = meta.softmax(1)
        base_map = base.softmax(1)[:, 1:].sum(1, True)
        scene = psi.expand_as(share[:, :1])
        behind = model.scene_merge(torch.cat([share[:, :1], scene], 1))
        front = model.scene_merge(torch.cat([share[:, 1:], scene], 1))
        final = torch.cat([model.base_merge(torch.cat([behind, base_map], 1)), front], 1)
        return _resized(final, size), _resized(meta, size), _resized(base, size)

    def _extract(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Tapped features and the outputs of layer0..4."""
        backbone: Any = self.model.backbone
        return _resnet(backbone, images) if isinstance(backbone, ResNet) else _vgg(backbone, images)

    @staticmethod
    def _embedded(layers: list[Tensor], embedding: Any) -> Tensor:
        low = _resized(layers[2], (layers[3].shape[-2], layers[3].shape[-1]))
        return F.relu(embedding.convolution(torch.cat([layers[3], low], 1)))

    @staticmethod
    def _masked(taps: list[Tensor], mask: Tensor) -> list[list[Tensor]]:
        mask = _resized(mask, (2 * taps[0].shape[-2], 2 * taps[0].shape[-1]))
        kept: list[list[Tensor]] = []
        for features in taps:
            if mask.shape[-1] != features.shape[-1]:
                mask = _resized(mask, (features.shape[-2], features.shape[-1]))
            samples = []
            for sample, values in zip(features.flatten(2), mask.flatten(1), strict=True):
                columns = (sample * values)[:, values >= values[values > 0].mean()]
                samples.append(columns if values.sum() > 0 else sample.new_zeros(len(sample), 1))
            kept.append(samples)
        return kept

    def _correlated(self, queries: list[Tensor], supports: list[list[Tensor]]) -> list[Tensor]:
        maps = []
        for features, samples in zip(queries, supports, strict=True):
            columns = features.flatten(2)
            columns = columns / (columns.norm(dim=1, p=2, keepdim=True) + 1e-5)
            found = []
            for query, support in zip(columns, samples, strict=True):
                support = support / (support.norm(dim=0, p=2, keepdim=True) + 1e-5)
                found.append((query.t() @ support).clamp(min=0).mean(1))
            maps.append(torch.stack(found).view(len(features), 1, *features.shape[-2:]))
        # layer1 is tapped, but not compared.
        return maps[len(maps) - len(self.model.layer_names) :]

    def _grouped(self, shots: list[list[Tensor]]) -> Tensor:
        means = [sum(maps) / len(shots) for maps in zip(*shots, strict=True)]
        if self.model.config.backbone == "vgg16":
            size = (shots[0][3].shape[-2], shots[0][3].shape[-1])
            means[:3] = [_resized(found, size) for found in shots[-1][:3]]
        return torch.cat(means, 1)  # type: ignore[arg-type]

    @staticmethod
    def _prior(query_layers: list[Tensor], top: Tensor, mask: Tensor) -> Tensor:
        query = query_layers[4].flatten(2)
        support = (top * _resized(mask, (top.shape[-2], top.shape[-1]))).flatten(2).transpose(1, 2)
        lengths = torch.bmm(support.norm(2, 2, True), query.norm(2, 1, True))
        found = (torch.bmm(support, query) / (lengths + 1e-7)).max(1)[0]
        low, high = found.min(1, True)[0], found.max(1, True)[0]
        return ((found - low) / (high - low + 1e-7)).view(len(found), 1, *top.shape[-2:])

    def _decoded(self, merged: Tensor) -> Tensor:
        decoder = self.model.decoder
        pooled = _convolved(decoder.aspp.pooled, F.adaptive_avg_pool2d(merged, 1)).expand_as(merged)
        branches = [_convolved(branch, merged) for branch in decoder.aspp.branches]  # type: ignore[arg-type]
        x = _convolved(decoder.reduce, torch.cat([pooled, *branches], 1))
        x = x + _convolved(decoder.residual2, _convolved(decoder.residual1, x))
        logits: Tensor = decoder.classifier(_convolved(decoder.convolution, x))
        return logits

    def _base(self, top: Tensor) -> Tensor:
        head, size = self.model.base_learner.head, (top.shape[-2], top.shape[-1])
        maps = [top]
        for bins, layer in zip((1, 2, 3, 6), head.pyramid, strict=True):
            maps.append(_resized(_convolved(layer, F.adaptive_avg_pool2d(top, bins)), size))  # type: ignore[arg-type]
        logits: Tensor = head.classifier(_convolved(head.convolution, torch.cat(maps, 1)))
        return logits


def _resnet(backbone: ResNet, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    stem: Any = backbone.stem
    x = images
    for layer in (stem.conv1, stem.conv2, stem.conv3):
        x = _convolved(layer, x)
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    taps, layers = [], [x]
    for stage in ("res2", "res3", "res4", "res5"):
        blocks: Any = backbone.get_submodule(stage)
        for block in blocks:
            # A bottleneck's, or a basic block's, convolutions.
            out = _convolved(block.conv2, _convolved(block.conv1, x))
            out = _convolved(block.conv3, out) if hasattr(block, "conv3") else out
            out = out + (x if block.shortcut is None else _convolved(block.shortcut, x))
            taps.append(out)
            x = F.relu(out)
        layers.append(x)
        if stage == "res2":
            taps = taps[-1:]
    return taps, layers


def _vgg(backbone: Any, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    x, taps, layers = images, [], []
    for number in range(1, 6):
        for layer in backbone.get_submodule(f"stage{number}"):
            if number >= 4:
                taps.append(layer.raw(x))
            x = _convolved(layer, x)
        if number < 5:
            x = F.max_pool2d(x, 2, stride=2, ceil_mode=True)
        layers.append(x)
    return [*taps, x], layers
