#!/usr/bin/env python3
"""Detect objects in a picture with a model that tools/export_model.py wrote.

It needs numpy, Pillow, and onnxruntime for an .onnx file or torch for a .pt2 or .ts file. It needs
nothing of this repository.

Example:
    python examples/run_exported.py smca.onnx street.jpg --output found.png
"""

import argparse
import json
import os
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageOps

# Maps pixels (1, 3, H, W) float32 in 0..255, RGB, to boxes (1, D, 4), scores and labels (1, D).
Model = Callable[[np.ndarray], list[np.ndarray]]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    path = os.path.expanduser
    parser.add_argument("model", type=path, help="a file that ends in .onnx, .pt2 or .ts")
    parser.add_argument("picture", type=path, help="an image file")
    parser.add_argument("--output", type=path, help="image file to draw the detections to")
    parser.add_argument("--threshold", type=float, default=0.3, help="least score (default: 0.3)")
    return parser.parse_args()


def load_onnx(path: str) -> tuple[Model, dict]:
    """The model and its metadata."""
    import onnxruntime

    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    session = onnxruntime.InferenceSession(path, providers=providers)
    stored = session.get_modelmeta().custom_metadata_map
    metadata = {key: json.loads(value) for key, value in stored.items()}
    return lambda images: session.run(("boxes", "scores", "labels"), {"images": images}), metadata


def load_torch(path: str) -> tuple[Model, dict]:
    """The model and its metadata, from a file of ``torch.export`` or TorchScript."""
    import torch

    files = {"metadata.json": ""}
    if path.endswith(".pt2"):
        model = torch.export.load(path, extra_files=files).module()
    else:
        model = torch.jit.load(path, _extra_files=files)

    @torch.no_grad()
    def run(images: np.ndarray) -> list[np.ndarray]:
        return [found.numpy() for found in model(torch.from_numpy(images))]

    return run, json.loads(files["metadata.json"])


def main() -> None:
    args = parse()
    model, metadata = (load_onnx if args.model.endswith(".onnx") else load_torch)(args.model)
    picture = ImageOps.exif_transpose(Image.open(args.picture)).convert("RGB")
    resized = picture.resize(model_size(*picture.size, metadata), Image.Resampling.BILINEAR)
    pixels = np.asarray(resized, dtype=np.float32).transpose(2, 0, 1)
    boxes, scores, labels = (found[0] for found in model(np.ascontiguousarray(pixels[None])))
    # From pixels of the resized picture to those of the picture itself.
    scale = np.divide(picture.size, resized.size)
    boxes = (boxes * np.tile(scale, 2)).clip(0, np.tile(picture.size, 2))

    draw = ImageDraw.Draw(picture)
    for box, score, label in zip(boxes, scores, labels, strict=True):
        if score < args.threshold:
            continue
        text = f"{metadata['class_names'][label]} {score:.2f}"
        print(text, *(f"{side:.1f}" for side in box))
        draw.rectangle(box.tolist(), outline="red", width=2)
        # Pillow's own font has no other letters.
        shown = text.encode("latin-1", "backslashreplace").decode("latin-1")
        draw.text((box[0] + 4, box[1] + 2), shown, fill="red")
    if args.output:
        picture.save(args.output)


def model_size(width: int, height: int, metadata: dict) -> tuple[int, int]:
    """The (width, height) that a picture is resized to.

    The short side becomes "min_size" pixels, or less if the long side would exceed "max_size". If
    "min_size" is 0, the picture keeps its size. A model with a fixed "size" takes only that size.
    """
    if metadata["size"]:
        fixed_height, fixed_width = metadata["size"]
        return fixed_width, fixed_height
    if metadata["min_size"] == 0:
        return width, height
    sides = np.array([width, height]) * (metadata["min_size"] / min(width, height))
    sides *= min(1, metadata["max_size"] / sides.max())
    return tuple(max(1, int(side + 0.5)) for side in sides)


if __name__ == "__main__":
    main()
