"""Names in any script: a font that has them is found, or one warning and text that can be read."""

import json
import string
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.text import Text

from smca.analysis.runs import History
from smca.visualization import fonts
from smca.visualization.attention.figure import draw_co_attention
from smca.visualization.curves import draw_histories
from smca.visualization.detections import draw_detections

ROOT = Path(__file__).parents[2]
IMAGE = np.full((384, 384, 3), 200, np.uint8)


def write_font(path, characters):
    """A font whose characters are all solid squares."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 900), (900, 900), (900, 0)):
        pen.lineTo(corner)
    pen.closePath()
    square = pen.glyph()
    names = {ord(character): f"u{ord(character):x}" for character in characters}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names.values()])
    builder.setupCharacterMap(names)
    builder.setupGlyf({name: square for name in (".notdef", *names.values())})
    builder.setupHorizontalMetrics({name: (1000, 0) for name in (".notdef", *names.values())})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=900, usWinAscent=900, usWinDescent=100)
    builder.setupPost()
    path.parent.mkdir(parents=True, exist_ok=True)
    builder.save(path)
    return str(path)


def forget():
    fonts._told.clear()
    for function in (fonts.legible, fonts.font, fonts._codes, fonts._files):
        function.cache_clear()


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """``installed(name=characters)``: what the system has, beside a file that is no font."""

    def install(**others):
        (tmp_path / "a.ttf").write_text("no font")
        files = [str(tmp_path / "a.ttf")]
        for name, characters in others.items():
            files.append(write_font(tmp_path / f"{name}.ttf", f"{characters} 0123456789."))
        monkeypatch.setattr(font_manager, "findSystemFonts", lambda: files[::-1])
        forget()
        return files[1:]

    yield install
    forget()


def test_each_name_has_a_font_with_its_characters(installed, caplog):
    bold, plain, _ = installed(abold="猫犬", cjk="猫犬", other="一")
    own = str(Path(fonts._files()[0]))
    names = ("cat", "Hühnchen", "собака", "猫", "犬猫", "\u200d猫")
    assert fonts.legible(names) == list(zip(names, [None, own, own, *[plain] * 3], strict=True))
    assert bold and not caplog.messages


def test_names_without_a_font_are_escaped_with_one_warning(installed, caplog):
    installed(other="一")
    own = fonts._files()[0]
    names = ("猫 ü", "猫一", "犬")
    for _ in range(2):
        expected = [("\\u732b ü", own), ("\\u732b\\u4e00", own), ("\\u72ac", own)]
        assert fonts.legible(names) == expected
        draw_detections(IMAGE, [[9, 99, 200, 200]], [0], [0.5], names)
        draw_co_attention(IMAGE, [["no 猫"]], row_titles=["犬"])
    (message,) = caplog.messages
    assert "no font here has 一犬猫, which" in message and "install one that has" in message


def test_pictures_show_the_font(installed):
    """Its characters are squares of eleven pixels."""
    installed(cjk="猫犬鳥")
    picture = np.asarray(draw_detections(IMAGE, [[60, 99, 300, 300]], [0], None, ["猫犬鳥"]))
    size = int((picture == 0).all(axis=2)[:98].sum())
    assert 3 * 11**2 <= size <= 3 * 12**2


def test_figures_have_the_font_and_no_warning(installed, recwarn):
    (file,) = installed(cjk=f"猫{string.printable[:95]}")
    runs = [History("猫", {"bbox/AP": ([1, 2], [1.0, 1.0]), "total_loss": ([1, 2], [3, 2])})]
    titles = {"row_titles": ["猫"], "column_titles": ["猫"]}
    for figure in (draw_histories(runs), draw_co_attention(IMAGE, [["no 猫"]], **titles)):
        figure.canvas.draw()
        named = [text for text in figure.findobj(Text) if "猫" in text.get_text()]
        assert named and {text.get_fontproperties().get_file() for text in named} == {file}
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


@pytest.mark.slow
def test_a_font_that_a_user_installs_is_found_on_a_narrow_terminal(
    start_program, shapes, tmp_path, monkeypatch
):
    """Also where Matplotlib's list of fonts is older, and the terminal cannot show the name."""
    content = json.loads(Path(shapes["val"][0]).read_text())
    for category, name in zip(content["categories"], "猫犬鳥", strict=True):
        category["name"] = name
    (tmp_path / "val.json").write_text(json.dumps(content))
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    write_font(tmp_path / "share/fonts/mine.ttf", "猫犬 0123456789.")
    flags = ["--json", tmp_path / "val.json", "--images", shapes["val"][1], "--output", tmp_path]
    printed = start_program(*flags, script=ROOT / "tools/check_dataset.py").done()
    assert "\n  \\u732b" in printed
    assert "no font here has \\u9ce5, which" in printed
