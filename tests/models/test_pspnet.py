"""PSPNet, the base learner: its shortened head against the written-out one, training, and its checkpoints."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import fssops
from fssops.models.pspnet import BINS, PyramidHead
from fssops.structures import IGNORE, LabelMapBatch

SMALL = {"backbone": "resnet18", "backbone_width": 8, "head_channels": 16, "base_classes": 4}


def written_out(head: PyramidHead, features: torch.Tensor) -> torch.Tensor:
    """Pooled maps upsampled and concatenated, one convolution over all, as published."""
    size = features.shape[-2:]
    maps = [features]
    for bins, layer in zip(BINS, head.pyramid, strict=True):
        pooled = layer(F.adaptive_avg_pool2d(features, bins))
        maps.append(F.interpolate(pooled, size=size, mode="bilinear", align_corners=True))
    return head.classifier(head.dropout(head.convolution(torch.cat(maps, 1))))


@pytest.mark.parametrize("norm", ["batch", "frozen"])
@pytest.mark.parametrize("training", [True, False])
def test_the_head_equals_the_written_out_pyramid_with_its_gradients(norm: str, training: bool) -> None:
    torch.manual_seed(0)
    head = PyramidHead(16, 5, 12, norm, 0.0).double().train(training)  # type: ignore[arg-type]
    features = torch.randn(2, 16, 9, 11, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(2, 5, 9, 11, dtype=torch.float64)
    results, gradients = [], []
    for run in (head, lambda x: written_out(head, x)):
        features.grad = None
        head.zero_grad()
        out = run(features)
        (out * direction).sum().backward()
        results.append(out.detach())
        gradients.append([features.grad, *(p.grad for p in head.parameters())])
    torch.testing.assert_close(results[0], results[1])
    assert results[0].std() > 1e-2
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_logits_have_the_size_of_any_image_and_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    model = fssops.create_model("pspnet", **SMALL)
    images = torch.randn(4, 3, 40, 56)
    assert model(images).shape == (4, 5, 40, 56)
    labels = torch.zeros(4, 40, 56, dtype=torch.long)
    labels[:, 10:30, 20:40] = 2
    labels[:, :3] = IGNORE
    images[:, :, 10:30, 20:40] += 3
    batch = LabelMapBatch(images, labels)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model.losses(batch)["loss_base"]
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_ignored_pixels_do_not_count_and_without_any_other_the_loss_is_zero() -> None:
    torch.manual_seed(0)
    model = fssops.create_model("pspnet", **SMALL).eval()
    images, labels = torch.randn(1, 3, 32, 32), torch.full((1, 32, 32), IGNORE)
    assert model.losses(LabelMapBatch(images, labels))["loss_base"] == 0
    labels[0, :, :7] = 3
    expected = F.cross_entropy(model(images), labels, ignore_index=IGNORE)
    torch.testing.assert_close(model.losses(LabelMapBatch(images, labels))["loss_base"], expected)


@pytest.mark.parametrize("backbone", ["resnet50", "vgg16"])
def test_the_authors_base_checkpoint_fills_the_network_and_msanets_base_learner(backbone: str) -> None:
    options = {**SMALL, "backbone": backbone}
    model = fssops.create_model("pspnet", **options)
    state = {f"module.{key}": value for key, value in authors_names(model.state_dict(), backbone).items()}
    # The authors' file holds the backbone a second time.
    state.update({key.replace("module.layer", "module.encoder."): v for key, v in state.items() if ".layer" in key})
    fresh = fssops.create_model("pspnet", **options)
    report = fssops.load_weights(fresh, {"state_dict": state, "epoch": 3})
    assert report.complete
    assert report.layout.startswith("authors' base learner")
    assert all(torch.equal(value, fresh.state_dict()[key]) for key, value in model.state_dict().items())
    for source in (state, model.state_dict()):
        whole = fssops.create_model("msanet", **options, channels=16)
        report = fssops.load_weights(whole, source)
        assert report.target == "base_learner"
        assert report.complete
        assert torch.equal(whole.base_learner.head.classifier.weight, model.head.classifier.weight)
        assert report.untouched > 10


def authors_names(state: dict[str, torch.Tensor], backbone: str) -> dict[str, torch.Tensor]:
    """Our names as the authors' PSPNet has them, by hand."""
    named = {}
    for key, value in state.items():
        parts = key.split(".")
        norm = "norm" in parts
        rest = parts[-1]
        if key.startswith("head.pyramid."):
            name = f"ppm.features.{parts[2]}.{2 if norm else 1}.{rest}"
        elif key.startswith("head.convolution."):
            name = f"cls.{1 if norm else 0}.{rest}"
        elif key.startswith("head.classifier."):
            name = f"cls.4.{rest}"
        elif backbone == "vgg16":
            name = f"layer{int(parts[1][-1]) - 1}.{3 * int(parts[2]) + norm}.{rest}"
        elif parts[1] == "stem":
            name = f"layer0.{3 * (int(parts[2][-1]) - 1) + norm}.{rest}"
        elif parts[3] == "shortcut":
            name = f"layer{int(parts[1][-1]) - 1}.{parts[2]}.downsample.{int(norm)}.{rest}"
        else:
            name = f"layer{int(parts[1][-1]) - 1}.{parts[2]}.{'bn' if norm else 'conv'}{parts[3][-1]}.{rest}"
        named[name] = value
    return named


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="base_classes must be at least 1, got 0"):
        fssops.create_model("pspnet", base_classes=0)
    with pytest.raises(ValueError, match="must be at least 8 pixels a side, got 5 x 64"):
        fssops.create_model("pspnet", **SMALL)(torch.zeros(1, 3, 5, 64))


def test_training_on_one_image_is_refused_where_statistics_come_from_the_batch() -> None:
    image = torch.zeros(1, 3, 65, 65)
    with pytest.raises(ValueError, match="PSPNet: images must be at least 2 in training with norm 'batch', got 1"):
        fssops.create_model("pspnet", **SMALL).train()(image)
    assert fssops.create_model("pspnet", **SMALL, norm="frozen").train()(image).isfinite().all()
    assert fssops.create_model("pspnet", **SMALL).eval()(image).isfinite().all()
