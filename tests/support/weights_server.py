"""A server on this machine that is slow, silent, wrong or right; and a ResNet to fetch."""

import pickle
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
import torchvision


def zoo_resnet(state: dict) -> dict:
    """A ResNet of torchvision as Detectron2's tools/convert-torchvision-to-d2.py writes it."""
    model = {}
    for name, tensor in state.items():
        if "layer" not in name:
            name = "stem." + name
        for number in (1, 2, 3, 4):
            name = name.replace(f"layer{number}", f"res{number + 1}")
        for number in (1, 2, 3):
            name = name.replace(f"bn{number}", f"conv{number}.norm")
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        model[name] = tensor.numpy()
    return {"model": model, "__author__": "torchvision", "matching_heuristics": True}


def write_zoo_resnet(path: Path, protocol: int = 2, depth: int = 18) -> dict:
    """Write a ResNet as Detectron2's model zoo has it, and beside it as torchvision has it.

    Returns torchvision's state dict.
    """
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, f"resnet{depth}")().state_dict()
    torch.save(theirs, path.with_suffix(".pth"))
    path.write_bytes(pickle.dumps(zoo_resnet(theirs), protocol=protocol))
    return theirs


PAGE = b"<!DOCTYPE html>\n<html><body>Please log in</body></html>\n"


class Server(ThreadingHTTPServer):
    """Serves one file under every path, as ``answers`` say.

    Attributes:
        content: of the file.
        answers: "whole", "slow", "cut", "page", "missing" or "silent", one for each request; the
            last one is repeated.
        requests: the paths of all requests.
    """

    def __init__(self, content: bytes, *answers: str):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content, self.answers, self.requests = content, list(answers or ["whole"]), []
        self.stopped = threading.Event()
        self.address = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.stopped.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.server.requests
        asked.append(self.path)
        answer = self.server.answers[min(len(asked), len(self.server.answers)) - 1]
        _ANSWERS[answer](self)

    def send(self, content: bytes, *, code: int = 200, length: int | None = None) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)

    def send_slowly(self) -> None:
        content = self.server.content
        self.send(b"", length=len(content))
        part = -(-len(content) // 20)
        for begin in range(0, len(content), part):
            self.wfile.write(content[begin : begin + part])
            time.sleep(0.1)

    def log_message(self, *_: object) -> None:
        pass


_ANSWERS: dict[str, Callable[[_Handler], object]] = {
    "whole": lambda handler: handler.send(handler.server.content),
    "slow": _Handler.send_slowly,
    "cut": lambda handler: handler.send(
        handler.server.content[:-1000], length=len(handler.server.content)
    ),
    "page": lambda handler: handler.send(PAGE),
    "missing": lambda handler: handler.send(PAGE, code=404),
    "silent": lambda handler: handler.server.stopped.wait(60),
}
