"""Annotation files that are odd in bytes (``damaged``) or in what they say (``odd``)."""

import copy
import json

from hypothesis import strategies as st

CONTENT = {
    "info": {"description": "é"},
    "images": [
        {"id": 9, "file_name": "b.png", "height": 20, "width": 30},
        {"id": 4, "file_name": "a.png", "height": 40, "width": 10},
        {"id": -5, "file_name": "more/c.png", "height": 8, "width": 8},
    ],
    "categories": [
        {"id": 7, "name": "star"},
        {"id": 2, "name": "cross"},
        {"id": 90, "name": "a|b"},
    ],
    "annotations": [
        {"id": 1, "image_id": 9, "category_id": 7, "bbox": [1, 2.5, 3, 4], "iscrowd": 0},
        {"id": 2, "image_id": 9, "category_id": 2, "bbox": [5, 6, 7, 8], "iscrowd": 1, "area": 9},
        {"id": 3, "image_id": 4, "category_id": 2, "bbox": [0, 0, 9.5, 8]},
    ],
}
SECTIONS = ("images", "categories", "annotations")
KEYS = {
    "images": ("id", "file_name", "height", "width"),
    "categories": ("id", "name"),
    "annotations": ("image_id", "category_id", "bbox", "iscrowd", "area", "segmentation", "id"),
}


NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.sampled_from([0, -1, True, False, 10**12, 2**31, 2**63, 10**400, -(10**400), 1e308, -0.0]),
)
NAMES = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["", " ", ".", "..", "../a.png", "/etc/passwd", "more/../../a.png", "more/../a.png", "more"]
        + ["/dev/zero", "fifo", "a.png\0", "\x1b[2J", "star\n", "star", "\ud800", "x" * 5000, "~/a"]
        + ["<script>alert(1)</script>", "a|b", "$x$", "nö", "a//b.png", "./a.png", "A" * 300]
    ),
)
VALUES = st.one_of(
    NUMBERS,
    NAMES,
    st.none(),
    st.lists(st.one_of(NUMBERS, NAMES), max_size=5),
    st.lists(NUMBERS, min_size=4, max_size=4),
    st.dictionaries(NAMES, NUMBERS, max_size=2),
    st.just({"counts": "aaa", "size": [1, 1]}),
)


@st.composite
def odd(draw):
    """CONTENT with up to three changes."""
    content = copy.deepcopy(CONTENT)
    value = VALUES.map(copy.deepcopy)  # which a later change may change
    for _ in range(draw(st.integers(1, 3))):
        section = draw(st.sampled_from(SECTIONS))
        entries = content.get(section)
        if not isinstance(entries, list) or not entries or not draw(st.integers(0, 9)):
            content[section] = draw(value)
            continue
        place = draw(st.integers(0, len(entries) - 1))
        change = draw(st.sampled_from(["value"] * 4 + ["lack", "copy", "entry"]))
        if change == "entry":
            entries[place] = draw(value)
        elif change == "copy":
            entries.append(copy.deepcopy(entries[place]))
        elif isinstance(entries[place], dict):
            key = draw(st.sampled_from(KEYS[section]))
            if change == "lack":
                entries[place].pop(key, None)
            else:
                entries[place][key] = draw(value)
    return content


@st.composite
def damaged(draw):
    """The bytes of a file with up to four changes."""
    encoding = draw(st.sampled_from(["utf-8"] * 6 + ["utf-8-sig", "utf-16", "utf-32", "latin1"]))
    data = bytearray(json.dumps(CONTENT, ensure_ascii=False).encode(encoding))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(data)))
        change = draw(st.sampled_from(["flip", "flip", "cut", "put", "put", "take"]))
        if change == "flip" and place < len(data):
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif change == "cut":
            del data[place:]
        elif change == "take":
            del data[place : place + draw(st.integers(1, 40))]
        elif change == "put":
            pieces = [b"\0", b"\xff", b"NaN", b"-Infinity", b"1e999", b"[", b"}", b'"', b"9" * 5000]
            data[place:place] = draw(st.one_of(st.binary(max_size=4), st.sampled_from(pieces)))
    return bytes(data)


def encoded(content):
    return json.dumps(content).encode()


def at(path, value):
    """CONTENT with one value changed."""
    content = copy.deepcopy(CONTENT)
    *parents, last = path
    parent = content
    for key in parents:
        parent = parent[key]
    parent[last] = value
    return content
