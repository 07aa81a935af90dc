"""Damage files of every layout at random and see what their readers make of them; run by hand.

    python tests/fuzzing/readers.py [--tries 300] [--seed 0] [--only READER] [--show]

A try writes the smallest sound folder of a layout, damages one of its files, and reads everything: opened for each of
its truths, every image, truth and mask, and ``check_data``. It runs in a process that may take 1 GB beyond its imports,
for at most 20 seconds of a processor. It must be read (with or without warnings), or refused in one line that names the
folder or a file of it; everything else is a fault. ``--show`` prints each fault with the seed that makes it again.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MALLOC_ARENA_MAX="1", FSSOPS_CACHE="off")

import argparse
import copy
import io
import json
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))

import example_folders as folders
import numpy as np
from PIL import Image

from fssops.command_line import print_table
from fssops.data import layouts
from fssops.data.check import check_data
from fssops.data.episodes import EpisodeList
from fssops.data.errors import DataError
from fssops.data.few_shot_source import FewShotSource
from fssops.data.source import VideoSource
from fssops.engine.metrics_log import read_metrics
from fssops.engine.run_folder import RunFolder, RunFolderError
from fssops.engine.settings import SettingsError
from fssops.run_lengths import encode
from fssops.tasks.class_names import classes_of_run

MEMORY, SECONDS = 1 << 30, 20.0
OUTCOMES = ("read", "read, told", "refused", "raw error", "memory", "time", "killed")
"""The first three are as it should be."""

encode(np.zeros((1, 1), dtype=bool))  # imports pycocotools before memory is measured

# What is read.


def read_layout(root: Path, *names: str) -> None:
    """Open a folder by layouts for all their truths, and read all that is in it."""
    refused: Exception | None = None
    for name in names:
        for truth in layouts.LAYOUTS[name].offers:
            try:
                source = layouts.open_data(name, root, truth=truth)
                list(source.problems() if not isinstance(source, FewShotSource) else source.images.problems())
                (read_video if isinstance(source, VideoSource) else read_images)(source)
            except (DataError, OSError) as error:
                refused = refused or checked(error, root)
            for finding in check_data(name, root, truth=truth).findings:
                if "\n" in finding.message:
                    raise AssertionError(f"a finding of several lines: {finding.message!r}")
    if refused:
        raise refused


def checked(error: Exception, root: Path) -> Exception:
    """An error that may refuse a folder: one line that names it."""
    if "\n" in str(error) or (root.name not in str(error) and not getattr(error, "filename", None)):
        raise AssertionError(f"an error of several lines, or without the file: {error!r}") from error
    return error


def read_video(source: Any) -> None:
    """Frames and tracks of every video."""
    for name in source.names:
        for index in range(source.frames(name)):
            source.frame(name, index)
        for track in source.tracks(name):
            for frame in range(source.frames(name)):
                track.mask(frame, *source.size(name))


def read_images(source: Any) -> None:
    """Images and truth, each object drawn."""
    if isinstance(source, FewShotSource):
        source.areas()
        for name in source.names:
            source.label_map(name)
            for number in source.classes:
                source.instance_map(name, number)
        return
    for name in source.names:
        truth = source.truth(name)
        source.image(name)
        for thing in truth.objects or ():
            thing.mask(truth.height, truth.width)


def read_episodes(root: Path) -> None:
    """A list of episodes."""
    EpisodeList.load(root / "episodes.json")


def read_run(root: Path) -> None:
    """What is read back of a run."""
    classes_of_run(root)
    RunFolder(root).load_settings()
    read_metrics(root / "metrics.jsonl")


# Sound folders.


def with_instances(write: Callable[[Path], None], *files: str) -> Callable[[Path], None]:
    """A layout's folder with more annotation files of COCO's form."""

    def written(root: Path) -> None:
        write(root)
        for file in files:
            rows = [
                {"id": 1, "image_id": 1, "category_id": 3, "area": 81, "segmentation": [[0, 0, 9, 0, 9, 9, 0, 9]] * 2},
                {"id": 2, "image_id": 1, "category_id": 7, "iscrowd": 1, "segmentation": RUNS},
                {"id": 3, "image_id": 1, "category_id": 7, "segmentation": encode(folders.halves(0, 1))},
            ]
            folders.coco_json(root / file, annotations=rows)

    return written


RUNS = {"size": [folders.H, folders.W], "counts": [100, 200, 300]}


def fss1000(root: Path) -> None:
    """FSS-1000 with a list of classes."""
    folders.fss1000(root)
    (root / "trn.txt").write_text("cup\npen\n")


def ade20k(root: Path) -> None:
    """ADE20K with its panoptic and instance files."""
    folders.ade20k(root)
    folders.coco_json(root / "ade20k_instance_train.json")
    panoptic(root / "ade20k_panoptic_train.json", 1, "a.jpg")


def cityscapes(root: Path) -> None:
    """Cityscapes with its panoptic files."""
    folders.cityscapes(root)
    name = "bonn_000001_000019"
    panoptic(root / "gtFine" / "cityscapes_panoptic_train.json", name, f"{name}_gtFine_leftImg8bit.png")


def panoptic(file: Path, number: int | str, image: str) -> None:
    """Panoptic JSON of one image, and its PNG."""
    ids = folders.halves(1, 2)
    folders.save(file.with_suffix("") / "a.png", np.stack([ids, 0 * ids, 0 * ids], -1))
    segments = [{"id": 1, "category_id": 3, "area": 300}, {"id": 2, "category_id": 7}]
    images = [{"id": number, "file_name": image, "height": folders.H, "width": folders.W}]
    rows = [{"image_id": number, "file_name": "a.png", "segments_info": segments}]
    folders.coco_json(file, images=images, annotations=rows)


def episodes(root: Path) -> None:
    """A list of episodes."""
    folders.fss1000(root / "data")
    source = layouts.open_data("fss1000", root / "data", truth="few-shot")
    EpisodeList.draw(source, list(source.classes), episodes=2).save(root / "episodes.json")
    shutil.rmtree(root / "data")


def run(root: Path) -> None:
    """What a run keeps as text."""
    rows = [{"id": 0, "name": "cat", "color": [1, 2, 3], "isthing": 1}]
    (root / "classes.json").write_text(json.dumps({"classes": rows, "ignore_index": 255}))
    (root / "settings.json").write_text(json.dumps({"name": "x", "model": {"name": "panet"}, "data": {"size": [9, 9]}}))
    (root / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": null}\n')


Reader = tuple[Callable[[Path], None], Callable[..., None], tuple[str, ...]]
READERS: dict[str, Reader] = {
    "coco": (with_instances(folders.coco, "annotations/instances_train.json"), read_layout, ("coco", "coco_instances")),
    "coco_panoptic": (folders.coco_panoptic, read_layout, ("coco_panoptic",)),
    "roboflow": (with_instances(folders.roboflow, "train/_annotations.coco.json"), read_layout, ("roboflow",)),
    "cvat": (with_instances(folders.cvat, "annotations/instances_default.json"), read_layout, ("cvat",)),
    "label_studio": (folders.label_studio, read_layout, ("label_studio",)),
    "lvis": (folders.lvis, read_layout, ("lvis",)),
    **({"parquet": (folders.parquet, read_layout, ("parquet",))} if folders.parquet in folders.EXAMPLES else {}),
    "ytvis": (folders.ytvis, read_layout, ("ytvis",)),
    "voc": (folders.voc, read_layout, ("voc",)),
    "cityscapes": (cityscapes, read_layout, ("cityscapes",)),
    "ade20k": (ade20k, read_layout, ("ade20k",)),
    "camvid": (folders.camvid, read_layout, ("camvid",)),
    "label_folder": (folders.label_folder, read_layout, ("label_folder",)),
    "folder": (folders.class_folders, read_layout, ("folder",)),
    "fss1000": (fss1000, read_layout, ("fss1000",)),
    "voc of cvat": (folders.voc_of_cvat, read_layout, ("voc",)),
    "labelme": (folders.labelme, read_layout, ("labelme",)),
    "yolo": (folders.yolo, read_layout, ("yolo",)),
    "colour_labels": (folders.colour_labels, read_layout, ("colour_labels",)),
    "binary_masks": (folders.binary_masks, read_layout, ("binary_masks",)),
    "mvtec": (folders.mvtec, read_layout, ("mvtec",)),
    "davis": (folders.davis, read_layout, ("davis",)),
    "youtube_vos": (folders.youtube_vos, read_layout, ("youtube_vos",)),
    "episode list": (episodes, read_episodes, ()),
    "run folder": (run, read_run, ()),
}

# Damage.

DEEP = "\x02deep"
_NUMBERS = [-1, 0, 1, 2, 3, 7, 60.0, 0.5, -0.0, 1e8, -1e7, 1e16, 1e300, float("nan"), float("inf"), float("-inf")]
_LARGE = [1 << 13, 1 << 16, 1 << 26, 1 << 31, 1 << 63, -(1 << 70), 10**400]
_TEXTS = ["", " ", "1", "60", "007", "a", "a.jpg", "a.png", "../a.jpg", "/etc/passwd", "sub\\a.jpg", "C:\\a", "a\0b"]
_TEXTS += ["a\nb", "\x1b[2J", "\ud800", "ü", "\u202e", "x" * 300, "x" * 50_000, "9" * 5000, "PPPP", "`" * 9 + "0", "~"]
_OTHERS: list[Any] = [None, True, False, [], {}, [[]], [1], {"id": 1}, [None] * 3, DEEP, [0] * 5000]
_WHOLE = {"size": [1 << 13, 1 << 13], "counts": [0, 1 << 26]}
_OTHERS += [
    [[1, 2, 3, 4]],
    [[0, 0, 1e8, 0, 1e8, 1e8]],
    [[-1e7, 0, 9, 0, 9, 9]],
    [[0, 0, 9, 9, 9, float("nan")]],
    _WHOLE,
]
_OTHERS += [[[n % 2 * 1e9, n, (n + 1) % 2 * 1e9, n] * 2 for n in range(40)], RUNS, {**RUNS, "counts": [-1, 601]}]


def any_value(rng: random.Random) -> Any:
    """A value that a careless program may have written, or a careful attacker."""
    return copy.deepcopy(rng.choice(rng.choice([_NUMBERS, _LARGE, _TEXTS, _OTHERS])))


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container and key or index in a JSON value."""
    found, open_values = [], [value]
    while open_values:
        container = open_values.pop()
        keys = container if isinstance(container, dict) else range(len(container))
        for key in keys:
            found.append((container, key))
            if isinstance(container[key], (dict, list)):
                open_values.append(container[key])
    return found


def damage_json(text: str, rng: random.Random) -> bytes:
    """Change one to three values, keys or rows; then now and then the text."""
    content = json.loads(text)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        spots = places(content)
        if not spots:
            break
        container, key = rng.choice(spots)
        act = rng.randrange(6)
        if act == 0:
            del container[key]
        elif act == 1 and isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        elif act == 2 and isinstance(container[key], (int, float, str)):
            container[key] = rng.choice([str, float, lambda v: [v], lambda v: {"": v}])(_number(container[key]))
        elif act == 3 and isinstance(container[key], list):
            container[key] = copy.deepcopy(container[key] * rng.choice([2, 50]))
        else:
            container[key] = any_value(rng)
    depth = rng.choice([60, 400, 900, 960, 990, 100_000])
    text = json.dumps(content).replace(json.dumps(DEEP), "[" * depth + "]" * depth)
    if rng.random() < 0.1 and '"id"' in text:
        text = text.replace('"id"', '"id": 5, "id"', 1)
    return damage_bytes(text.encode(), rng) if rng.random() < 0.1 else text.encode()


def _number(value: Any) -> Any:
    return value if isinstance(value, (int, float)) else len(value)


def damage_bytes(content: bytes, rng: random.Random) -> bytes:
    """Cut, change, double or replace bytes."""
    act, place = rng.randrange(5), rng.randrange(len(content) + 1)
    if act == 0:
        return content[:place]
    if act == 1:
        return content[:place] + rng.randbytes(rng.choice([1, 4, 100])) + content[place:]
    if act == 2:
        return content + content
    if act == 3:
        return rng.choice([b"", b"\0" * 100, rng.randbytes(200), b"\xff\xfe", b"\xef\xbb\xbf" + content])
    changed = bytearray(content)
    for _ in range(rng.choice([1, 3, 20])):
        if changed:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def damage_picture(content: bytes, rng: random.Random) -> bytes:
    """Damaged bytes, or a sound picture of another kind, size, or of values that nobody expects."""
    if rng.random() < 0.6:
        return damage_bytes(content, rng)
    large = rng.random() < 0.03
    width, height = (1 << 13, 1 << 13) if large else rng.choice([(30, 20), (30, 20), (20, 30), (1, 1), (3000, 1)])
    mode = "1" if large else rng.choice(["1", "L", "P", "RGB", "RGBA", "LA", "I", "I;16", "F", "CMYK", "YCbCr"])
    picture = Image.new(mode, (width, height))
    if not large and mode in ("L", "P", "I", "I;16", "F"):
        for _ in range(20):
            value = rng.choice([1, 2, 7, 19, 254, 255] + [1000, 24_001, 65_535] * (mode[0] == "I"))
            picture.putpixel((rng.randrange(width), rng.randrange(height)), value)
    fitting = ["TIFF", *["PNG"] * (mode in ("1", "L", "P", "RGB", "RGBA", "LA", "I;16"))]
    fitting += ["JPEG"] * (mode in ("L", "RGB", "CMYK", "YCbCr")) + ["WEBP", "GIF"] * (mode in ("RGB", "L", "P"))
    written = io.BytesIO()
    picture.save(written, rng.choice(fitting), **({"lossless": True} if rng.random() < 0.5 else {}))
    return written.getvalue()


def damage(root: Path, rng: random.Random) -> str:
    """Damage one file of a folder, one of text rather than a picture; returns its name."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    texts = [path for path in files if path.suffix in (".json", ".jsonl", ".txt", ".csv", ".yaml")]
    file = rng.choice(texts if texts and rng.random() < 0.75 else files)
    act = rng.random()
    if act < 0.03:
        file.unlink()
    elif act < 0.05:
        file.unlink()
        file.mkdir()
    elif file.suffix == ".json":
        file.write_bytes(damage_json(file.read_text(), rng))
    elif file in texts:
        lines = file.read_bytes().split(b"\n")
        lines.insert(rng.randrange(len(lines)), str(any_value(rng)).encode("utf-8", "surrogatepass"))
        file.write_bytes(b"\n".join(lines) if rng.random() < 0.6 else damage_bytes(file.read_bytes(), rng))
    else:
        file.write_bytes(damage_picture(file.read_bytes(), rng))
    return str(file.relative_to(root))


# Running.


class TimeIsUp(BaseException):
    """The time of a try is over."""


def one_try(reader: str, seed: int, templates: Path) -> tuple[str, str]:
    """The outcome of a try, and what to say of it."""
    write, read, arguments = READERS[reader]
    template = templates / reader.replace(" ", "_")
    if not template.exists():
        template.mkdir()
        write(template)
    root = Path(tempfile.mkdtemp(prefix="fuzz_", dir=templates))
    shutil.copytree(template, root, dirs_exist_ok=True)
    file = damage(root, random.Random(f"{reader} {seed}")) if seed >= 0 else ""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                read(root, *arguments)
            except (DataError, OSError, SettingsError, RunFolderError) as error:
                return "refused", str(checked(error, root))
        told = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
        return ("read, told", told[0]) if told else ("read", "")
    except TimeIsUp:
        return "time", file
    except MemoryError:
        return "memory", f"{file}: {traceback.format_exc()}"
    except Exception:
        return "raw error", f"{file}: {traceback.format_exc()}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        shutil.rmtree(root, ignore_errors=True)


def _alarm(*_: Any) -> None:
    raise TimeIsUp


def worker(reader: str, seeds: list[int], pipe: int, templates: Path) -> None:
    """Run tries one after the other and write each outcome as a line."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, _alarm)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    for seed in seeds:
        outcome, text = one_try(reader, seed, templates)
        os.write(pipe, (json.dumps([seed, outcome, text[-3000:]]) + "\n").encode())


def outcomes(reader: str, seeds: list[int], templates: Path) -> list[tuple[int, str, str]]:
    """Outcomes of the tries of a reader, in processes that may end at any time."""
    done: list[tuple[int, str, str]] = []
    while len(done) < len(seeds):
        source, sink = os.pipe()
        child = os.fork()
        if not child:
            os.close(source)
            code = 1
            try:
                worker(reader, seeds[len(done) :], sink, templates)
                code = 0
            finally:
                os._exit(code)
        os.close(sink)
        with os.fdopen(source, encoding="utf-8") as lines:
            while True:
                # For code that no signal interrupts; other programs may take most of a processor.
                if not select.select([lines], [], [], 10 * SECONDS)[0]:
                    os.kill(child, signal.SIGKILL)
                    done.append((seeds[len(done)], "time", "not to be interrupted"))
                    break
                line = lines.readline()
                if not line:
                    break
                done.append(tuple(json.loads(line)))
        _, status = os.waitpid(child, 0)
        if status and len(done) < len(seeds) and (not done or done[-1][2] != "not to be interrupted"):
            done.append((seeds[len(done)], "killed", f"exit code {os.waitstatus_to_exitcode(status)}"))
    return done


def main() -> int:
    """Run the tries and print a table; 1 where there were faults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=300, help="of each reader (default 300)")
    parser.add_argument("--seed", type=int, default=0, help="of the first try")
    parser.add_argument("--only", choices=READERS, help="one reader")
    parser.add_argument("--show", action="store_true", help="print every fault")
    options = parser.parse_args()
    started, rows, faults = time.monotonic(), [], 0
    for reader in [options.only] if options.only else READERS:
        with tempfile.TemporaryDirectory() as templates:
            seeds = list(range(options.seed, options.seed + options.tries))
            found = outcomes(reader, seeds, Path(templates))
        counts = Counter(outcome for _, outcome, _ in found)
        rows.append([reader, str(len(found)), *(str(counts[outcome]) for outcome in OUTCOMES)])
        for seed, outcome, text in found:
            if outcome in OUTCOMES[3:]:
                faults += 1
                if options.show:
                    print(f"--only '{reader}' --tries 1 --seed {seed}: {outcome}\n{text}\n", flush=True)
    total = [str(sum(int(row[column]) for row in rows)) for column in range(1, len(OUTCOMES) + 2)]
    print_table([*rows, ["all", *total]], ("reader", "tries", *OUTCOMES))
    print(f"{time.monotonic() - started:.0f} s, seeds from {options.seed}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
