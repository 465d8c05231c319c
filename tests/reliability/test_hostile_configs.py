"""Config files and command lines that ask for code, or are damaged, or are not a config."""

import os

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

import smca
from smca.config import ConfigError, flatten, load_cfg, read_config_file

FILES = {
    "list": ("- VERSION\n", "holds a list"),
    "text": ("just text\n", "holds a str"),
    "two": ("VERSION: 2\n---\nVERSION: 2\n", "line 2 "),
    "twice": ("VERSION: 2\nSOLVER: {MAX_ITER: 1}\nSOLVER: {MAX_ITER: 2}\n", "line 3 .*'SOLVER'"),
    "number key": ("1: 2\n", "unknown config key 1 in"),
    "list key": ("[1, 2]: 2\n", "line 1 .*unhashable key"),
    "yes key": ("VERSION: 2\non: 2\n", "unknown config key True in"),
    "empty value": ("SOLVER:\n  MAX_ITER:\n", r"SOLVER\.MAX_ITER in .* has no value"),
    "empty group": ("SOLVER:\n", r"SOLVER in .* is a group of keys; set a key, such as SOLVER\."),
    "no value": ('SOLVER: {MAX_ITER: "None"}\n', r"SOLVER\.MAX_ITER in .* has no value"),
    "day": ("VERSION: 2026-99-99\n", "cannot be read"),
    "digits": ("SOLVER: {MAX_ITER: " + "9" * 5000 + "}\n", "cannot be read"),
    "own tag": ("VERSION: !mine 3\n", "line 1 .*!mine"),
    "set": ("DATASETS: {TRAIN: !!set {a}}\n", r"DATASETS"),
    "group": ("MODEL: 3\n", "MODEL in .* is a group of keys"),
    "below a value": ("SOLVER: {MAX_ITER: {a: 1}}\n", r"unknown config key SOLVER\.MAX_ITER\.a"),
    "utf-8": (b"OUTPUT_DIR: \xff\xfe\n", "cannot be read"),
    "zero": (b"OUTPUT_DIR: a\0b\n", "cannot be read"),
    "binary": (bytes(range(256)), "cannot be read"),
}


def refused(path, message, opts=()):
    with pytest.raises(ConfigError, match=message) as error:
        load_cfg(smca.get_cfg(), str(path), opts)
    assert len(str(error.value)) < 1500 and len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_config_are_named(tmp_path, name):
    text, message = FILES[name]
    path = tmp_path / "bad.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert "bad.yaml" in refused(path, message)
    # And as a base of another file.
    (tmp_path / "good.yaml").write_text("_BASE_: bad.yaml\n")
    refused(tmp_path / "good.yaml", message)


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.yaml"
    path.write_text("VERSION: 2\n")

    def refuse(*_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", refuse)
    assert "Permission denied" in refused(path, r"a\.yaml cannot be read")


def test_a_key_may_change_one_that_is_merged_in(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("A: &a {X: 1, Y: 2}\nB: {<<: *a, X: 3}\n")
    assert read_config_file(path) == {"A.X": 1, "A.Y": 2, "B.X": 3, "B.Y": 2}


def test_an_empty_file_has_the_defaults(tmp_path):
    (tmp_path / "a.yaml").write_text("# nothing\n")
    assert load_cfg(smca.get_cfg(), str(tmp_path / "a.yaml")) == smca.get_cfg()


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.mkdir ['{made}']",
        "!!python/object/new:os.mkdir ['{made}']",
        "!!python/object:os.mkdir {{}}",
        "!!python/name:os.mkdir",
        "!!python/module:os",
        "!!python/tuple [!!python/object/apply:os.mkdir ['{made}']]",
        "&a [!!python/object/apply:os.mkdir ['{made}'], *a]",
    ],
)
def test_no_code_runs_wherever_it_stands(tmp_path, payload, tag):
    path = tmp_path / "evil.yaml"
    value = tag.format(made=payload.path)
    for text in (f"OUTPUT_DIR: {value}\n", f"? {value}\n: 1\n", f"{value}\n", f"_BASE_: {value}\n"):
        path.write_text(text)
        assert "evil.yaml, line 1 " in refused(path, "cannot be read")
        (tmp_path / "harmless.yaml").write_text("_BASE_: [evil.yaml]\n")
        assert "evil.yaml, line 1 " in refused(tmp_path / "harmless.yaml", "cannot be read")
        with pytest.raises(ConfigError, match=r"evil\.yaml, line 1 "):
            read_config_file(path)
        with pytest.raises(ConfigError, match=r"evil\.yaml, line 1 "):
            smca.Predictor(path)


def test_bases_that_lead_back_or_nowhere_are_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    path = tmp_path / "a.yaml"
    (tmp_path / "b.yaml").write_text("_BASE_: a.yaml\n")
    for base in ("a.yaml", "b.yaml", "[./a.yaml, a.yaml]"):
        path.write_text(f"_BASE_: {base}\n")
        refused(path, r"a\.yaml leads back to itself by _BASE_")
    bases = ("none.yaml", "/dev/zero", "fifo", ".", "''", "https://example.com/a.yaml", '"a\\0b"')
    for base in (*bases, "3", "{a: b}", "[[a.yaml]]", "null", "~nobody/a.yaml"):
        path.write_text(f"_BASE_: {base}\n")
        refused(path, r"a\.yaml has _BASE_ ")


def test_bases_are_taken_as_detectron2_takes_them(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.yaml").write_text("_BASE_: [../b.yaml, c.yaml]\nSEED: 3\n")
    (tmp_path / "b.yaml").write_text("SEED: 1\nSOLVER: {MAX_ITER: 5, GAMMA: 0.5}\n")
    (tmp_path / "sub/c.yaml").write_text(f"_BASE_: {tmp_path}/b.yaml\nSOLVER: {{GAMMA: 0.25}}\n")
    read = read_config_file(str(tmp_path / "sub/a.yaml"))
    assert read == {"SEED": 3, "SOLVER.MAX_ITER": 5, "SOLVER.GAMMA": 0.25}
    theirs = type(smca.get_cfg()).load_yaml_with_base(str(tmp_path / "sub/a.yaml"))
    assert read == flatten(theirs)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.STEPS", "{[]: 1}"),
        ("SOLVER.STEPS", "__import__('os').system('exit')"),
        ("SOLVER.MAX_ITER", "9**9**9"),
        ("SOLVER.MAX_ITER", "None"),
        ("SOLVER.MAX_ITER", "True"),
        ("SOLVER.MAX_ITER", "1e3"),
        ("SOLVER.MAX_ITER", "\0"),
        ("SOLVER.BASE_LR", "x"),
        ("SOLVER.BASE_LR", [1]),
        ("OUTPUT_DIR", "None"),
        ("_BASE_", "a.yaml"),
        ("MODEL", "{}"),
        ("", ""),
        (".", "1"),
    ],
)
def test_wrong_values_of_the_command_line_are_refused(key, value):
    message = refused("", "SOLVER|OUTPUT_DIR|key|command line", [key, value])
    assert key.rpartition(".")[2] in message or "command line" in message


SCRAPS = ["<<: ", "!!int ", "!!str ", "\t", ": ", "- ", "? ", "|\n", "%YAML 9\n", "\0"]
SCRAPS += ["{", "}", "[", "'", '"', "#", "é", "\x85", "null", ".nan", "1e9999", "---\n", "  "]


@settings(max_examples=300)
@given(data=st.data())
def test_damaged_files_are_read_or_refused(tmp_path_factory, data):
    text = "_BASE_: []\nMODEL:\n  SMCA: {NHEADS: 4, DROPOUT: 0.5}\nOUTPUT_DIR: out\nSEED: 1\n"
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(text)))
        scrap = data.draw(st.one_of(st.sampled_from(SCRAPS), st.text(max_size=3)))
        text = text[:place] + scrap + text[place + data.draw(st.integers(0, 3)) :]
    path = tmp_path_factory.getbasetemp() / "damaged.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    defaults = flatten(smca.get_cfg())
    try:
        loaded = flatten(load_cfg(smca.get_cfg(), str(path)))
    except ConfigError as error:
        assert len(str(error)) < 1500
        assert "damaged.yaml" in str(error)
    else:
        assert {key: type(value) for key, value in loaded.items()} == {
            key: type(value) for key, value in defaults.items()
        }


@settings(max_examples=200)
@given(
    key=st.sampled_from(sorted(flatten(smca.get_cfg()))),
    value=st.one_of(
        st.text(max_size=12),
        st.integers().map(str),
        st.floats().map(str),
        st.recursive(st.integers(0, 9), st.lists, max_leaves=5).map(str),
    ),
)
@example(key="SEED", value="0x10")
def test_values_keep_the_type_of_their_key(key, value):
    default = flatten(smca.get_cfg())[key]
    try:
        cfg = load_cfg(smca.get_cfg(), opts=[key, value])
    except ConfigError as error:
        assert key in str(error) or "command line" in str(error)
    else:
        kinds = (type(default), float) if default is None else (type(default),)
        assert type(flatten(cfg)[key]) in kinds
        assert yaml.safe_load(cfg.dump())
