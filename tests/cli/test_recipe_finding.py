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


def test_a_file_of_one_s_own_comes_before_ours(
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
def test_a_typo_is_answered_with_the_nearest_name(wrong: str, right: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"no recipe '{wrong}'.*did you mean '{right}'"):
        find_recipe(wrong)


def test_a_name_like_none_of_ours_is_answered_with_all_of_them() -> None:
    with pytest.raises(
        FileNotFoundError,
        match=r"no recipe 'xyzzy'.*there are .*demo, .*mnist_fc, .*pruners/synflow",
    ):
        find_recipe("xyzzy")


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no recipe"):
        find_recipe(str(tmp_path))
