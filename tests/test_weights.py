"""The registry of weights: names, places, downloads that are held against their sha256, imports."""

from __future__ import annotations

import hashlib
import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from official_files import official_file
from small_networks import SPEC, picture, random_discriminator, random_generator

from headlift import cli, weights
from headlift.config import FRAME
from headlift.eg3d.checkpoint import load_checkpoint, load_discriminator, read_metadata, save_checkpoint
from headlift.errors import CheckpointError, OutputError, WeightsError
from headlift.head import save_state
from headlift.invert.result import InversionState
from headlift.weights import (
    EMBEDDED,
    fetch,
    file_sha256,
    find_generator,
    import_official,
    list_weights,
    load_generator,
    looks_ahead,
    verify,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, and torch's too."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("HEADLIFT_CACHE", str(folder))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("HEADLIFT_OFFLINE", raising=False)
    return folder


def test_a_generator_is_loaded_by_path_and_by_name(tmp_path: Path, cache: Path) -> None:
    original = random_generator()
    path = tmp_path / "mine.safetensors"
    save_checkpoint(path, original)
    save_checkpoint(cache / "cats.safetensors", original)
    for name in (str(path), "cats"):
        loaded, sha256 = load_generator(name, "cpu")
        assert not loaded.training
        assert not any(p.requires_grad for p in loaded.parameters())
        assert sha256 == hashlib.sha256(find_generator(name).read_bytes()).hexdigest()
        assert torch.equal(picture(loaded), picture(original))


def test_a_folder_does_not_hide_a_generator_of_its_name(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(cache / "cats.safetensors", random_generator())
    (tmp_path / "cats").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_generator("cats") == cache / "cats.safetensors"


def test_a_missing_generator_says_how_to_get_it(tmp_path: Path, cache: Path) -> None:
    for name, words in [
        ("dogs", r"no generator called 'dogs' here .*headlift weights list"),
        (str(tmp_path / "none.safetensors"), "no weights file"),
        ("folder/none", "no weights file"),
        (str(tmp_path), "is a folder"),
        (str(tmp_path / "official.pkl"), r"headlift weights import .*official.pkl --out .*official.safetensors"),
    ]:
        with pytest.raises(WeightsError, match=words):
            find_generator(name)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"text")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_generator(str(broken), "cpu")


def test_a_missing_embedded_generator_has_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_embedded_path", lambda: None)
    with pytest.raises(WeightsError, match="install .*--weights"):
        load_generator(EMBEDDED, "cpu")
    listed = {w.name: w for w in list_weights()}
    assert listed[EMBEDDED].path is None


def test_the_list_knows_what_is_here(cache: Path, tmp_path: Path) -> None:
    listed = {w.name: w for w in list_weights()}
    assert {EMBEDDED, "vgg16", "alexnet"} <= set(listed)
    assert listed["vgg16"].path is None
    save_checkpoint(cache / "cats.safetensors", random_generator(), {"licence": "free"})
    save_checkpoint(cache / "critic.safetensors", random_discriminator())
    (cache / "noise.safetensors").write_bytes(b"noise")
    (cache / "vgg16-397923af.pth").write_bytes(b"weights")
    listed = {w.name: w for w in list_weights()}
    assert listed["cats"].licence == "free"
    assert listed["cats"].path == cache / "cats.safetensors"
    assert "critic" not in listed
    assert "noise" not in listed
    assert listed["vgg16"].path == cache / "vgg16-397923af.pth"
    torch_place = tmp_path / "torch" / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    torch_place.parent.mkdir(parents=True)
    torch_place.write_bytes(b"weights")
    assert {w.name: w for w in list_weights()}["alexnet"].path == torch_place


# Downloads, from a server of the test's own


CONTENT = b"numbers of a network" * 100
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if self.path == "/none":
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT)

        def log_message(self, *arguments: Any) -> None: ...

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.server_address[1]}", asked
    listening.shutdown()
    listening.server_close()


def register(monkeypatch: pytest.MonkeyPatch, url: str, sha256: str) -> None:
    entry = replace(weights._KNOWN[1], name="net", file="net.pth", url=url, sha256=sha256)
    monkeypatch.setattr(weights, "_KNOWN", (*weights._KNOWN, entry))


@pytest.mark.parametrize("digits", [8, 64])
def test_what_is_fetched_is_held_against_its_sha256(
    digits: int, server: tuple[str, list[str]], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked = server
    register(monkeypatch, f"{url}/net.pth", SHA256[:digits])
    path = fetch("net")
    assert path == cache / "net.pth"
    assert path.read_bytes() == CONTENT
    assert verify(path).sha256 == SHA256
    assert fetch("net") == path
    assert asked == ["/net.pth"]  # the second time it was there
    path.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="should begin with"):
        verify(path)
    assert fetch("net").read_bytes() == CONTENT
    assert len(asked) == 2
    assert list(cache.iterdir()) == [path]


@pytest.mark.parametrize("digits", [8, 64])
def test_another_sha256_is_thrown_away(
    digits: int, server: tuple[str, list[str]], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, f"{server[0]}/net.pth", ("0" * 64)[:digits])
    with pytest.raises(WeightsError, match="net"):
        fetch("net")
    assert list(cache.iterdir()) == []


def test_nothing_is_fetched_offline(
    server: tuple[str, list[str]], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked = server
    register(monkeypatch, f"{url}/net.pth", SHA256)
    monkeypatch.setenv("HEADLIFT_OFFLINE", "1")
    with pytest.raises(WeightsError, match=r"HEADLIFT_OFFLINE.*copy net.pth"):
        fetch("net")
    assert asked == []
    monkeypatch.setenv("HEADLIFT_OFFLINE", "0")
    assert fetch("net").is_file()


def test_failed_downloads_are_weights_errors(
    server: tuple[str, list[str]], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, f"{server[0]}/none", SHA256)
    with pytest.raises(WeightsError, match="could not be downloaded"):
        fetch("net")
    register(monkeypatch, "http://127.0.0.1:9/net.pth", SHA256)
    with pytest.raises(WeightsError, match="could not be downloaded"):
        fetch("net")
    for name in ("unknown", EMBEDDED):
        with pytest.raises(WeightsError, match="cannot be fetched.*vgg16, alexnet"):
            fetch(name)


def test_the_published_prefixes_are_those_in_the_file_names() -> None:
    """torchvision names its files by the first eight digits of their sha256."""
    for entry in weights._KNOWN:
        if entry.url is not None:
            assert entry.url.endswith(f"/{entry.file}")
            assert entry.file.removesuffix(".pth").endswith(entry.sha256)


# Imports


def test_an_official_file_becomes_a_checkpoint(tmp_path: Path) -> None:
    original, critic = random_generator(), random_discriminator()
    source = tmp_path / "ffhq.pkl"
    source.write_bytes(official_file(original, critic))
    done = import_official(source, tmp_path / "out" / "ffhq.safetensors")
    assert done.spec == SPEC
    assert done.sha256 == file_sha256(done.path)
    assert done.source_sha256 == file_sha256(source)
    assert "NVIDIA" in done.licence
    assert "non-commercial" in done.licence
    assert done.parameters == sum(p.numel() for p in original.parameters())
    assert torch.equal(picture(load_checkpoint(done.path)), picture(original))
    metadata = read_metadata(done.path)
    assert metadata["licence"] == done.licence
    assert metadata["source_sha256"] == done.source_sha256
    assert metadata["source"] == "ffhq.pkl"
    seen = verify(done.path)
    assert (seen.kind, seen.sha256, seen.spec) == ("headlift generator", done.sha256, SPEC)
    assert seen.parameters == done.parameters

    with pytest.raises(OutputError, match="--overwrite"):
        import_official(source, done.path)
    import_official(source, done.path, overwrite=True, half=True)
    judge = import_official(source, tmp_path / "d.safetensors", "D")
    state = load_discriminator(judge.path).state_dict()
    assert all(torch.equal(state[n], t) for n, t in critic.state_dict().items())
    assert verify(judge.path).kind == "headlift discriminator"


def test_a_failed_import_leaves_nothing(tmp_path: Path) -> None:
    source, target = tmp_path / "x.pkl", tmp_path / "out.safetensors"
    with pytest.raises(CheckpointError, match="no file"):
        import_official(source, target)
    with pytest.raises(CheckpointError, match="not a file"):
        import_official(tmp_path, target)
    with pytest.raises(OutputError, match="should end in .safetensors"):
        import_official(source, tmp_path / "out.bin")
    for content, words in [
        (b"", r"x\.pkl: .*it is empty"),
        (b"\x80\x04cos\nsystem\n.", "os.system"),
        (official_file(random_generator())[:-10], "x.pkl: "),
    ]:
        source.write_bytes(content)
        with pytest.raises(CheckpointError, match=words):
            import_official(source, target)
    source.write_bytes(official_file(random_generator()))
    with pytest.raises(CheckpointError, match="no network D"):
        import_official(source, target, "D")
    assert not target.exists()


def test_verify_reads_every_number(tmp_path: Path) -> None:
    path = tmp_path / "g.safetensors"
    save_checkpoint(path, random_generator())
    data = bytearray(path.read_bytes())
    data[-4:] = b"\x00\x00\x80\x7f"  # infinity
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="not finite"):
        verify(path)


def test_verify_says_what_a_file_of_headlifts_is_that_holds_no_network_of_its_own(tmp_path: Path) -> None:
    save_state(tmp_path / "state.safetensors", InversionState("latent", 1, {"code": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match="is a headlift inversion state 1, not the weights"):
        verify(tmp_path / "state.safetensors")


def test_verify_counts_no_parameters_that_it_has_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, "http://127.0.0.1:9/net.pth", SHA256)
    (tmp_path / "net.pth").write_bytes(CONTENT)
    assert cli.run(["weights", "verify", str(tmp_path / "net.pth")]) == 0
    assert "net.pth: net, licence BSD" in capsys.readouterr().out


def test_the_command_line_refuses_a_hostile_file_in_one_line(tmp_path: Path) -> None:
    """Exit code 2, a message that names what was found, no traceback, no file, nothing run."""
    mark = tmp_path / "mark"
    source = tmp_path / "evil.pkl"
    source.write_bytes(
        b"\x80\x04cos\nsystem\n\x8c" + bytes([len(f"touch {mark}")]) + f"touch {mark}".encode() + b"\x85R."
    )
    command = [
        sys.executable,
        "-m",
        "headlift",
        "weights",
        "import",
        str(source),
        "--out",
        str(tmp_path / "o.safetensors"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "os.system" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not mark.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["evil.pkl"]


def test_a_file_says_what_it_takes_for_straight_ahead(tmp_path: Path) -> None:
    for name, metadata in (("ours", {FRAME: "embedded"}), ("silent", {})):
        save_checkpoint(tmp_path / f"{name}.safetensors", random_generator(), metadata)
    ours, silent = (str(tmp_path / f"{name}.safetensors") for name in ("ours", "silent"))
    assert [looks_ahead(name) for name in (EMBEDDED, ours, silent)] == ["embedded", "embedded", "ffhq"]
    assert looks_ahead(str(find_generator(EMBEDDED))) == "embedded"
    assert looks_ahead(EMBEDDED, "ffhq") == "ffhq"
    assert looks_ahead(silent, "embedded") == "embedded"
