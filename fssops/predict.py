"""``python -m fssops.predict``: segment images or videos, with fixed classes or from a few labelled images."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch import nn

import fssops
from fssops.command_line import Parser, run_verb
from fssops.data.images import SUFFIXES, read_image
from fssops.engine.checkpoints import write_text_atomically
from fssops.engine.progress import ProgressBar
from fssops.engine.settings import SettingsError, apply_overrides
from fssops.pictures import label_image, overlay_ways
from fssops.tasks.fewshot_settings import FewShotSettings
from fssops.tasks.frames import distinct_names, frames, require_decoder
from fssops.tasks.trained_models import load_for_use
from fssops.tasks.universal_settings import UniversalSettings
from fssops.tasks.video_settings import VideoSettings

_EXAMPLES = """\
examples of fixed classes (semantic, instance, panoptic):
  python -m fssops.predict --checkpoint runs/mask2former_camvid-20260101-120000 --query street/ --out out/
      label maps, COCO results and overlays with class names; a folder, images, or a video (extra fssops[video])
  python -m fssops.predict --checkpoint model_final.pkl --recipe mask2former_coco_panoptic_r50 --query a.jpg --out out/
      weights of any known layout, with the recipe that says which model and classes they are for

examples of video systems:
  python -m fssops.predict --checkpoint runs/mask2former_vis_generated-20260101-120000 --query clip.mp4 --out out/
      a video file (extra fssops[video]; animated GIF and WebP without it), a folder of frames, or several of either
  python -m fssops.predict --checkpoint runs/mine --query JPEGImages/ --set eval.window=20 --zip --out out/
      a folder of folders, each a video, at most 20 frames held at once; results.zip is for the evaluation servers

examples of few-shot systems:
  python -m fssops.predict --checkpoint runs/panet_generated-20260101-120000 \\
      --support cup1.jpg cup1_mask.png --support cup2.jpg cup2_mask.png --query photos/ --out out/
      two labelled images of one class; every image of a folder is segmented
  python -m fssops.predict --checkpoint runs/mine --support cat.jpg --box 40,25,310,280 --query *.jpg --out out/
      a box x0,y0,x1,y1 in pixels of the support image instead of a mask; several --box are one object each
  python -m fssops.predict --checkpoint runs/mine --support cat.jpg --scribble strokes.png --query dog.jpg --out out/
      a scribble: 0 background stroke, 255 unlabelled, any other value a stroke on the object
  python -m fssops.predict --checkpoint runs/mine --class cup --support a.jpg a.png \\
      --class plate --support b.jpg b.png --query table.jpg --out out/
      two classes at once; --class names those that follow, each class needs the same number of supports
  python -m fssops.predict --model panet --weights authors.pth --support a.jpg a.png --query b.jpg --out out/
      weights of any known layout instead of a run

systems of fixed classes leave semantic/NAME.png, panoptic/NAME.png with panoptic.json, instances.json, overlays/,
classes.json and summary.json. Video systems leave results.json in the submission format of YouTube-VIS, frames/VIDEO/
with each object in a colour that stays, VIDEO.webp or .mp4, classes.json and summary.json. Few-shot systems leave for
each query NAME: NAME_labels.png (palette; 0 background, n = class n), NAME_overlay.jpg, NAME_probability.png
(probability of the class, 0..255; of several classes NAME_probabilities.npz), and summary.json."""


@dataclass
class _Support:
    """One support image as given on the command line."""

    image: str
    way: str
    mask: str | None = None
    scribble: str | None = None
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)


class _SupportAction(argparse.Action):
    """Collects --class, --support, --box and --scribble in the order in which they come."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        supports: list[_Support] = list(getattr(namespace, "supports", None) or [])
        if option_string == "--class":
            namespace.way = values
        elif option_string == "--support":
            if len(values) > 2:
                parser.error(
                    f"--support takes an image and, unless --box or --scribble follows, its mask, got {values}"
                )
            supports.append(_Support(values[0], getattr(namespace, "way", "object"), *values[1:]))
        elif not supports:
            parser.error(f"{option_string} must follow the --support image that it marks")
        elif option_string == "--box":
            supports[-1].boxes.append(_box(parser, values))
        else:
            supports[-1].scribble = values
        namespace.supports = supports


def parser() -> Parser:
    """Build the argument parser."""
    arguments = Parser(
        "predict", "Segment images or videos: fixed classes, or new ones from a few labelled examples.", _EXAMPLES
    )
    model = arguments.add_argument_group("the model: a run, or a model's name with weights")
    model.add_argument("--checkpoint", type=Path, metavar="RUN|FILE", help="run folder or checkpoint of fssops.train")
    model.add_argument("--model", help="name of a few-shot model, see python -m fssops.models")
    model.add_argument("--recipe", help="for weights without settings: name of a recipe or a .toml file")
    model.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override a setting"
    )
    model.add_argument("--weights", type=Path, metavar="FILE", help="weights of any known layout, for --model")
    model.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="option of --model, e.g. backbone=resnet50"
    )
    support = arguments.add_argument_group("the support set; the order of these options matters")
    support.add_argument("--class", action=_SupportAction, metavar="NAME", help="name of the class of what follows")
    support.add_argument(
        "--support", action=_SupportAction, nargs="+", metavar="FILE", help="a labelled image and its mask"
    )
    support.add_argument(
        "--box", action=_SupportAction, metavar="X0,Y0,X1,Y1", help="marks the object in the support before it"
    )
    support.add_argument("--scribble", action=_SupportAction, metavar="FILE", help="marks the support before it")
    fixed = arguments.add_argument_group("systems of fixed classes")
    fixed.add_argument(
        "--task", action="append", choices=("semantic", "instance", "panoptic"), help="what to write; may be repeated"
    )
    fixed.add_argument("--score", type=_score, default=0.3, help="least score of an instance on overlays (default 0.3)")
    videos = arguments.add_argument_group("video systems")
    videos.add_argument(
        "--video",
        default="auto",
        choices=("auto", "mp4", "webp", "gif", "none"),
        help="kind of video that is made of the result (default: mp4 with the extra fssops[video], else webp)",
    )
    videos.add_argument("--rate", type=float, default=10.0, help="its frames a second (default 10)")
    videos.add_argument("--zip", action="store_true", help="write results.zip for the evaluation servers too")
    arguments.add_argument("--query", nargs="+", metavar="FILE|FOLDER", help="images (or a video) to segment")
    arguments.add_argument("--out", type=Path, metavar="FOLDER", help="where results are written")
    arguments.add_argument(
        "--size", type=_pixels, metavar="PIXELS", help="side at which images enter (default: as trained; --model: 417)"
    )
    arguments.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    arguments.add_argument("--no-probability", action="store_true", help="do not write probabilities")
    arguments.set_defaults(supports=None)
    return arguments


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code."""
    verb = parser()
    options = verb.parse_args(arguments)
    for name in ("query", "out"):
        if not getattr(options, name):
            verb.error(f"--{name} must be given")
    if (options.checkpoint is None) == (options.model is None):
        verb.error("give either --checkpoint or --model")
    if not options.supports:
        return _predict_fixed_classes(verb, options)
    _refuse(verb, options, "a few-shot system", "task", "score", "video", "rate", "zip")
    queries = find_queries(options.query)
    if options.out.resolve() in {path.parent.resolve() for path in queries}:
        raise SettingsError(f"--out: {options.out} must be another folder than that of the queries")
    model, size, fit = _model(options)
    predictor = fssops.FewShotPredictor(model.to(_device(options.device)), size=size, fit=fit)
    classes = _set_support(predictor, options.supports)
    options.out.mkdir(parents=True, exist_ok=True)
    names = distinct_names([path.stem for path in queries])
    records, failures = [], []
    with ProgressBar("predict", len(queries)) as bar:
        for path, name in zip(queries, names, strict=True):
            try:
                records.append(_predict_one(predictor, path, options.out / name, not options.no_probability))
            except (ValueError, OSError) as error:
                # One unreadable photo must not cost the other thousand.
                failures.append({"image": str(path), "error": str(error)})
                bar.say(f"left out {path}: {error}")
            bar.advance()
    summary = {
        "model": str(options.checkpoint or options.model),
        "size": list(size),
        "fit": fit,
        "classes": classes,
        "supports": [vars(support) for support in options.supports],
        "images": records,
        "failed": failures,
    }
    write_text_atomically(options.out / "summary.json", json.dumps(summary, indent=2) + "\n")
    print(f"{len(records)} images segmented into {options.out}/ (labels, overlays, summary.json)")
    if failures:
        print(f"{len(failures)} images could not be read, see summary.json")
    return 1 if failures else 0


def _refuse(verb: Parser, options: Any, system: str, *names: str) -> None:
    """Refuse options that would have no effect."""
    for name in names:
        if getattr(options, name, None) != verb.get_default(name):
            flag = "--class" if name == "way" else f"--{name.replace('_', '-')}"
            raise SettingsError(f"{flag}: {system} has no use for it, got {getattr(options, name)!r}")


def _predict_fixed_classes(verb: Parser, options: Any) -> int:
    """Predict without supports."""
    if options.checkpoint is None or options.weights is not None:
        verb.error("--support: give at least one labelled image (or, for fixed classes, --checkpoint and no --model)")
    settings, model, label = load_for_use(options.checkpoint, options.recipe, options.overrides)
    if isinstance(settings, VideoSettings):
        _refuse(verb, options, "a video system", "way", "no_probability")
        return _predict_videos(settings, model, label, options)
    queries = find_queries(options.query)
    if options.out.resolve() in {path.parent.resolve() for path in queries}:
        raise SettingsError(f"--out: {options.out} must be another folder than that of the queries")
    require_decoder(queries)
    if not isinstance(settings, UniversalSettings):
        verb.error(f"--support: {settings.model.name} needs at least one labelled image, got none")
    _refuse(verb, options, "a system of fixed classes", "way", "no_probability", "video", "rate", "zip")
    from fssops.tasks.universal import UniversalTask
    from fssops.tasks.universal_predict import Predictor, classes_for, predict

    task = UniversalTask(settings)
    classes = classes_for(task, options.checkpoint)
    model = _on_device(model, options.device)
    predictor = Predictor(task, model, classes, options.out, options.task, options.score, options.size)
    names = distinct_names([path.stem for path in queries])
    with ProgressBar("predict", len(queries)) as bar:
        return predict(predictor, frames(queries, names), bar, label)


def _predict_videos(settings: VideoSettings, model: nn.Module, label: str, options: Any) -> int:
    from fssops.tasks.universal_predict import classes_for
    from fssops.tasks.video import VideoTask
    from fssops.tasks.video_files import animation_suffix, find_videos
    from fssops.tasks.video_predict import VideoPredictor

    if options.task and set(options.task) != {"instance"}:
        raise SettingsError(f"--task: {settings.model.name} finds instances alone, got {', '.join(options.task)}")
    if not 0 < options.rate < float("inf"):
        raise SettingsError(f"--rate: frames a second must be a number above 0, got {options.rate}")
    suffix = "none" if options.video == "none" else animation_suffix(options.video)
    videos = find_videos(options.query)
    if options.out.resolve() in {path.parent.resolve() for video in videos for path in video.paths}:
        raise SettingsError(f"--out: {options.out} must be another folder than that of the queries")
    task = VideoTask(settings)
    classes = classes_for(task, options.checkpoint)
    predictor = VideoPredictor(
        task,
        _on_device(model, options.device),
        classes,
        options.out,
        suffix,
        options.score,
        options.size,
        options.rate,
        options.zip,
    )
    with ProgressBar("predict", len(videos)) as bar:
        return predictor.run(videos, bar, label)


def find_queries(given: Sequence[str]) -> list[Path]:
    """Return the image files named, and those in the folders named, in order, each once.

    Raises:
        FileNotFoundError: a path does not exist, or nothing is left.
    """
    found: dict[Path, None] = {}
    for text in given:
        path = Path(text)
        if path.is_dir():
            inside = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in SUFFIXES and entry.is_file())
            if not inside:
                raise FileNotFoundError(f"--query: folder {path} must hold images, got none")
            found.update(dict.fromkeys(inside))
        elif path.is_file():
            found[path] = None
        else:
            raise FileNotFoundError(f"--query: {path} must be an image or a folder, got nothing there")
    return list(found)


def _model(options: Any) -> tuple[nn.Module, tuple[int, int], Literal["stretch", "pad"]]:
    """The model, and how images enter it: at which size, stretched or padded as in its evaluation."""
    size, fit = (417, 417), "stretch"
    if options.checkpoint is not None:
        if options.weights is not None or options.option:
            raise SettingsError("--checkpoint: a run knows its model, got --weights or --option as well")
        settings, model, _ = load_for_use(options.checkpoint, options.recipe, options.overrides)
        if not isinstance(settings, FewShotSettings):
            raise SettingsError(f"--support: {settings.model.name} has fixed classes and takes no labelled images")
        size = settings.data.size
        fit = "pad" if settings.data.geometry == "letterbox" else "stretch"
    else:
        if options.recipe or options.overrides:
            raise SettingsError("--model: has no settings, got --recipe or --set; use --checkpoint FILE with these")
        if options.weights is None:
            raise SettingsError(
                f"--weights: {options.model} must have weights, got none; a random model segments nothing"
            )
        broken = next((text for text in options.option if "=" not in text), None)
        if broken is not None:
            raise SettingsError(f"--option: must read key=value, got {broken!r}")
        chosen = apply_overrides({"option": {}}, [f"option.{text}" for text in options.option])["option"]
        model = fssops.create_model(options.model, **chosen)
        fssops.load_weights(model, options.weights)
    if options.size is not None:
        size = (options.size, options.size)
    return model, size, fit  # type: ignore[return-value]


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if kind not in there or not (number.isdecimal() or name == kind):
        raise SettingsError(f"--device: must be auto, cpu, cuda, cuda:1, ... or mps, got {name!r}")
    if int(number or 0) >= there[kind]:
        raise SettingsError(
            f"--device: {name} must be available, got a torch or machine with {there[kind]} of its kind"
        )
    return name


def _on_device(model: nn.Module, device: str) -> nn.Module:
    return model.to(_device(device)).eval()


def _set_support(predictor: Any, supports: Sequence[_Support]) -> list[str]:
    kinds = {_kind(support) for support in supports}
    if len(kinds) > 1:
        raise SettingsError(f"--support: all supports must be marked the same way, got {' and '.join(sorted(kinds))}")
    kind = kinds.pop()
    images: dict[str, list[Any]] = {}
    marks: dict[str, list[Any]] = {}
    for support in supports:
        images.setdefault(support.way, []).append(support.image)
        marks.setdefault(support.way, []).append(getattr(support, kind))
    argument = {"mask": "masks", "boxes": "boxes", "scribble": "scribbles"}[kind]
    predictor.set_support(images, **{argument: marks})
    return ["background", *images]


def _kind(support: _Support) -> str:
    given = [name for name in ("mask", "scribble", "boxes") if getattr(support, name)]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise SettingsError(f"--support: {support.image} must have one of a mask, --box or --scribble, got {found}")
    return given[0]


def _predict_one(predictor: Any, path: Path, stem: Path, probability: bool) -> dict[str, Any]:
    result = predictor.segment(path)
    picture = np.asarray(read_image(path))
    label_image(result.labels).save(f"{stem}_labels.png")
    Image.fromarray(overlay_ways(picture, result.labels)).save(f"{stem}_overlay.jpg", quality=92)
    files = [f"{stem.name}_labels.png", f"{stem.name}_overlay.jpg"]
    if probability and len(result.classes) == 2:
        values = (result.probabilities[1] * 255.0).round().astype(np.uint8)
        Image.fromarray(values).save(f"{stem}_probability.png")
        files.append(f"{stem.name}_probability.png")
    elif probability:
        np.savez_compressed(f"{stem}_probabilities.npz", probabilities=result.probabilities.astype(np.float16))
        files.append(f"{stem.name}_probabilities.npz")
    total = result.labels.size
    share = {name: float((result.labels == way).sum() / total) for way, name in enumerate(result.classes)}
    return {"image": str(path), "height": picture.shape[0], "width": picture.shape[1], "share": share, "files": files}


def _pixels(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of pixels above 0, got {text!r}")
    return int(text)


def _score(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, got {text!r}")
    return value


def _box(parser: Any, text: str) -> tuple[float, float, float, float]:
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError:
        parser.error(f"--box must be four numbers x0,y0,x1,y1, got {text!r}")
    return x0, y0, x1, y1


if __name__ == "__main__":
    run_verb("predict", main)
