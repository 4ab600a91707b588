"""Search spaces: every file is valid, stays within its ranges and fits its recipes."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymi.errors import UserError
from raymi.overrides import examine, flatten, overlay
from raymi.recipes import BASE_RECIPES, RECIPES, on_recipe
from raymi.tuning.space import Space, find_space, read_space

FILES = sorted((Path(__file__).parents[2] / "tune_spaces").glob("*.toml"))
NAMES = [path.stem for path in FILES]
PAPER = "paper-cifar10-linf-"
LR = '[parameters."optim.lr"]\nlog = [0.01, 0.1]\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(f'description = "mine"\n{text}')
    return path


def test_the_documented_spaces_exist():
    assert {"mi_weights", "teacher", "estimator_capacity", "mi_full", "smoke"} <= set(NAMES)


TRIED = [
    name for name in RECIPES if name in BASE_RECIPES or name.startswith(("quickstart-", PAPER))
]
"""All base recipes, and the variants of two that differ in form and schedule."""


def compatible_recipes(space):
    return [recipe for recipe in TRIED if space.incompatible(recipe) is None]


@pytest.mark.parametrize("name", NAMES)
def test_every_draw_fits_every_compatible_recipe(name):
    space = find_space(name)
    recipes = compatible_recipes(space)
    assert {"quickstart", "cifar10-cpu", "strong-cifar10", "paper-cifar10-linf"} <= set(recipes)
    assert not any(recipe.endswith(("-at", "-trades", "-mi-off")) for recipe in recipes)
    for number, recipe in enumerate(recipes):
        fitted = space.fitted(recipe)
        for seed in range(1000 * number, 1000 * number + 5):
            values = fitted.random(seed)
            settings = fitted.settings(values)
            config, problems = examine(on_recipe(recipe, settings)[0])
            assert not problems
            now = flatten(config.model_dump())
            assert {k: now[k] for k in flatten(settings)} == flatten(settings), (
                "the settings take effect"
            )
            assert config.mi.enabled


@pytest.mark.parametrize("name", NAMES)
def test_draws_stay_in_range_and_reach_every_choice(name):
    space = find_space(name).fitted("quickstart")
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
    space = find_space("mi_weights").fitted("quickstart")
    for seed in range(50):
        values = space.random(seed)
        drawn = [name in values for name in ("mi.balance", "mi.weight", "rise")]
        assert drawn == [values["weighting"] == one for one in ("balanced", "fixed", "rising")]
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
    assert compatible_recipes(find_space("mine")) == TRIED, "it varies no MI setting"
    with pytest.raises(UserError, match=r"no search space 'mi_weight': did you mean mi_weights"):
        find_space("mi_weight")


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        ("mi_weights quickstart-at", "has no MI term"),
        ("mi_weights quickstart-no-natural-mi", "is defined by mi.natural"),
        ("mi_full quickstart-wmim", "does not fit the recipe quickstart-wmim"),
        ("mi_weights quickstrt", "did you mean quickstart"),
        ("smoke quickstart-random", "form=random does not use mi.difference, mi.hidden"),
        ("smoke quickstart-js", "form=js does not use difference"),
        ("teacher quickstart-adr", "is defined by loss.label_smoothing, mi.form"),
        ("teacher paper-cifar10-linf-no-difference", "is defined by mi.difference"),
        ("teacher quickstart-no-adversarial-mi", "is defined by mi.adversarial"),
        ("teacher quickstart-namid-t", "label_smoothing is a setting of base=at"),
    ],
)
def test_incompatible_recipes_are_refused_with_the_reason(recipe, why):
    space, recipe = recipe.split()
    assert why in find_space(space).incompatible(recipe)


def test_the_weights_of_each_form_are_varied():
    space = find_space("mi_weights")
    weights = {"weighting", "mi.balance", "mi.weight", "rise"}
    expected = {
        "": {*weights, "mi.difference", "terms"},
        "-paper": {*weights, "mi.difference", "terms"},
        "-namid-t": {*weights, "mi.difference", "terms"},
        "-wmim": weights, "-random": weights, "-js": weights,
        "-teacher": {*weights, "terms"}, "-adr": {"share"},
    }  # fmt: skip
    for variant, names in expected.items():
        recipe = f"quickstart{variant}"
        assert set(space.fitted(recipe).parameters) == names
        assert space.incompatible(recipe) is None
    of_command = {"mi": {"form": "teacher", "mix": "true"}}
    assert set(space.fitted("quickstart", of_command).parameters) == {"share"}
    own = {"mi": {"form": "mine:Term"}}
    assert set(space.fitted("quickstart", own).parameters) == weights


def test_a_teacher_is_added_to_the_loss_or_mixed_into_labels():
    space = find_space("teacher")
    assert space.incompatible("quickstart-teacher") is None
    schedules = set()
    for seed in range(60):
        values = space.random(seed)
        tree = overlay(on_recipe("strong-cifar10", {})[0], space.settings(values))
        config, problems = examine(tree)
        assert not problems
        assert (config.mi.form, config.mi.has_estimators) == ("teacher", False)
        assert config.mi.mix == (values["use"] == "mixed") == ("share" in values)
        assert config.loss.label_smoothing == (0 if config.mi.mix else 0.4)
        assert ("mi.teacher_temperature" in values) == (values["softening"] == "constant")
        schedules |= {config.mi.weight, config.mi.teacher_temperature}
    assert {"cosine:0.7:0.95", "cosine:0.7:0.85", "cosine:2.5:2", "cosine:2.5:1.5"} <= schedules


LOSSES = (
    '[parameters."loss.base"]\nchoice = ["at", "trades"]\n[parameters."loss.beta"]\nlog = [1, 10]\n'
)


def test_settings_of_a_loss_are_varied_with_the_loss(tmp_path):
    flat = read_space(write(tmp_path, LOSSES))
    assert "beta is a setting of base=" in flat.incompatible("quickstart")
    nested = read_space(write(tmp_path, LOSSES + 'when."loss.base" = "trades"\n'))
    assert nested.incompatible("quickstart") is None
    for seed in range(20):
        values = nested.random(seed)
        config, problems = examine(
            overlay(on_recipe("strong-cifar10", {})[0], nested.settings(values))
        )
        assert not problems
        assert config.loss.beta == values.get("loss.beta")


def test_a_parameter_is_left_out_where_the_recipe_does_not_meet_its_condition(tmp_path):
    text = (
        f"{LR}[parameters.way]\nchoice = {{ a = {{}}, b = {{}} }}\n"
        'when."loss.base" = ["trades", "ikl"]\n'
        '[parameters."loss.beta"]\nlog = [1, 10]\nwhen.way = "b"\n'
    )
    space = read_space(write(tmp_path, text))
    assert space.keys == {"optim.lr", "loss.beta"}
    assert space.fitted("quickstart").keys == {"optim.lr"}
    fitted = space.fitted("quickstart", {"loss": {"base": "trades"}})
    assert list(fitted.parameters) == ["optim.lr", "way", "loss.beta"] == list(space.parameters)
    assert {values["way"] for values in fitted.grid()} == {"a", "b"}
    assert Space.model_validate_json(fitted.model_dump_json()) == fitted, "as a sweep keeps it"
    with pytest.raises(AssertionError):
        space.random(0)
    never = read_space(write(tmp_path, LR + 'when."mi.form" = "js"'))
    assert "none of its parameters is for" in never.incompatible("quickstart")
    assert never.incompatible("quickstart-js") is None


def test_parameters_that_exclude_each_other_may_set_the_same_key(tmp_path):
    way = "[parameters.way]\nchoice = { a = {}, b = {}, c = {} }\n"
    share = (
        '[parameters.share]\nchoice = { x = { "mi.weight" = 1.0 }, y = { "mi.weight" = 2.0 } }\n'
    )
    weight = '[parameters."mi.weight"]\nlog = [0.1, 1]\n'
    for one, other, fits in (
        ('when.way = "a"\n', 'when.way = "b"\n', True),
        ('when.way = ["a", "b"]\n', 'when.way = ["b", "c"]\n', False),
        ('when.way = "a"\n', "", False),
        ("", 'when.share = "x"\n', False),
    ):
        path = write(tmp_path, way + share + one + weight + other)
        if fits:
            assert all(
                ("share" in values) + ("mi.weight" in values) <= 1
                for values in read_space(path).grid()
            )
        else:
            with pytest.raises(UserError, match=r"both share and mi.weight set mi.weight"):
                read_space(path)


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
            '[parameters."mi.depth"]\nintegers = [1, 2]\nwhen."mi.form" = "jss"',
            r"depends on mi.form = 'jss': unknown form 'jss': did you mean js",
        ),
        (
            '[parameters."mi.depth"]\nintegers = [1, 2]\nwhen."attack.steps" = "7"',
            r"depends on attack.steps = '7', which no setting equals",
        ),
        (
            '[parameters.way]\nchoice = { a = { "mi.form" = "js" }, b = {} }\n'
            '[parameters."mi.depth"]\nintegers = [1, 2]\nwhen."mi.form" = "js"',
            r"depends on 'mi.form', .* that no parameter sets \(way sets it\)",
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
