"""Data that are drawn, not stored: textures for few-shot, scenes for universal and moving shapes for video systems."""

from __future__ import annotations

from pathlib import Path

from fssops.data import generated_scenes, generated_textures, generated_videos
from fssops.data.generated_scenes import GeneratedScenes
from fssops.data.generated_textures import SPLITS, GeneratedTextures
from fssops.data.generated_videos import GeneratedVideos
from fssops.data.layout import DataTruth, Layout, few_shot_view
from fssops.truth import Classes


def _recognise(root: Path) -> str:
    return "drawn, without files"


def _splits(root: Path) -> list[str]:
    return list(SPLITS)


def _classes(truth: DataTruth) -> Classes:
    if truth == "video":
        return generated_videos.CLASSES
    return generated_textures.CLASSES if truth == "few-shot" else generated_scenes.CLASSES


LAYOUTS = (
    Layout(
        name="generated",
        files="drawn, no files",
        readers={
            "few-shot": few_shot_view(GeneratedTextures),
            "panoptic": GeneratedScenes,
            "semantic": GeneratedScenes,
            "instance": GeneratedScenes,
        },
        recognise=_recognise,
        splits=_splits,
        classes=_classes,
        has_files=False,
    ),
    Layout(
        name="generated_videos",
        files="drawn, no files",
        readers={"video": GeneratedVideos},
        recognise=_recognise,
        splits=_splits,
        classes=_classes,
        has_files=False,
    ),
)
