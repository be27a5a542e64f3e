"""The pool of state rows: gather copies rows, scatter writes rows, clear zeros one row."""

import numpy as np
import pytest
import torch

from service.runtime.state_pool import StatePool


@pytest.fixture
def pool():
    """Five rows of three values; row r holds r + 1 three times."""
    pool = StatePool(5, 3, torch.device("cpu"))
    pool.scatter(torch.arange(5), (torch.arange(5.0)[:, None] + 1).expand(5, 3).contiguous())
    return pool


def rows(pool, *slots):
    """Returns the first value of each row at slots."""
    return pool.gather(torch.tensor(slots, dtype=torch.int64))[:, 0].tolist()


def test_a_fresh_pool_is_zeros():
    """Every row of a new pool is zeros."""
    assert not StatePool(5, 3, torch.device("cpu")).gather(torch.arange(5)).any()


def test_gather_takes_rows_in_the_order_asked(pool):
    """Rows come in the order of the slots."""
    assert rows(pool, 4, 0, 2) == [5, 1, 3]
    assert pool.gather(torch.tensor([1])).shape == (1, 3)


def test_gather_copies(pool):
    """A change of gathered rows does not change the pool."""
    pool.gather(torch.tensor([1, 2])).zero_()
    assert rows(pool, 1, 2) == [2, 3]


def test_scatter_writes_its_rows_alone(pool):
    """Only the named rows change."""
    pool.scatter(torch.tensor([3, 1]), torch.full((2, 3), 9.0))
    assert rows(pool, 0, 1, 2, 3, 4) == [1, 9, 3, 9, 5]


def test_scatter_of_nothing_changes_nothing(pool):
    """A scatter without rows is allowed."""
    pool.scatter(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3))
    assert rows(pool, 0, 1, 2, 3, 4) == [1, 2, 3, 4, 5]


def test_clear_zeros_one_row(pool):
    """A cleared row is zeros; the other rows are unchanged."""
    pool.clear(2)
    assert rows(pool, 1, 2, 3) == [2, 0, 4]


def test_memory_is_taken_as_rows_are_written():
    """A pool of 8 GB of rows takes next to no memory before rows are written."""
    pool = StatePool(1_000_000, 2048, torch.device("cpu"))
    pool.scatter(torch.tensor([999_999]), torch.ones(1, 2048))
    assert np.isclose(rows(pool, 999_999)[0], 1.0)
