from pathlib import Path

import pytest

from synflow_pl.cli.recipes import find_recipe, recipe_folder


@pytest.mark.parametrize(
    "name", ["mnist_fc", "mnist_fc.yaml", "configs/mnist_fc", "configs/mnist_fc.yaml"]
)
def test_a_recipe_is_found_by_name_from_any_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe(name) == recipe_folder() / "mnist_fc.yaml"


@pytest.mark.parametrize(
    "name", ["pruners/synflow", "pruners/synflow.yaml", "configs/pruners/synflow.yaml"]
)
def test_an_overlay_is_found_by_its_folder_and_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe(name) == recipe_folder() / "pruners" / "synflow.yaml"


def test_a_user_s_file_takes_precedence_over_a_recipe_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnist_fc.yaml").write_text("trainer: {max_epochs: 1}\n")
    assert find_recipe("mnist_fc.yaml").resolve() == tmp_path / "mnist_fc.yaml"
    assert find_recipe(str(tmp_path / "mnist_fc.yaml")) == tmp_path / "mnist_fc.yaml"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("mnist_cf", "mnist_fc"),
        ("cifar_vgg16", "cifar10_vgg16"),
        ("pruners/synflw", "pruners/synflow"),
        ("pruner/random", "pruners/random"),
    ],
)
def test_a_misspelt_name_is_an_error_that_suggests_the_closest_name(wrong: str, right: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"no recipe '{wrong}'.*did you mean '{right}'"):
        find_recipe(wrong)


def test_a_name_unlike_any_recipe_is_an_error_that_lists_all_recipes() -> None:
    with pytest.raises(
        FileNotFoundError,
        match=r"no recipe 'xyzzy'.*there are .*demo, .*mnist_fc, .*pruners/synflow",
    ):
        find_recipe("xyzzy")


def test_a_folder_is_not_accepted_as_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no recipe"):
        find_recipe(str(tmp_path))
