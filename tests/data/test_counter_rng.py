import torch

from synflow_pl.data.counter_rng import _INCREMENT, _mix, permutation, random_numbers

IMAGES = torch.arange(20_000)


def test_the_mixer_is_splitmix64() -> None:
    # The first numbers of the published generator for the seed 1234567.
    state, found = torch.tensor([1234567]), []
    for _ in range(3):
        state = state + _INCREMENT
        found.append(int(_mix(state)) % 2**64)
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_a_random_number_is_a_function_of_seed_epoch_and_image() -> None:
    whole = random_numbers(3, 7, IMAGES)
    some = torch.tensor([17, 5, 19_999, 5])
    assert torch.equal(random_numbers(3, 7, some), whole[some])
    assert whole.unique().numel() == len(IMAGES)
    for other in (
        random_numbers(4, 7, IMAGES),
        random_numbers(3, 8, IMAGES),
        random_numbers(3 + 2**40, 7, IMAGES),
    ):
        assert not (other == whole).any()


def test_random_numbers_leave_the_global_generator_unchanged() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    random_numbers(0, 0, IMAGES), permutation(0, 0, 10)
    assert torch.equal(torch.rand(1), expected)


def test_every_bit_of_a_random_number_is_set_half_the_time() -> None:
    numbers = random_numbers(0, 0, IMAGES)
    assert (numbers >= 0).all()
    for bit in range(63):
        # Five standard deviations of sqrt(20,000 / 4) = 71.
        assert abs(int((numbers >> bit & 1).sum()) - 10_000) < 355, bit


def test_every_epoch_has_a_different_order() -> None:
    orders = [permutation(0, epoch, 1000).tolist() for epoch in range(3)]
    assert orders[0] == permutation(0, 0, 1000).tolist()
    assert all(sorted(order) == list(range(1000)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert permutation(1, 0, 1000).tolist() != orders[0]
