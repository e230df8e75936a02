"""Order of an epoch: divided among ranks, shuffled, resumable; the source returns indices."""

from collections.abc import Iterable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from synflow_pl.data.loader import Batch, Key, Loader, batch_sizes


class Indices:
    """Source whose "images" are their random numbers and whose labels are their indices."""

    def __init__(self, count: int) -> None:
        self.labels = torch.arange(count)

    def read(self, keys: Iterable[Key]) -> Iterator[Batch]:
        for indices, numbers in keys:
            yield (torch.full_like(indices, -1) if numbers is None else numbers), indices


def loader(count: int = 10, batch_size: int = 4, **options: object) -> Loader:
    return Loader(
        Indices(count),
        torch.arange(count),
        batch_size,
        **{"shuffle": True, "augment": True, **options},
    )  # type: ignore[arg-type]


def epoch(of: Loader) -> list[list[int]]:
    return [labels.tolist() for _, labels in of]


# -- sizes of the batches


@pytest.mark.parametrize(
    ("count", "batch_size", "ranks", "expected"),
    [
        (10, 4, 1, [4, 4, 2]),
        (8, 4, 1, [4, 4]),
        (1, 4, 1, [1]),
        (10, 4, 2, [4, 4, 2]),
        (9, 4, 2, [4, 5]),  # one image cannot be divided between two ranks
        (11, 4, 2, [4, 4, 3]),
        (5, 2, 2, [2, 3]),
        (3, 4, 2, [3]),
    ],
)
def test_an_epoch_is_divided_into_batches(
    count: int, batch_size: int, ranks: int, expected: list[int]
) -> None:
    assert batch_sizes(count, batch_size, ranks) == expected


def test_fewer_images_than_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="3 images cannot be shared by 4 devices"):
        loader(3, 4, ranks=4)


@given(st.integers(1, 200), st.integers(1, 8), st.integers(1, 5), st.integers(0, 3))
def test_ranks_divide_an_epoch_without_overlap_or_loss(
    count: int, each: int, ranks: int, number: int
) -> None:
    if count < ranks:
        return
    shares = []
    for rank in range(ranks):
        of = loader(count, each * ranks, rank=rank, ranks=ranks)
        of.set_epoch(number)
        shares.append(epoch(of))
        assert len(of) == len(shares[-1])
    assert sorted(image for share in shares for batch in share for image in batch) == list(
        range(count)
    )
    assert len({len(share) for share in shares}) == 1
    for batches in zip(*shares, strict=True):
        lengths = [len(batch) for batch in batches]
        assert max(lengths) - min(lengths) <= 1
        assert min(lengths) >= 1
    totals = [sum(map(len, share)) for share in shares]
    assert max(totals) - min(totals) <= 1


def test_the_batches_of_two_ranks_together_equal_those_of_one() -> None:
    whole = epoch(loader(22, 4))
    halves = [epoch(loader(22, 4, rank=rank, ranks=2)) for rank in range(2)]
    assert [sorted(left + right) for left, right in zip(*halves, strict=True)] == [
        sorted(batch) for batch in whole
    ]


# -- order


def test_an_epoch_has_another_order_and_other_random_numbers_than_the_one_before() -> None:
    of = loader(100, 10)
    first, second = ([(numbers, labels) for numbers, labels in of] for _ in range(2))
    assert of.epoch == 2
    orders = [torch.cat([labels for _, labels in batches]) for batches in (first, second)]
    assert orders[0].tolist() != orders[1].tolist()
    numbers = [
        torch.cat([n for n, _ in batches])[order.argsort()]
        for batches, order in zip((first, second), orders, strict=True)
    ]
    assert not (numbers[0] == numbers[1]).any()


def test_set_epoch_selects_an_epoch_by_its_number() -> None:
    by_hand, other = loader(100, 10), loader(100, 10)
    epoch(by_hand)
    other.sampler.set_epoch(1)
    assert epoch(other) == epoch(by_hand)


def test_an_iterator_that_is_created_before_set_epoch_uses_the_epoch() -> None:
    of, other = loader(100, 10), loader(100, 10)
    early = iter(of)
    of.set_epoch(5)
    other.set_epoch(5)
    assert torch.equal(next(early)[1], next(iter(other))[1])


def test_without_shuffling_images_are_in_order_and_not_augmented() -> None:
    of = loader(6, 4, shuffle=False, augment=False)
    assert epoch(of) == epoch(of) == [[0, 1, 2, 3], [4, 5]]
    assert all((numbers == -1).all() for numbers, _ in of)


def test_another_seed_gives_another_order() -> None:
    assert epoch(loader(100, 10, seed=1)) != epoch(loader(100, 10))


# -- state


def same(left: list[tuple[Tensor, Tensor]], right: list[tuple[Tensor, Tensor]]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in zip(left, right, strict=True)
    )


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("number", [0, 3])
def test_a_loader_resumes_where_another_stopped(stop: int, number: int) -> None:
    whole = loader(10, 2)
    whole.set_epoch(number)
    expected = list(whole)
    assert whole.epoch == number + 1

    first = loader(10, 2)
    first.set_epoch(number)
    batches = iter(first)
    for _ in range(stop):
        next(batches)
    state = first.state_dict()
    assert (state["epoch"], state["batch"]) == (number, stop)

    second = loader(10, 2)
    second.load_state_dict(state)
    assert len(second) == 5  # the length is that of the whole epoch, which Lightning expects
    assert same(list(second), expected[stop:])
    assert same(list(second), list(whole))  # the next epoch is complete


def test_a_new_epoch_begins_at_its_first_batch_after_a_restored_state() -> None:
    first = loader(10, 2)
    next(iter(first))
    second, fresh = loader(10, 2), loader(10, 2)
    second.load_state_dict(first.state_dict())
    for of in (second, fresh):
        of.set_epoch(1)
    assert same(list(second), list(fresh))


def test_a_restored_state_applies_to_one_epoch_only() -> None:
    first = loader(10, 2)
    next(iter(first))
    second = loader(10, 2)
    second.load_state_dict(first.state_dict())
    abandoned = iter(second)
    next(abandoned)
    assert len(list(second)) == 5


@pytest.mark.parametrize("other", [{"batch_size": 5}, {"seed": 1}, {"count": 12}])
def test_resuming_within_an_epoch_of_other_settings_is_refused(other: dict[str, int]) -> None:
    first = loader(10, 2)
    next(iter(first))
    second = loader(**{"count": 10, "batch_size": 2, **other})  # type: ignore[arg-type]
    second.load_state_dict(first.state_dict())
    with pytest.raises(
        ValueError,
        match=r"stopped after batch 1 of an epoch with images 10, batch_size 2, seed 0,"
        " and this run has",
    ):
        next(iter(second))


def test_resuming_after_an_epoch_with_another_batch_size_is_allowed() -> None:
    first = loader(10, 2)
    list(first)
    second = loader(10, 5)
    second.load_state_dict(first.state_dict())
    assert len(epoch(second)) == 2
