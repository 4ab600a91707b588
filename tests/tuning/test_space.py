"""Search spaces: every file is valid, stays within its ranges and fits its recipes."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymi.errors import UserError
from raymi.overrides import examine, flatten
from raymi.recipes import RECIPES, on_recipe
from raymi.tuning.space import find_space, read_space

FILES = sorted((Path(__file__).parents[2] / "tune_spaces").glob("*.toml"))
NAMES = [path.stem for path in FILES]
LR = '[parameters."optim.lr"]\nlog = [0.01, 0.1]\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(f'description = "mine"\n{text}')
    return path


def test_the_documented_spaces_exist():
    assert {"mi_weights", "estimator_capacity", "mi_full", "smoke"} <= set(NAMES)


def compatible_recipes(space):
    return [recipe for recipe in RECIPES if space.incompatible(recipe) is None]


@pytest.mark.parametrize("name", NAMES)
def test_every_draw_fits_every_compatible_recipe(name):
    space = find_space(name)
    recipes = compatible_recipes(space)
    assert {"quickstart", "cifar10-cpu", "strong-cifar10", "paper-cifar10-linf"} <= set(recipes)
    assert not any(recipe.endswith(("-at", "-random", "-mi-off")) for recipe in recipes)
    for number, recipe in enumerate(recipes):
        for seed in range(1000 * number, 1000 * number + 5):
            values = space.random(seed)
            settings = space.settings(values)
            config, problems = examine(on_recipe(recipe, settings)[0])
            assert not problems
            now = flatten(config.model_dump())
            assert {k: now[k] for k in flatten(settings)} == flatten(settings), (
                "the settings take effect"
            )
            assert config.mi.has_estimators


@pytest.mark.parametrize("name", NAMES)
def test_draws_stay_in_range_and_reach_every_choice(name):
    space = find_space(name)
    drawn = [space.random(seed) for seed in range(300)]
    for key, parameter in space.parameters.items():
        values = [values[key] for values in drawn if key in values]
        assert len(values) > 30
        ends = parameter.log or parameter.uniform or parameter.integers
        if ends is not None:
            assert ends[0] <= min(values) < max(values) <= ends[1]
        else:
            assert set(values) == set(parameter.choice)
    assert space.random(3) == space.random(3)


def test_a_parameter_is_drawn_if_its_condition_holds():
    space = find_space("mi_weights")
    for seed in range(50):
        values = space.random(seed)
        balanced = values["weighting"] == "balanced"
        assert ("mi.balance" in values) == balanced != ("mi.weight" in values)
        assert set(flatten(space.settings(values))) <= space.keys


def test_a_grid_has_every_combination_once(tmp_path):
    space = read_space(
        write(
            tmp_path,
            '[parameters.way]\nchoice = { a = {}, b = { "mi.natural" = false } }\n'
            '[parameters."mi.hidden"]\nchoice = [16, 32]\n'
            '[parameters."mi.depth"]\nintegers = [1, 2]\nwhen.way = "b"\n'
            '[parameters."mi.balance"]\nlog = [0.01, 1.0]\n',
        )
    )
    grid = list(space.grid())
    assert len(grid) == 2 * 3 + 2 * 2 * 3
    assert sorted({values["mi.balance"] for values in grid}) == pytest.approx([0.01, 0.1, 1.0])
    assert all(("mi.depth" in values) == (values["way"] == "b") for values in grid)


def test_a_users_space_is_found_by_name_and_by_path(tmp_path, monkeypatch):
    (tmp_path / "tune_spaces").mkdir()
    path = write(tmp_path / "tune_spaces", '[parameters."optim.lr"]\nlog = [0.01, 0.1]\n')
    monkeypatch.chdir(tmp_path)
    assert find_space("mine").keys == {"optim.lr"} == find_space(str(path)).keys
    assert compatible_recipes(find_space("mine")) == list(RECIPES), "it varies no MI setting"
    with pytest.raises(UserError, match=r"no search space 'mi_weight': did you mean mi_weights"):
        find_space("mi_weight")


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        ("quickstart-at", "has no MI estimators"),
        ("quickstart-no-natural-mi", "is defined by mi.natural"),
        ("quickstart-wmim", "does not fit the recipe quickstart-wmim"),
        ("quickstrt", "did you mean quickstart"),
    ],
)
def test_incompatible_recipes_are_refused_with_the_reason(recipe, why):
    assert why in find_space("mi_weights").incompatible(recipe)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[parameters."mi.hiden"]\nchoice = [1, 2]',
            r"unknown key 'mi.hiden': did you mean",
        ),
        ('[parameters.x]\nchoice.a = {}\nchoice.b = { "mi.no" = 1 }', r"unknown key 'mi.no'"),
        ('[parameters."mi.hidden"]\nchoice = [1]', r"two different choices, got \[1\]"),
        ('[parameters."mi.hidden"]\nchoice = [1, 1]', r"two different choices, got \[1, 1\]"),
        ('[parameters."mi.hidden"]\nlog = [2, 1]', r"smaller one first, got \[2.0, 1.0\]"),
        ('[parameters."mi.hidden"]\nuniform = [1, inf]', r"two finite ends"),
        ('[parameters."mi.hidden"]\nlog = [1, "x"]', r"should be a valid number"),
        ("[parameters.lr]\nlog = [0.1, 1]", r"unknown key 'lr': write optim.lr"),
        (
            '[parameters."mi.natural"]\nchoice = [true, false]\n'
            '[parameters.x]\nchoice.a = {}\nchoice.b = { "mi.natural" = false }',
            r"both mi.natural and x set mi.natural: keep one",
        ),
        ('[parameters."mi.hidden"]\nlog = [0, 1]', r"log needs positive ends"),
        ('[parameters."mi.hidden"]\nlog = [1, 2]\nchoice = [1, 2]', r"one of log, uniform"),
        ('[parameters."mi.hidden"]\nloog = [1, 2]', r"loog"),
        (
            '[parameters."mi.depth"]\nintegers = [1, 2]\nwhen.way = "a"',
            r"depends on 'way', which must be a parameter before it",
        ),
        (
            "[parameters.way]\nchoice = { a = {}, b = {} }\n"
            '[parameters."mi.depth"]\nintegers = [1, 2]\nwhen.way = "c"',
            r"depends on way = 'c', whose choices are a, b",
        ),
        ("[parameters]", r"expected at least one parameter"),
        ('[parameters."mi.depth"]\nintegers = [1, 2]\n[tune]\ntrails = 3', r"tune: trails"),
        ('[parameters."mi.depth"]\nintegers = [1, 2]\n[tune]\nfactor = 1', r"tune: factor: "),
        ("parameters = [", r"is not TOML"),
        ("", r"mine.toml: parameters: Field required"),
        ("[parameters.seed]\nintegers = [0, 9]", r"seed cannot be varied, as trials could not be"),
        ('[parameters."attack.eps"]\nlog = [0.01, 0.1]', r"attack.eps cannot be varied"),
    ],
)
def test_an_invalid_file_is_named_with_its_problem(text, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        read_space(write(tmp_path, text))
    assert "mine.toml" in str(caught.value)
    assert "validation error" not in str(caught.value)


def test_a_wide_integer_range_is_checked_by_its_ends(tmp_path):
    path = write(tmp_path, '[parameters."attack.steps"]\nintegers = [1, 2000000000]\n')
    assert read_space(path).incompatible("quickstart") is None


def test_a_space_is_checked_with_the_settings_of_all_trials(tmp_path):
    path = write(tmp_path, '[parameters."loss.label_smoothing"]\nuniform = [0.1, 0.2]\n')
    assert read_space(path).incompatible("quickstart") is None
    problem = read_space(path).incompatible("quickstart", {"loss": {"base": "trades"}})
    assert "label_smoothing" in problem


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[serach."optim.lr"]\nlog = [0.01, 0.1]', "serach: unknown, there are description"),
        (
            '[parameter."optim.lr"]\nlog = [0.01, 0.1]',
            "unknown, did you mean parameters?",
        ),
        ('[parameters."optim.lr"]\nlgo = [0.01, 0.1]', "optim.lr.lgo: unknown, did you mean log?"),
        (f"{LR}[tunes]\ntrials = 3", "tunes: unknown, did you mean tune?"),
        (f"{LR}[tune]\ntrails = 3", "tune: trails: unknown, did you mean trials?"),
        ('name = "mine"\n' + LR, "name: unknown, leave it out"),
        ("parameters = 3", "parameters: "),
        ('parameters."optim.lr".log = 3', "optim.lr.log: "),
        (f"{LR}seed = {'9' * 5000}", "is not TOML"),
        ("a = " + "[" * 10_000, "is not TOML"),
        ('[parameters."optim.epochs"]\nintegers = [0, 10000000000000000]', "up to 10**15"),
    ],
)
def test_an_unknown_table_is_refused_with_a_suggestion(tmp_path, text, message):
    with pytest.raises(UserError) as refused:
        read_space(write(tmp_path, text))
    assert message in str(refused.value)


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(b"description = '\xff'")
    with pytest.raises(UserError, match="is not TOML"):
        read_space(path)
