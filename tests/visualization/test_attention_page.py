import base64
import io
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from smca.visualization.attention.page import Column, write_co_attention
from smca.visualization.attention.views import AttentionView, Detection


class Page(HTMLParser):
    """The pictures, table cells and texts of a page, and every place it points to."""

    def __init__(self, path):
        super().__init__()
        self.pictures, self.references, self.rows, self.texts, self.open = [], [], [], [], []
        text = path.read_text(encoding="utf-8")
        assert "url(" not in text and "@import" not in text
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        assert tag not in ("script", "link", "iframe", "base", "object", "embed")
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        for name, value in attributes:
            if name in ("src", "href", "srcset", "action", "data", "poster", "background"):
                self.references.append(value)
        if tag == "img":
            head, _, data = dict(attributes)["src"].partition("base64,")
            assert head == "data:image/png;"
            self.pictures.append(Image.open(io.BytesIO(base64.b64decode(data, validate=True))))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if self.open[-1:] in (["td"], ["th"]):
            self.rows[-1].append(data)


def test_text_of_the_user_stays_text(tmp_path):
    view = AttentionView(layer=0, maps=np.ones((1, 2, 2)), steps=np.array([8.0, 8.0]), strides=(8,))
    name = '<b>dog</b> & "more"'
    found = Detection(query=0, class_name=name, score=0.5, box=np.array([0.0, 0, 9, 9]))
    image = np.full((16, 16, 3), 255, dtype=np.uint8)
    columns = [Column(f"{number} < 3", "<td>", "a&b", [(found, [view])]) for number in range(2)]
    page = Page(write_co_attention(tmp_path, "a < b.png", image, columns)[1])
    assert len(page.pictures) == len(page.references) == 1
    assert [row[1:5] for row in page.rows[1:]] == [
        [f"{number} < 3", "0", "0", name] for number in range(2)
    ]
    texts = {"Co-attention in a < b.png", f"a < b.png: {name}, layer 0", "0 < 3: <td>, a&b"}
    assert texts <= set(page.texts)


def test_objects_and_layers_of_several_models(tmp_path):
    rng = np.random.default_rng(0)
    view = AttentionView(
        layer=0,
        maps=rng.random((2, 3, 4)),
        steps=np.array([32.0, 32.0]),
        strides=(16, 32),
        scale_weights=np.array([0.25, 0.75]),
    )
    views = [view, replace(view, layer=1)]
    found = Detection(query=4, class_name="dog", score=0.8125, box=np.array([8.0, 9, 70, 60]))
    cat = replace(found, class_name="cat", query=5)
    columns = [
        Column("ours", "a.yaml", "a.pth", [(found, views), (cat, views)]),
        Column(
            "theirs",
            "b.yaml",
            "b.pth",
            [(replace(found, query=9, overlap=0.5), views[:1]), "no cat here"],
        ),
    ]
    image = rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)
    written = write_co_attention(tmp_path / "out", "photos/street.jpg", image, columns)
    assert [path.name for path in written] == ["street_attention.png", "street_attention.html"]
    page = Page(written[1])
    # One a row of the whole picture: 2 objects in 2 layers.
    assert len(page.pictures) == len(page.references) == 4
    with Image.open(written[0]) as whole:
        assert whole.width == page.pictures[0].width
        assert whole.height > 3 * page.pictures[0].height
    assert len(page.rows) == 1 + 2 * 2 * 2
    assert page.rows[1][:6] == ["1", "ours", "0", "4", "dog", "0.812"]
    assert page.rows[1][-1] == "1/16: 0.250, 1/32: 0.750"
    assert "0.500" in page.rows[2] and "this model has 1 layers" in page.rows[4]
    assert "no cat here" in page.rows[6]
    captions = [text for text in page.texts if text.startswith("photos/street.jpg: ")]
    assert captions == [
        f"photos/street.jpg: {name}, layer {layer}" for name in ("dog", "cat") for layer in (0, 1)
    ]
    expected = "ours: a.yaml, a.pth: decoder layer 0, query 4, class dog, score 0.812"
    assert any(text.startswith(expected) for text in page.texts)


def test_one_model_has_no_name(tmp_path):
    view = AttentionView(layer=5, maps=np.ones((1, 2, 2)), steps=np.array([8.0, 8.0]), strides=(8,))
    found = Detection(query=0, class_name="dog", score=0.5, box=np.array([0.0, 0, 9, 9]))
    image = np.zeros((16, 16, 3), dtype=np.uint8)
    column = Column("", "a.yaml", "a.pth", [(found, [view])])
    page = Page(write_co_attention(tmp_path, "dog.png", image, [column])[1])
    assert len(page.pictures) == 1
    assert "a.yaml, a.pth" in page.texts and "dog.png: dog 50%, layer 5" in page.texts
