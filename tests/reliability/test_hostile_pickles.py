"""Pickles of arrays that ask to run code, or hold something other than numbers."""

import codecs
import pickle

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from smca.checkpoints import read_checkpoint
from smca.errors import CheckpointError

# NumPy's own function, which makes arrays in pickles.
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


def dtype_with(kind, flags):
    """A type that says of its numbers, or does not say, that they are addresses of objects."""
    return Call(np.dtype, kind, False, True, state=(3, "<", None, None, None, -1, -1, flags))


OTHERS = {
    "shape": (array((10**12,), FLOAT, b"1234"), "cannot be read"),
    "axes": (array((1,) * 10**5, FLOAT, b"1234"), "cannot be read"),
    "called": (Call(np.ndarray, (9,)), "not callable"),
    "subclass": (Call(RECONSTRUCT, np.matrix, (9,), b"b"), "refused to load"),
    "objects": (np.array([{}, []], dtype=object), "refused to load an array of 'O"),
    "addresses": (array((3,), dtype_with("O8", 0), b"A" * 24), "refused to load an array of 'O8'"),
    "records": (np.zeros(2, [("x", "f4")]), "refused to load an array of 'V4'"),
    "text": (np.array(["a" * 9]), "refused to load an array of 'U9'"),
    "number": (Call(type(np.float32(0)).__reduce__(np.float32(0))[0]), "cannot be read"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_things_than_numbers_are_refused(tmp_path, kind):
    content, message = OTHERS[kind]
    refused(tmp_path / "a.pkl", {"model": {"a": content}}, message)


def test_numbers_stay_numbers_whatever_their_type_says(tmp_path):
    # NumPy itself would take the flags, and these numbers for addresses.
    content = array((3,), dtype_with("f8", 63), np.ones(3).tobytes())
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": {"a": content}}))
    assert_close(read_checkpoint(tmp_path / "a.pkl")["model"]["a"], torch.ones(3).double())


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


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_are_read_or_refused(tmp_path_factory, little_memory, data):
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
        with little_memory(1024):  # damaged numbers may ask for any amount
            found = read_checkpoint(path)["model"]
    except CheckpointError as error:
        assert str(path) in str(error)
    else:
        assert all(isinstance(tensor, torch.Tensor) for tensor in found.values())
