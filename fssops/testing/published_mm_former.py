"""MM-Former written out in plain PyTorch as its published code composes it, for tests and benchmarks to compare with.

It takes the weights from one of our models and does nothing clever: every kernel runs as a product of two convolutions
and a scaling, normalisation is unfolded, attention forms its weights, deformable attention samples with
``grid_sample``, masks of all queries are formed after every layer, and prototypes are pooled from broadcast products.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fssops.models.layers.convolution import ConvNorm
from fssops.models.layers.position_encoding import sine_position_encoding
from fssops.models.layers.singular_values import decomposed
from fssops.models.mm_former import LEVELS, MMFormer
from fssops.reference.ms_deform_attn import ms_deform_attn_fused


def _attended(attention: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """``nn.MultiheadAttention`` as it is called without options, which forms the weights; tokens first."""
    found, _ = F.multi_head_attention_forward(
        query,
        key,
        value,
        attention.channels,
        attention.heads,
        attention.in_proj_weight,
        attention.in_proj_bias,
        None,
        None,
        False,
        0.0,
        attention.out_proj.weight,
        attention.out_proj.bias,
        training=False,
        attn_mask=mask,
    )
    return found


def _places(like: Tensor) -> Tensor:
    """Position encoding of features [B, C, h, w], of their shape."""
    batch, channels, height, width = (int(n) for n in like.shape)
    encoding = sine_position_encoding(height, width, channels)
    return encoding.t().reshape(1, channels, height, width).expand(batch, -1, -1, -1)


def _bilinear(x: Tensor, size: Any, corners: bool = False) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=corners)


class PublishedMMFormer(nn.Module):
    """The published forward pass in evaluation.

    Args:
        model: whose weights are shared; the factors of its kernels are made here.
        factored: run the kernels as products, as published.
    """

    def __init__(self, model: MMFormer, *, factored: bool = True) -> None:
        super().__init__()
        self.model = model
        self.factors: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        if factored:
            for module in model.backbone.modules():
                if isinstance(module, ConvNorm):
                    self.factors[id(module)] = decomposed(module.weight)

    def drop_plain_kernels(self) -> None:
        """Free the kernels whose factors are used; our model computes nothing any more. For measuring memory."""
        for module in self.model.backbone.modules():
            if id(module) in self.factors and isinstance(module, ConvNorm):
                module.weight.data = module.weight.data.new_empty(0)

    @torch.no_grad()
    def forward(self, image: Tensor, supports: Tensor, labels: Tensor) -> Tensor:
        """Background and foreground [B, 2, H, W].

        Args:
            image: [B, 3, H, W] query images, sides multiples of 32.
            supports: [B, K, 3, H, W].
            labels: [B, K, H, W] float, 1 where the object is.
        """
        maps = self._backbone(image)
        masks = self.proposals(maps)
        shots = [self._backbone(supports[:, k]) for k in range(supports.shape[1])]
        query, places = [], []
        for name, projection in zip(LEVELS, self.model.projections, strict=True):
            query.append(projection(self._gated(maps[name])))
            places.append(_places(query[-1]))
        of_query: Any = 0
        of_support: Any = 0
        for k, features in enumerate(shots):
            label = labels[:, k, None]
            pooled_query, pooled_support = [], []
            for level, (name, projection) in enumerate(zip(LEVELS, self.model.projections, strict=True)):
                support = projection(self._gated(features[name]))
                soft = _bilinear(label, support.shape[2:])
                place = _places(support) * soft
                aligned = self._aligned(
                    self.model.cross_alignment[level], query[level], support * soft, places[level], place
                )
                pooled_query.append(self._query_prototypes(aligned[0], masks))
                pooled_support.append(self._support_prototype(aligned[1], label))
            of_query = of_query + torch.cat(pooled_query, 1).transpose(1, 2)
            of_support = of_support + torch.cat(pooled_support, 1).transpose(1, 2)
        of_query, of_support = of_query / len(shots), of_support / len(shots)
        similarity = F.cosine_similarity(of_query, of_support.repeat(1, masks.shape[1], 1), dim=2)[:, None]
        first, second = self.model.merge.layers
        weights = second(F.relu(first(similarity)))[:, 0]
        full = _bilinear(masks, image.shape[2:])
        foreground = torch.einsum("bq,bqhw->bhw", weights, full)[:, None]
        return torch.cat([1 - foreground, foreground], 1)

    # -- backbone -------------------------------------------------------------------------------------------------

    def _convolved(self, layer: ConvNorm, x: Tensor) -> Tensor:
        factors = self.factors.get(id(layer))
        if factors is None:
            x = layer.raw(x)
        else:
            left, values, right = factors
            x = F.conv2d(x, right, None, layer.stride, layer.padding, layer.dilation)
            x = F.conv2d(x.mul(values[:, None, None]), left[:, :, None, None])
        norm: Any = layer.norm
        x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
        return F.relu(x) if layer.activation else x

    def _backbone(self, images: Tensor) -> dict[str, Tensor]:
        backbone: Any = self.model.backbone
        x = images
        for layer in (backbone.stem.conv1, backbone.stem.conv2, backbone.stem.conv3):
            x = self._convolved(layer, x)
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        maps = {}
        for name in ("res2", "res3", "res4", "res5"):
            for block in backbone.get_submodule(name):
                out = self._convolved(block.conv2, self._convolved(block.conv1, x))
                out = self._convolved(block.conv3, out) if hasattr(block, "conv3") else out
                x = F.relu(out + (x if block.shortcut is None else self._convolved(block.shortcut, x)))
            maps[name] = x
        return maps

    # -- segmenter ------------------------------------------------------------------------------------------------

    def proposals(self, maps: dict[str, Tensor]) -> Tensor:
        """Probabilities [B, N, h, w] at stride 4."""
        segmenter = self.model.segmenter
        if segmenter.config.levels == "pyramid":
            height, width = maps["res3"].shape[2:]
            small = {
                "res4": _bilinear(maps["res4"].clone(), (height // 2, width // 2), corners=True),
                "res5": _bilinear(maps["res5"].clone(), (height // 4, width // 4), corners=True),
            }
            maps = {**maps, **small}
        features, memory = self._pixel_decoded(maps)
        return self._decoded(features, memory).sigmoid()

    def _pixel_decoded(self, maps: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        decoder: Any = self.model.segmenter.pixel_decoder
        levels = []
        for name, layer in zip(("res5", "res4", "res3"), decoder.input_proj, strict=True):
            levels.append(layer.norm(layer.raw(maps[name])))
        sizes = [(int(x.shape[2]), int(x.shape[3])) for x in levels]
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in levels], 1)
        positions = [
            _places(x).flatten(2).transpose(1, 2) + embedding
            for x, embedding in zip(levels, decoder.level_embed, strict=True)
        ]
        position = torch.cat(positions, 1)
        grids = []
        for height, width in sizes:
            y, x = torch.meshgrid(
                (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
            )
            grids.append(torch.stack([x.flatten(), y.flatten()], 1))
        points = torch.cat(grids)[None, :, None].expand(len(tokens), -1, len(sizes), -1)
        for layer in decoder.encoder:
            attention = layer.self_attn
            query = tokens + position
            shape = (*query.shape[:2], attention.heads)
            offsets = attention.sampling_offsets(query).view(*shape, attention.levels, attention.points, 2)
            weights = attention.attention_weights(query).view(*shape, -1)
            weights = weights.view(*shape, attention.levels, attention.points)
            value = attention.value_proj(tokens).view(*shape[:2], attention.heads, -1)
            sampled = ms_deform_attn_fused(value, sizes, points, offsets, weights)
            tokens = layer.norm1(tokens + attention.output_proj(sampled))
            ffn = layer.ffn
            tokens = layer.norm2(tokens + ffn.linear2(F.relu(ffn.linear1(tokens))))
        split = tokens.split([height * width for height, width in sizes], 1)
        memory = [x.transpose(1, 2).reshape(len(x), -1, *size) for x, size in zip(split, sizes, strict=True)]
        y = decoder.adapter_1.norm(decoder.adapter_1.raw(maps["res2"]))
        y = y + _bilinear(memory[-1], y.shape[2:])
        y = F.relu(decoder.layer_1.norm(decoder.layer_1.raw(y)))
        return decoder.mask_features(y), memory

    def _decoded(self, features: Tensor, memory: list[Tensor]) -> Tensor:
        decoder: Any = self.model.segmenter.transformer_decoder
        batch = len(features)
        sources, positions = [], []
        for level, x in enumerate(memory):
            positions.append(_places(x).flatten(2).permute(2, 0, 1))
            sources.append((x.flatten(2) + decoder.level_embed.weight[level][None, :, None]).permute(2, 0, 1))
        place = decoder.query_embed.weight[:, None].repeat(1, batch, 1)
        tokens = decoder.query_feat.weight[:, None].repeat(1, batch, 1)

        def predicted(tokens: Tensor, size: Any) -> tuple[Tensor, Tensor]:
            state = decoder.decoder_norm(tokens).transpose(0, 1)
            for number, layer in enumerate(decoder.mask_embed.layers):
                state = layer(state) if number == len(decoder.mask_embed.layers) - 1 else F.relu(layer(state))
            logits = torch.einsum("bqc,bchw->bqhw", state, features)
            blocked = _bilinear(logits, size).sigmoid().flatten(2)
            heads = decoder.layers[0].cross_attn.heads
            return logits, (blocked[:, None].repeat(1, heads, 1, 1).flatten(0, 1) < 0.5)

        logits, blocked = predicted(tokens, memory[0].shape[2:])
        for index, layer in enumerate(decoder.layers):
            level = index % len(memory)
            blocked[blocked.sum(-1) == blocked.shape[-1]] = False
            source = sources[level]
            found = _attended(layer.cross_attn, tokens + place, source + positions[level], source, blocked)
            tokens = layer.cross_norm(tokens + found)
            tokens = layer.self_norm(tokens + _attended(layer.self_attn, tokens + place, tokens + place, tokens))
            tokens = layer.ffn_norm(tokens + layer.ffn.linear2(F.relu(layer.ffn.linear1(tokens))))
            logits, blocked = predicted(tokens, memory[(index + 1) % len(memory)].shape[2:])
        return logits

    # -- matching -------------------------------------------------------------------------------------------------

    @staticmethod
    def _gated(x: Tensor) -> Tensor:
        rows = x.flatten(2)
        weights = rows.mean(1, keepdim=True).softmax(2)
        gate = torch.matmul(rows, weights.transpose(1, 2)).sigmoid()[..., None]
        return x * gate

    def _aligned(
        self, block: Any, query: Tensor, support: Tensor, place: Tensor, other: Tensor
    ) -> tuple[Tensor, Tensor]:
        side = self.model.config.short_side

        def rows(x: Tensor) -> Tensor:
            return x.flatten(2).permute(2, 0, 1)

        def short(x: Tensor) -> Tensor:
            height, width = x.shape[2:]
            shorter = min(height, width)
            return rows(_bilinear(x, (height * side // shorter, width * side // shorter)))

        def through(tokens: Tensor, places: Tensor, keys: Tensor, key_places: Tensor) -> Tensor:
            for layer in block.layers:
                found = _attended(layer.attn, tokens + places, keys + key_places, keys)
                tokens = layer.attn_norm(tokens + found)
                tokens = layer.ffn_norm(tokens + layer.ffn.linear2(F.relu(layer.ffn.linear1(tokens))))
            return tokens

        first = through(rows(query), rows(place), short(support), short(other))
        second = through(rows(support), rows(other), short(query), short(place))
        return first.permute(1, 2, 0).reshape(query.shape), second.permute(1, 2, 0).reshape(support.shape)

    @staticmethod
    def _query_prototypes(features: Tensor, masks: Tensor) -> Tensor:
        masks = _bilinear(masks, features.shape[2:], corners=True)
        product = features.unsqueeze(2) * masks.unsqueeze(1)
        return product.sum((3, 4)) / masks.sum((2, 3)).unsqueeze(1)

    @staticmethod
    def _support_prototype(features: Tensor, label: Tensor) -> Tensor:
        label = _bilinear(label, features.shape[2:], corners=True)
        return ((features * label).sum((2, 3)) / (label.sum((2, 3)) + 1e-7)).unsqueeze(-1)
