from __future__ import annotations

import pytest
import torch

from sftn_fast.config import ConfigError
from sftn_fast.data.splits import balanced_choice, balanced_order, train_val_indices

EVEN = torch.arange(1000) % 10
UNEVEN = torch.repeat_interleave(torch.arange(4), torch.tensor([5, 50, 1, 44]))  # 100 images


def class_counts(labels, index):
    return torch.bincount(labels[index], minlength=int(labels.max()) + 1).tolist()


@pytest.mark.parametrize("labels", [EVEN, UNEVEN, torch.zeros(7, dtype=torch.int64), torch.tensor([3, 1])])
def test_the_order_is_a_permutation(labels):
    assert balanced_order(labels, "test").sort().values.tolist() == list(range(len(labels)))


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 250, 999, 1000])
def test_choices_are_balanced(size):
    counts = class_counts(EVEN, balanced_choice(EVEN, size, "test"))
    assert sum(counts) == size
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
    ("size", "counts"), [(4, [1, 1, 1, 1]), (16, [5, 5, 1, 5]), (46, [5, 20, 1, 20]), (100, [5, 50, 1, 44])]
)
def test_a_class_that_runs_out_is_made_up_for_by_the_others(size, counts):
    assert class_counts(UNEVEN, balanced_choice(UNEVEN, size, "test")) == counts


def test_smaller_choices_are_subsets_of_larger_ones():
    small, large = (set(balanced_choice(EVEN, size, "test").tolist()) for size in (37, 480))
    assert small < large


def test_the_purpose_decides_the_choice():
    first, again, other = (balanced_choice(EVEN, 100, purpose) for purpose in ("a", "a", "b"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_choice_is_not_simply_the_first_images():
    assert balanced_choice(EVEN, 100, "test").float().mean() > 300


@pytest.mark.parametrize(("train_size", "val_size"), [(None, 0), (None, 200), (300, 0), (300, 200), (800, 200)])
def test_train_and_val_are_disjoint_balanced_and_ascending(train_size, val_size):
    train, val = train_val_indices(EVEN, train_size, val_size)
    assert len(train) == (train_size or 1000 - val_size)
    assert len(val) == val_size
    assert not set(train.tolist()) & set(val.tolist())
    for index in (train, val):
        assert index.tolist() == sorted(index.tolist())
        assert len(set(class_counts(EVEN, index))) == 1


def test_the_validation_images_do_not_depend_on_the_training_ones():
    assert torch.equal(train_val_indices(EVEN, None, 200)[1], train_val_indices(EVEN, 50, 200)[1])


@pytest.mark.parametrize(
    ("train_size", "val_size", "message"),
    [
        (1001, 0, r"data.train_size must be at most 1000 .*, got 1001"),
        (801, 200, r"data.train_size must be at most 800 \(1000 images less data.val_size=200\), got 801"),
        (None, 999, r"data.val_size must be at most 998 .*, got 999"),
        (None, 1000, r"data.val_size must be at most 998 .*, got 1000"),
        (2, 5000, r"data.val_size must be at most 998 .*, got 5000"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(train_size, val_size, message):
    with pytest.raises(ConfigError, match=message):
        train_val_indices(EVEN, train_size, val_size)
