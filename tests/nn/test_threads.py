import threading

import pytest
import torch

from fourm_lite.nn.device import ALL_FROM, threads_for


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def seen(rows):
    with threads_for(rows):
        return torch.get_num_threads()


def in_new_thread(read):
    found = []
    thread = threading.Thread(target=lambda: found.append(read()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize(("rows", "count"), [(1, 1), (ALL_FROM - 1, 1), (ALL_FROM, 2)])
def test_few_rows_take_one_thread_and_many_take_all(two_threads, rows, count):
    with torch.inference_mode():
        assert seen(rows) == count
    assert torch.get_num_threads() == 2


def test_a_thread_that_starts_meanwhile_keeps_the_callers_number(two_threads):
    with torch.inference_mode(), threads_for(1):
        assert torch.get_num_threads() == 1
        assert in_new_thread(torch.get_num_threads) == 2


def test_the_number_comes_back_after_an_error_and_from_nested_blocks(two_threads):
    def failing():
        with torch.inference_mode(), threads_for(1):
            assert seen(1) == 1
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        failing()
    assert torch.get_num_threads() == 2


def test_training_keeps_its_threads(two_threads):
    assert seen(1) == 2


def test_products_are_the_same_on_one_thread(two_threads):
    x, weight = torch.randn(16, 64), torch.randn(64, 64)
    with torch.inference_mode():
        all_threads = x @ weight
        with threads_for(len(x)):
            one = x @ weight
    torch.testing.assert_close(one, all_threads)
