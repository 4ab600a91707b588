"""Recipe files: they compose, and each fault is one line with the file and the key or line."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymi.errors import UserError
from raymi.overrides import examine, flatten
from raymi.recipes import build_config, named_recipe


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, text: str) -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return name


def complaint(recipe: str) -> str:
    """Returns the only problem of a recipe file, without the folder of the test."""
    with pytest.raises(UserError) as caught:
        build_config(recipe)
    (line,) = str(caught.value).splitlines()
    return line.replace(f"{Path.cwd()}/", "")


def test_a_file_changes_settings_of_a_recipe() -> None:
    name = write(
        "mine.toml",
        '''recipe = "quickstart-trades"
        seed = 3
        "optim.lr" = 0.5
        [attack]
        eps = "8/255"
        [optim]
        epochs = 2
        milestones = [0.5, 0.75]
        [data]
        limit = "none"''',
    )
    settings = {
        "seed": 3,
        "attack": {"eps": 8 / 255},
        "optim": {"lr": 0.5, "epochs": 2, "milestones": (0.5, 0.75)},
    }
    assert build_config(name) == build_config("quickstart-trades", settings)


def test_settings_of_the_command_are_laid_over_those_of_the_file() -> None:
    name = write("mine.toml", 'recipe = "quickstart"\n[optim]\nepochs = 2\nlr = 0.3')
    config = build_config(name, {"optim": {"epochs": "5"}})
    assert (config.optim.epochs, config.optim.lr, config.optim.batch_size) == (5, 0.3, 64)


def test_files_compose_relative_to_the_file_that_names_them() -> None:
    write("below/base.toml", 'recipe = "quickstart"\n[optim]\nepochs = 2\nlr = 0.3')
    write("below/middle.toml", 'recipe = "base.toml"\n[optim]\nlr = 0.4\nmomentum = 0.5')
    name = write("top.toml", 'recipe = "below/middle.toml"\n[optim]\nmomentum = 0.6')
    optim = build_config(name).optim
    assert (optim.epochs, optim.lr, optim.momentum) == (2, 0.4, 0.6)
    recipe, settings, problems = named_recipe(name, {"seed": "1"})
    assert (recipe, problems) == ("quickstart", [])
    assert flatten(settings) == {
        "optim.epochs": 2, "optim.lr": 0.4, "optim.momentum": 0.6, "seed": "1",
    }  # fmt: skip


@pytest.mark.parametrize("form", ["bounded", "paper", "wmim"])
@pytest.mark.parametrize("base", ["quickstart", "quickstart-at", "paper-cifar10-linf"])
def test_a_form_of_the_command_applies_as_on_the_named_recipe(base: str, form: str) -> None:
    name = write("mine.toml", f'recipe = "{base}"\n[optim]\nepochs = 2')
    given = {"mi": {"form": form}}
    assert build_config(name, given) == build_config(base, {**given, "optim": {"epochs": 2}})


def test_a_form_of_the_command_drops_the_settings_of_the_file_s_form() -> None:
    name = write("mine.toml", 'recipe = "quickstart"\n[mi]\nbalance = 0.3\nhidden = 32')
    kept = build_config(name, {"mi": {"form": "bounded"}}).mi
    assert (kept.balance, kept.hidden) == (0.3, 32)
    other = build_config(name, {"mi": {"form": "paper"}}).mi
    assert (other.balance, other.hidden) == (None, 32)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("recipe = 'quickstart'\n[optim]\nepochs = = 2", "mine.toml is not TOML: Invalid value (at "
         "line 3, column 10)"),
        ("recipe = 'quickstart'\n[optim]\nepchs = 2", "mine.toml: unknown key 'optim.epchs': did "
         "you mean optim.epochs or attack.eps?"),
        ("recipe = 'quickstart'\nlr = 2", "mine.toml: unknown key 'lr': did you mean optim.lr?"),
        ("recipe = 'quickstart'\n[optim]\nepochs = 'two'", "mine.toml: optim.epochs: expected "
         "whole number >= 1, got 'two'"),
        ("recipe = 'quickstart'\nname = 5", "mine.toml: name: expected text | none, got 5"),
        ("recipe = 'quickstat'", "mine.toml: unknown recipe 'quickstat': did you mean quickstart?"),
        ("recipe = 3", "mine.toml: recipe: expected the name of a recipe or a .toml file, got 3: "
         "write recipe = \"quickstart\", say, before the first table"),
        ("seed = 3", "mine.toml: recipe: expected the name of a recipe or a .toml file, got none: "
         "write recipe = \"quickstart\", say, before the first table"),
        ("recipe = 'gone.toml'", "no recipe file gone.toml: give the path of a .toml file"),
        ("recipe = 'mine.toml'", "mine.toml: recipe files in a circle (mine.toml -> mine.toml): "
         "let one name a recipe"),
    ],
)  # fmt: skip
def test_a_fault_of_a_file_is_one_line(text: str, expected: str) -> None:
    assert complaint(write("mine.toml", text)) == expected


def test_a_missing_file_a_folder_and_other_bytes_are_one_line() -> None:
    assert complaint("gone.toml") == "no recipe file gone.toml: give the path of a .toml file"
    Path("folder.toml").mkdir()
    assert complaint("folder.toml").startswith("folder.toml: Is a directory: ")
    Path("bytes.toml").write_bytes(b"\xff")
    assert complaint("bytes.toml").startswith("bytes.toml is not TOML: 'utf-8' codec")


def test_a_circle_of_files_is_refused() -> None:
    write("a.toml", 'recipe = "b.toml"')
    write("b.toml", 'recipe = "a.toml"')
    assert "(a.toml -> b.toml -> a.toml)" in complaint("a.toml")


def test_a_fault_names_the_file_that_has_it_and_other_settings_are_still_checked() -> None:
    write("base.toml", 'recipe = "quickstart"\n[optim]\nepochs = 0')
    name = write("top.toml", 'recipe = "base.toml"\n[attack]\neps = "x"')
    _, settings, problems = named_recipe(name, {"optim": {"lr": "x"}})
    assert [line.replace(f"{Path.cwd()}/", "") for line in problems] == [
        "base.toml: optim.epochs: expected whole number >= 1, got 0",
        "top.toml: attack.eps: expected number >= 0, got 'x'",
    ]
    assert examine(settings)[1] == ["optim.lr: expected number > 0, got 'x'"]


@pytest.mark.parametrize(
    ("data", "recipe"),
    [
        ({}, "quickstart"),
        ({"name": "digits"}, "quickstart"),
        ({"name": "cifar10"}, "cifar10-cpu"),
        ({"name": "folder", "root": "photos"}, "photos"),
        ({"name": "npz", "root": "x.npz"}, "photos"),
        ({"name": "my.data:images"}, "photos"),
        ({"name": "tiny-imagenet"}, "paper-tinyimagenet-linf"),
    ],
)
def test_data_without_a_recipe_select_one_that_fits(data: dict[str, str], recipe: str) -> None:
    assert named_recipe(None, {"data": data}) == (recipe, {"data": data}, [])


def test_data_for_which_no_recipe_is_made_need_one() -> None:
    _, _, (line,) = named_recipe(None, {"data": {"name": "svhn"}})
    assert line.startswith("no recipe is made for data.name=svhn: add recipe=NAME; for images of ")
    _, _, (line,) = named_recipe(None, {"data": {"root": "photos"}})
    assert line.startswith(
        "data.root=photos without data.name and recipe: the digits of quickstart"
    )
    assert named_recipe("quickstart", {"data": {"name": "svhn"}})[2] == []
