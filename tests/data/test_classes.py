"""Classes are compared by their names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smca.data.classes import (
    check_test_classes,
    dataset_labels,
    distinct,
    lacking,
    positions,
    training_labels,
)
from smca.errors import DatasetError

NAMES = st.lists(st.text("abc", min_size=1, max_size=2), max_size=8)


@given(NAMES, NAMES)
def test_positions_are_those_of_the_same_names(names, among):
    """Names that repeat count as the first, the second, ... of that name."""
    unique, others = distinct(names), distinct(among)
    found = positions(names, among).tolist()
    assert found == [others.index(n) if n in others else -1 for n in unique]
    assert lacking(names, among) == [n for n, place in zip(names, found, strict=True) if place < 0]


def test_labels_of_a_dataset_with_other_classes(caplog):
    known = ("cat", "dog", "bird")
    assert dataset_labels("val", ("dog", "bird", "cat"), known).tolist() == [2, 0, 1]
    assert not caplog.messages
    assert dataset_labels("val", ("a", "b", "c"), 3).tolist() == [0, 1, 2]
    assert "names are not known: those of val are taken, in their order" in caplog.text
    caplog.clear()
    assert dataset_labels("val", ("cow", "dog"), known).tolist() == [-1, 1, -1]
    left_out, missed = caplog.messages
    assert left_out.startswith("val lacks these classes of the model") and "cat, bird" in left_out
    assert "does not know, whose objects count as missed: cow" in missed
    with pytest.raises(DatasetError, match="classes cow, the model knows cat, dog, bird: none"):
        dataset_labels("val", ("cow",), known)
    with pytest.raises(DatasetError, match=r"'val' has 2 classes \(a, b\), the model 3 whose"):
        dataset_labels("val", ("a", "b"), 3)


def test_training_and_test_sets_with_other_classes():
    labels = training_labels({"one": ("a", "b"), "two": ("b", "a")})
    assert labels["one"].tolist() == [0, 1] and labels["two"].tolist() == [1, 0]
    for second, told in (
        (("a",), "dataset 'two' lacks the classes b of dataset 'one'"),
        (("a", "b", "c"), "dataset 'one' lacks the classes c of dataset 'two'"),
    ):
        with pytest.raises(DatasetError, match=told):
            training_labels({"one": ("a", "b"), "two": second})
    check_test_classes("val", ("b",), ("a", "b"))
    told = "DATASETS.TRAIN lacks the classes c of the test set 'val'; add them to 'categories'"
    with pytest.raises(DatasetError, match=told):
        check_test_classes("val", ("b", "c"), ("a", "b"))
