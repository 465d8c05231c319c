"""Weights by address, from a server on this machine that is slow, cuts off or sends a page."""

import io
import os
import subprocess
import sys
import threading

import pytest
import torch
from weights_server import Server

from smca.checkpoints import fetch, fetching, read_checkpoint
from smca.errors import CheckpointError


@pytest.fixture(scope="module")
def content():
    """A checkpoint's bytes."""
    file = io.BytesIO()
    torch.save({"model": {"weight": torch.arange(20_000.0)}}, file)
    return file.getvalue()


@pytest.fixture
def serve(content, tmp_path, monkeypatch):
    """``serve("cut", "whole")``: a server that answers so, and an empty cache."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers = []

    def start(*answers):
        servers.append(Server(content, *answers))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def cached(folder):
    """The files of a cache, without its locks."""
    return {path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_it_is_fetched_once(serve, content, tmp_path, capfd):
    server = serve()
    path = fetch(f"{server.address}/models/a.pth")
    with open(path, "rb") as file:
        assert file.read() == content
    bar = capfd.readouterr().err
    assert "a.pth" in bar and "100%" in bar
    assert fetch(f"{server.address}/models/a.pth") == path
    assert server.requests == ["/models/a.pth"]
    assert list(map(str, cached(tmp_path / "cache"))) == [path]
    assert capfd.readouterr().err == ""


def test_paths_and_other_addresses_stay_as_they_are(tmp_path):
    for path in ("a.pth", tmp_path / "a.pth", "manifold://a.pth", ""):
        assert fetch(path) == str(path)


def test_detectron2s_addresses(serve, monkeypatch):
    server = serve()
    monkeypatch.setattr(fetching, "_DETECTRON2", f"{server.address}/detectron2/")
    read_checkpoint(fetch("detectron2://ImageNetPretrained/torchvision/a.pth"))
    assert server.requests == ["/detectron2/ImageNetPretrained/torchvision/a.pth"]


@pytest.mark.parametrize("first", ["cut", "page"])
def test_what_came_wrong_is_fetched_again(serve, content, first):
    server = serve(first, "whole")
    with open(fetch(f"{server.address}/a.pth"), "rb") as file:
        assert file.read() == content
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("answer", "requests", "reason"),
    [
        ("cut", 2, r"cut off: \d+ of \d+ bytes came"),
        ("page", 2, "the answer is a web page, perhaps of a proxy"),
        ("missing", 1, "HTTP Error 404: Not Found"),
        ("silent", 1, "timed out"),
    ],
)
def test_what_cannot_be_had_is_one_line(serve, tmp_path, monkeypatch, answer, requests, reason):
    monkeypatch.setattr(fetching, "_PATIENCE", 0.5)
    server = serve(answer)
    address = f"{server.address}/models/a.pth"
    with pytest.raises(CheckpointError, match=reason) as error:
        fetch(address)
    message = str(error.value)
    place = tmp_path / "cache" / address.removeprefix("http://")
    assert "\n" not in message and f"{address} cannot be fetched" in message
    assert f"put the file at {place}, or set MODEL.WEIGHTS to the path of a copy" in message
    assert len(server.requests) == requests and not cached(tmp_path / "cache")
    # As the message says.
    torch.save({"weight": torch.ones(1)}, place)
    assert fetch(address) == str(place) and len(server.requests) == requests


def test_without_a_network(serve, tmp_path):
    server = serve()
    server.stop()
    with pytest.raises(CheckpointError, match=r"cannot be fetched: \[Errno \d+\] .*refused; put"):
        fetch(f"{server.address}/a.pth")
    with pytest.raises(CheckpointError, match="cannot be fetched: "):
        fetch("http://127.0.0.1:port/a.pth")
    for address in ("http://[bad/a.pth", f"{server.address}/", server.address, "HTTP://a"):
        with pytest.raises(CheckpointError, match="is not the address of a file: "):
            fetch(address)
    assert not cached(tmp_path / "cache")


@pytest.mark.parametrize("damage", [lambda whole: whole[:-1000], lambda whole: b"", bytes.upper])
def test_a_damaged_file_of_the_cache_is_replaced_by_a_whole_one(serve, content, damage):
    server = serve("whole", "missing", "whole")
    address = f"{server.address}/a.pth"
    place = fetch(address)
    damaged = damage(content)
    for outcome in (damaged, content):
        with open(place, "wb") as file:
            file.write(damaged)
        if outcome is damaged:
            with pytest.raises(
                CheckpointError, match=r"404: .* file at \S+/a\.pth, which cannot be"
            ):
                fetch(address)
        else:
            fetch(address)
        with open(place, "rb") as file:
            assert file.read() == outcome


@pytest.mark.slow
def test_the_processes_of_a_machine_fetch_once(serve):
    """Three at once, and a server that takes two seconds."""
    server = serve("slow")
    program = "import sys; from smca.checkpoints import fetch; print(fetch(sys.argv[1]))"
    command = [sys.executable, "-c", program, f"{server.address}/a.pth"]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(3)
    ]
    printed = {process.communicate(timeout=120)[0].strip() for process in started}
    assert len(printed) == 1 and os.path.isfile(printed.pop())
    assert server.requests == ["/a.pth"]


def test_servers_and_queries_have_files_of_their_own(serve, tmp_path):
    one, other = serve(), serve()
    paths = ["a.pth", "download?of=a.pth", "download?of=b.pth", "../../a.pth", "x/../../../b.pth"]
    places = {fetch(f"{server.address}/{path}") for server in (one, other) for path in paths}
    assert len(places) == 8  # the fourth is the first
    assert all((tmp_path / "cache") in path.parents for path in cached(tmp_path))


@pytest.mark.slow
def test_a_fetch_that_is_stopped_leaves_nothing(serve, tmp_path):
    """Ctrl-C in the middle."""
    server = serve("slow")
    # A shell's background jobs ignore SIGINT.
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from smca.checkpoints import fetch; print(fetch(sys.argv[1]))"
    )
    command = [sys.executable, "-c", program, f"{server.address}/a.pth"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    begun = threading.Event()
    while not begun.wait(0.02):
        assert process.poll() is None
        if server.requests:
            begun.set()
    process.send_signal(2)
    assert process.wait(timeout=60) != 0
    assert not cached(tmp_path / "cache")
