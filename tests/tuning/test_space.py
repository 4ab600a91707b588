"""Search spaces: every file is right, draws what it says, and fits the recipes that it is for."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymi.errors import UserError
from raymi.overrides import examine, flatten
from raymi.recipes import RECIPES, on_recipe
from raymi.tuning.space import compatible_recipes, find_space, read_space

FILES = sorted((Path(__file__).parents[2] / "tune_spaces").glob("*.toml"))
NAMES = [path.stem for path in FILES]
LR = '[parameters."optim.lr"]\nlog = [0.01, 0.1]\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(f'description = "mine"\n{text}')
    return path


def test_the_spaces_that_users_are_told_of_are_there():
    assert {"mi_weights", "estimator_capacity", "mi_full", "smoke"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_draw_fits_every_recipe_that_the_space_is_for(name):
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
            assert {k: now[k] for k in flatten(settings)} == flatten(settings), "it has its effect"
            assert config.mi.has_estimators


@pytest.mark.parametrize("name", NAMES)
def test_draws_stay_within_their_ends_and_reach_every_choice(name):
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


def test_a_parameter_is_asked_for_where_its_condition_holds():
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


def test_a_space_of_ones_own_is_found_by_name_and_by_path(tmp_path, monkeypatch):
    (tmp_path / "tune_spaces").mkdir()
    path = write(tmp_path / "tune_spaces", '[parameters."optim.lr"]\nlog = [0.01, 0.1]\n')
    monkeypatch.chdir(tmp_path)
    assert find_space("mine").keys == {"optim.lr"} == find_space(str(path)).keys
    assert compatible_recipes(find_space("mine")) == list(RECIPES), "it does not concern MI"
    with pytest.raises(UserError, match=r"no search space 'mi_weight': did you mean mi_weights"):
        find_space("mi_weight")


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        ("quickstart-at", "has no estimators of MI"),
        ("quickstart-no-natural-mi", "is what it is by mi.natural"),
        ("quickstart-wmim", "cannot be laid over the recipe quickstart-wmim"),
        ("quickstrt", "did you mean quickstart"),
    ],
)
def test_recipes_that_do_not_fit_are_refused_with_the_reason(recipe, why):
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
            r"asks for 'way', which must be a parameter before it",
        ),
        (
            "[parameters.way]\nchoice = { a = {}, b = {} }\n"
            '[parameters."mi.depth"]\nintegers = [1, 2]\nwhen.way = "c"',
            r"asks for way = 'c', which has a, b",
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
def test_what_is_wrong_in_a_file_is_said_with_the_file(text, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        read_space(write(tmp_path, text))
    assert "mine.toml" in str(caught.value)
    assert "validation error" not in str(caught.value)


def test_ends_of_a_wide_parameter_are_looked_at_without_all_between_them(tmp_path):
    path = write(tmp_path, '[parameters."attack.steps"]\nintegers = [1, 2000000000]\n')
    assert read_space(path).incompatible("quickstart") is None


def test_a_space_is_laid_over_what_holds_for_all_trials(tmp_path):
    path = write(tmp_path, '[parameters."loss.label_smoothing"]\nuniform = [0.1, 0.2]\n')
    assert read_space(path).incompatible("quickstart") is None
    said = read_space(path).incompatible("quickstart", {"loss": {"base": "trades"}})
    assert "label_smoothing" in said


@pytest.mark.parametrize(
    ("text", "says"),
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
def test_a_wrong_table_is_refused_with_what_is_meant(tmp_path, text, says):
    with pytest.raises(UserError) as refused:
        read_space(write(tmp_path, text))
    assert says in str(refused.value)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(b"description = '\xff'")
    with pytest.raises(UserError, match="is not TOML"):
        read_space(path)
