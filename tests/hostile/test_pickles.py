"""Pickles of arrays that ask for code, memory or what is none of a checkpoint's."""

import codecs
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from smca.checkpoints import read_checkpoint
from smca.checkpoints.arrays import read_pickle
from smca.errors import CheckpointError

# NumPy's own, which makes arrays in pickles.
RECONSTRUCT = np.zeros(0).__reduce__()[0]
PLAIN = (np.ndarray, (0,), b"b")


class Call:
    """In a pickle: a function, its arguments, and what is then put into its result."""

    def __init__(self, function, *arguments, state=None):
        self.parts = function, arguments, state

    def __reduce__(self):
        return self.parts


def array(shape, dtype, data):
    return Call(RECONSTRUCT, *PLAIN, state=(1, shape, dtype, False, data))


def refused(path, content, message):
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=4))
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path)
    assert message in str(error.value) and str(path) in str(error.value)
    assert len(str(error.value)) < 1000


WHERE = {
    "key": lambda payload: {"model": {"a": np.ones(1)}, payload: 1},
    "beside": lambda payload: {"model": {"a": np.ones(1)}, "trainer": [{"hooks": (payload,)}]},
    "shape": lambda payload: {"model": {"a": array((payload,), np.dtype("f4"), b"")}},
    "dtype": lambda payload: {"model": {"a": array((0,), Call(np.dtype, payload), b"")}},
    "data": lambda payload: {"model": {"a": array((0,), np.dtype("f4"), payload)}},
    "kind": lambda payload: {"model": {"a": Call(RECONSTRUCT, payload, (0,), b"b")}},
    "text": lambda payload: {"model": {"a": Call(codecs.encode, payload, "latin1")}},
}


@pytest.mark.parametrize("where", WHERE)
def test_no_code_runs_wherever_it_stands(tmp_path, payload, where):
    payload.__class__.__hash__ = object.__hash__
    refused(tmp_path / "a.pkl", WHERE[where](payload), "refused to load posix.mkdir")


@pytest.mark.parametrize(
    "name", ["builtins eval", "os system", "numpy load", "numpy fromfile", "torch load", "smca.a b"]
)
def test_only_arrays_have_functions(tmp_path, name):
    module, function = name.split()
    content = f"c{module}\n{function}\n(S'1'\ntR.".encode()
    refused(tmp_path / "a.pkl", content, f"refused to load {module}.{function}")
    content = f"(S'1'\ni{module}\n{function}\n.".encode()
    refused(tmp_path / "b.pkl", content, f"refused to load {module}.{function}")


FLOAT = np.dtype("f4")
BOMBS = {
    "numbered": (b"\x80\x02}r\xff\xff\xff\x7f.", "numbers objects that it does not have"),
    "hash": (b"\x80\x02})" + b"\x85" * 500_000 + b"K\x01s.", "more parts than any checkpoint"),
    "shape": ({"model": {"a": array((10**12,), FLOAT, b"1234")}}, "has 4 bytes"),
    "axes": ({"model": {"a": array((1,) * 10**5, FLOAT, b"1234")}}, "a shape that is none"),
    "repeated": ({"model": {"a": array(("a" * 10**6, 10**9), FLOAT, b"")}}, "a shape that is none"),
    "called": ({"model": {"a": Call(np.ndarray, (10**12,))}}, "not callable"),
    "subclass": ({"model": {"a": Call(RECONSTRUCT, np.matrix, (9,), b"b")}}, "refused to load"),
    "objects": (
        {"model": {"a": np.array([{}, []], dtype=object)}},
        "refused to load an array of 'O",
    ),
    "pointers": (
        {"model": {"a": Call(np.dtype, "O8", state=(3, "|", None, None, None, -1, -1, 0))}},
        "refused to load an array of 'O8'",
    ),
    "records": ({"model": {"a": np.zeros(2, [("x", "f4")])}}, "refused to load an array of 'V4'"),
    "text": ({"model": {"a": np.array(["a" * 9])}}, "refused to load an array of 'U9'"),
    "number": ({"model": {"a": Call(type(np.float32(0)).__reduce__(np.float32(0))[0])}}, "cannot"),
    "length": (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x0f.", "cannot be read"),
    "nested": (b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".", "holds a list"),
    "empty": (b"", "cannot be read"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_takes_little_memory(tmp_path, little_memory, bomb):
    content, message = BOMBS[bomb]
    with little_memory(1024):
        refused(tmp_path / "a.pkl", content, message)


def test_many_arrays_of_the_same_bytes_take_them_once(tmp_path, little_memory):
    data, text = bytes(2**20), "a" * 2**20
    arrays = {str(number): array((2**18,), FLOAT, data) for number in range(2000)}
    with little_memory(1024):
        refused(tmp_path / "a.pkl", {"model": arrays}, "larger than it is")
        texts = [Call(codecs.encode, text, "latin1") for _ in range(2000)]
        content = {"model": {"a": np.ones(1)}, "texts": texts}
        (tmp_path / "b.pkl").write_bytes(pickle.dumps(content))
        assert_close(read_checkpoint(tmp_path / "b.pkl")["model"]["a"], torch.ones(1).double())


KINDS = st.sampled_from(["f2", "f4", "f8", ">f4", ">i8", "i1", "i4", "u1", "b1"])


@settings(max_examples=200)
@given(
    kind=KINDS,
    shape=st.lists(st.integers(0, 4), max_size=4),
    order=st.sampled_from("CF"),
    protocol=st.integers(0, 4),
    seed=st.integers(0, 999),
)
def test_arrays_come_back_as_numpy_would_read_them(
    tmp_path_factory, kind, shape, order, protocol, seed
):
    numbers = np.random.default_rng(seed).integers(0, 2 if kind == "b1" else 100, shape)
    numbers = np.asarray(numbers, dtype=kind, order=order)
    path = tmp_path_factory.getbasetemp() / "array.pkl"
    scalar = np.float32(seed / 7)
    path.write_bytes(pickle.dumps({"model": {"a": numbers}, "n": scalar}, protocol=protocol))
    content = read_checkpoint(path)
    expected = torch.from_numpy(numbers.astype(np.dtype(kind).newbyteorder("=")))
    assert_close(content["model"]["a"], expected, rtol=0, atol=0)
    assert content["model"]["a"].dtype == expected.dtype and content["n"] == scalar


@settings(max_examples=400)
@given(data=st.data())
def test_damaged_bytes_are_read_or_refused(tmp_path_factory, data):
    content = {"model": {"stem.conv1.weight": np.ones((2, 3), "f4")}, "__author__": "me"}
    changed = bytearray(pickle.dumps(content, protocol=2))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(changed) - 1))
        changed[place] = data.draw(st.integers(0, 255))
    if data.draw(st.integers(0, 3)) == 0:
        del changed[place:]
    path = tmp_path_factory.getbasetemp() / "damaged.pkl"
    path.write_bytes(changed)
    try:
        found = read_checkpoint(path)["model"]
    except CheckpointError as error:
        assert str(path) in str(error)
    else:
        assert all(isinstance(tensor, torch.Tensor) for tensor in found.values())


def test_reading_leaves_the_reader_as_it_was(tmp_path):
    # A pickle may put things into the functions that it calls.
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x02c_codecs\nencode\n}(X\x01\x00\x00\x00aK\x01u}\x86b.")
    read_pickle(path)
    refused(path, pickle.dumps(Call(print, 1)), "refused to load builtins.print")
    path.write_bytes(pickle.dumps({"model": {"a": np.ones(2)}}, protocol=2))
    assert_close(read_checkpoint(path)["model"]["a"], torch.ones(2).double())
