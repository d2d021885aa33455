"""The search space: what is searched, how it is narrowed, and the way to Optuna's parameters and back."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.space.given import CHOICES, read_space_file
from hpo.space.space import INGREDIENTS, Space, make_space
from objectives.errors import InputError
from quant.methods import METHODS
from quant.parameters import value_text
from quant.setting import PRESETS, Setting

UNIT = st.floats(0, 1, exclude_max=True)
FULL = make_space(Setting(), {})
SEARCHED = sorted(method for method in METHODS if make_space(Setting(method=method), {}).dimensions)


@st.composite
def spaces(draw: st.DrawFn) -> tuple[Space, list[float]]:
    """The default space of any method that has one, with its ingredients or without, and a point of its unit cube."""
    given = draw(st.sampled_from([{}, INGREDIENTS]))
    space = make_space(Setting(method=draw(st.sampled_from(SEARCHED))), given)
    count = len(space.dimensions)
    return space, draw(st.lists(UNIT, min_size=count, max_size=count))


def described(space: Space) -> dict[str, str]:
    """What it consists of, as people read it."""
    return {name: str(part) for name, part in space.parts.items()}


def test_the_original_space_is_the_designs() -> None:
    """Five hyperparameters with the bounds that the field uses."""
    assert described(FULL) == {
        "method": "gwh-praq-v2",
        "symmetric": "True",
        "full_range": "False",
        "range_search": "none",
        "rounding": "nearest",
        "scales": "foldable",
        "placement": "original",
        "beta": "0..1",
        "tau": "0.1..5 (log)",
        "n_grid": "5..40",
        "n_calib": "16,32,64,128,256,512",
        "group_size": "32,64,128,256",
    }


@given(spaces())
def test_params_and_setting_are_inverse(drawn: tuple[Space, list[float]]) -> None:
    """A setting of the space becomes Optuna's parameters, inside their distributions, and the same setting again."""
    space, point = drawn
    setting = space.at(point)
    params = space.params(setting)
    assert space.setting(params) == setting
    assert space.project(setting) == setting
    for name, distribution in space.distributions.items():
        assert distribution._contains(distribution.to_internal_repr(params[name]))


@given(spaces())
def test_settings_can_be_typed_again(drawn: tuple[Space, list[float]]) -> None:
    """What a table shows of a setting, given back as fixed values, is that setting."""
    space, point = drawn
    setting = space.at(point)
    typed = {dimension.name: value_text(getattr(setting, dimension.name)) for dimension in space.dimensions}
    read = {name: text for name, text in typed.items() if name in setting.reads}
    assert make_space(space.base, read).base.canonical() == setting.canonical()


@given(spaces())
def test_a_place_between_the_bounds_and_a_value_are_inverse(drawn: tuple[Space, list[float]]) -> None:
    """A value lies where it was drawn, up to its rounding; one that can be counted in the middle of its place."""
    space, point = drawn
    for dimension, fraction in zip(space.dimensions, point, strict=True):
        value = dimension.at(fraction)
        assert dimension.at(dimension.fraction(value)) == value
        assert dimension.fraction(value) == pytest.approx(fraction, abs=0.5 / (dimension.count() or 100) + 1e-9)


WIDE = make_space(Setting(), INGREDIENTS)


def test_ingredients_are_searched_where_several_of_them_are_given() -> None:
    """Grid, ranges and rounding with the damping that one of the roundings reads; the original five stay."""
    added = {name: text for name, text in described(WIDE).items() if described(FULL).get(name) != text}
    assert added == {
        "symmetric": "true,false",
        "full_range": "True",
        "range_search": "none,diagonal,block",
        "alpha_proxy": "nearest,range",
        "rounding": "nearest,gptq",
        "damping": "0.005..0.5 (log)",
    }


@pytest.mark.parametrize(
    ("given", "fixed"),
    [
        ({"rounding": "nearest"}, {"rounding": "nearest"}),
        ({"rounding": "gptq", "damping": 0.1}, {"rounding": "gptq", "damping": 0.1}),
        ({"symmetric": False}, {"symmetric": False}),
        ({"range_search": "block"}, {"range_search": "block"}),
    ],
)
def test_an_ingredient_that_is_given_once_is_fixed(given: dict[str, object], fixed: dict[str, object]) -> None:
    """Nothing that only the others read is searched with it."""
    space = make_space(Setting(), {**INGREDIENTS, **given})
    assert fixed.items() <= space.fixed.items()
    assert not fixed.keys() & {dimension.name for dimension in space.dimensions}
    assert ("damping" in space.reads) is ("damping" in fixed or "rounding" not in given)


def test_settings_that_differ_in_nothing_they_read_are_one() -> None:
    """The damping of nearest rounding and the proxy of whole ranges are no second setting, to whoever counts."""
    space = make_space(Setting(), {**INGREDIENTS, "beta": 0.5, "tau": 2, "n_grid": 20, "n_calib": 16, "group_size": 64})
    names = [dimension.name for dimension in space.dimensions]
    nearest = [0.0 if name == "rounding" else 0.4 for name in names]
    other = [0.9 if name == "damping" else place for name, place in zip(names, nearest, strict=True)]
    assert space.at(nearest) == space.at(other)
    assert len(set(space.grid())) == len(space.grid()) == 2 * (1 + 2 * 2) * (1 + 5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rounding": "nearest,floor"}, "rounding floor is none of nearest, gptq"),
        ({"symmetric": "maybe"}, "symmetric maybe is none of true, false"),
        ({"rounding": "nearest", "damping": 0.1}, "nearest rounding does not read damping; leave --damping out"),
    ],
)
def test_ingredients_that_cannot_be_are_refused(given: dict[str, object], message: str) -> None:
    """In one line that lists what can."""
    with pytest.raises(InputError, match=message):
        make_space(Setting(), given)


def test_sizes_are_exponents_to_optuna() -> None:
    """Optuna sees the order of sizes, under a name that says so."""
    params = FULL.params(Setting(group_size=64, n_calib=256))
    assert (params["log2_group_size"], params["log2_n_calib"]) == (6, 8)


@pytest.mark.parametrize(
    ("given", "field", "text"),
    [
        ({"beta": "0.2..0.8"}, "beta", "0.2..0.8"),
        ({"beta": 0.3}, "beta", "0.3"),
        ({"tau": "2"}, "tau", "2.0"),
        ({"n_grid": "10..12"}, "n_grid", "10..12"),
        ({"group_size": "32,64"}, "group_size", "32,64"),
        ({"group_size": [64, 32]}, "group_size", "32,64"),
        ({"group_size": "64..256"}, "group_size", "64,128,256"),
        ({"n_calib": "100"}, "n_calib", "100"),
        ({"keep_ratio": "0.1..0.4"}, "keep_ratio", "0.1,0.15,0.2,0.25,0.3,0.35,0.4"),
        ({"keep_ratio": "0.12..0.3"}, "keep_ratio", "0.12,0.17,0.22,0.27"),
        ({"keep_ratio": [0.2, 0.1, 0.3]}, "keep_ratio", "0.1,0.2,0.3"),
        ({"keep_ratio": "0..0.1"}, "keep_ratio", "0,0.05,0.1"),
        ({"keep_ratio": "0.2..0.22"}, "keep_ratio", "0.2"),
        ({"keep_ratio": 0.125}, "keep_ratio", "0.125"),
        ({"tau_risk": "-5..-1"}, "tau_risk", "-5..-1"),
        ({"tau_risk": -4}, "tau_risk", "-4.0"),
        ({"beta_risk": "1..9"}, "beta_risk", "1..9 (log)"),
        ({"noise_factor": "0"}, "noise_factor", "0.0"),
        ({"variance_penalty": "0.5..0.8"}, "variance_penalty", "0.5..0.8"),
    ],
)
def test_a_space_is_narrowed_by_values_ranges_and_sizes(given: dict[str, object], field: str, text: str) -> None:
    """One notation for flags and files; what is described can be given again."""
    method = "gwh-praq-v2" if field in described(FULL) else "praq-mixed-var"
    found = described(make_space(Setting(method=method), given))[field]
    assert found == text
    again = make_space(Setting(method=method), {field: found.removesuffix(" (log)")})
    assert described(again)[field] == text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"beta": "0.8..0.2"}, "lower bound 0.8 is above the upper bound 0.2"),
        ({"beta": "0.2,0.5"}, "neither a value nor a range"),
        ({"beta": "much"}, "'much' cannot be read"),
        ({"beta": 1.5}, "1.5 is outside 0..1"),
        ({"n_grid": "2.5"}, "is not whole"),
        ({"group_size": "32,128"}, "consecutive powers of two"),
        ({"gamma": 1}, "'gamma' is no hyperparameter; there are beta"),
        ({"gamma": 1, "beta": "x"}, "gamma.*beta"),
        ({"keep_ratio": "0.1,0.2,0.4"}, "keep_ratio 0.1, 0.2, 0.4: values that are searched are evenly spaced"),
        ({"keep_ratio": "0.0625,0.125"}, "evenly spaced in thousandths"),
        ({"keep_ratio": "0.3..0.1"}, "lower bound 0.3 is above the upper bound 0.1"),
        ({"keep_ratio": "0.5..1.5"}, "keep_ratio 1.5 is outside 0..1"),
        ({"beta_risk": "0..3"}, "beta_risk 0 is outside 0.001..1e"),
        ({"tau_risk": "-3,-1"}, "neither a value nor a range"),
    ],
)
def test_what_cannot_be_searched_is_refused_with_what_can(given: dict[str, object], message: str) -> None:
    """All problems together, each with what is allowed."""
    method = "praq-mixed-var" if {"keep_ratio", "beta_risk", "tau_risk"} & given.keys() else "gwh-praq-v2"
    with pytest.raises(InputError, match=message):
        make_space(Setting(method=method), given)


def test_a_method_is_searched_in_the_parameters_it_reads() -> None:
    """gw-awq has no beta and no tau, and is not given any."""
    names = [dimension.name for dimension in make_space(Setting(method="gw-awq"), {}).dimensions]
    assert names == ["n_grid", "n_calib", "group_size"]
    with pytest.raises(InputError, match="gw-awq does not read beta; leave --beta out"):
        make_space(Setting(method="gw-awq"), {"beta": 0.3})


def test_a_method_with_one_scale_per_row_has_no_group_size() -> None:
    """Its group size is not searched, not asked to suit the model, and no part of what a study is."""
    space = make_space(Setting(method="awq"), {})
    assert [dimension.name for dimension in space.dimensions] == ["n_grid", "n_calib"]
    assert space.limited("group_size", [], "nothing suits") == (space, None)
    assert "group_size" not in described(space)
    with pytest.raises(InputError, match="awq does not read group_size; leave --group-size out"):
        make_space(Setting(method="awq"), {"group_size": "32,64"})


def test_what_a_study_is_has_what_its_method_reads() -> None:
    """The share of rows kept in 16 bit is part of a study of a mixed method, and of no other."""
    assert described(make_space(Setting(method="awq-mixed"), {"keep_ratio": 0.3})) == {
        "method": "awq-mixed",
        "symmetric": "True",
        "full_range": "False",
        "range_search": "none",
        "rounding": "nearest",
        "keep_ratio": "0.3",
        "n_calib": "16,32,64,128,256,512",
    }


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("rtn-channel", []),
        ("awq", ["n_grid", "n_calib"]),
        ("praq-real", ["n_grid", "n_calib", "beta_risk", "tau_risk", "noise_factor"]),
        ("gw-praq", ["n_grid", "n_calib", "group_size"]),
        ("awq-mixed", ["n_calib", "keep_ratio"]),
        ("praq-mixed", ["n_calib", "keep_ratio", "beta_risk", "tau_risk", "noise_factor"]),
        ("praq-mixed-var", ["n_calib", "keep_ratio", "beta_risk", "tau_risk", "noise_factor", "variance_penalty"]),
    ],
)
def test_every_method_is_searched_in_all_that_it_declares(method: str, names: list[str]) -> None:
    """What is read and could vary is searched, what is not read is not; the method's defaults lie inside."""
    space = make_space(Setting(method=method), {})
    assert [dimension.name for dimension in space.dimensions] == names
    assert space.project(Setting(method=method)) == Setting(method=method)
    reads = space.base.reads - {"method", "scales", "placement", *CHOICES}
    assert reads == set(names)


def test_sizes_that_do_not_suit_are_left_out_with_the_reason() -> None:
    """A notice says which and why; nothing left is an error."""
    space, notice = FULL.limited("group_size", [32, 64], "it does not divide 576")
    assert space.values("group_size") == [32, 64]
    assert notice == "group_size 128, 256 left out: it does not divide 576"
    assert FULL.limited("group_size", [32, 64, 128, 256, 512], "-") == (FULL, None)
    only, _ = FULL.limited("n_calib", [16], "short text")
    assert only.base.n_calib == 16
    assert "log2_n_calib" not in only.distributions
    with pytest.raises(InputError, match="group_size 32, 64, 128, 256: no size; give other values with --group-size"):
        FULL.limited("group_size", [], "no size")


def test_shares_of_kept_rows_are_limited_as_sizes_are() -> None:
    """From the largest down, with the reason."""
    space, notice = make_space(Setting(method="awq-mixed"), {}).limited("keep_ratio", [0.05, 0.1], "it costs more")
    assert space.values("keep_ratio") == [0.05, 0.1]
    assert notice == "keep_ratio 0.15, 0.2, 0.25, 0.3 left out: it costs more"


def test_presets_are_projected_to_the_nearest_allowed_sizes() -> None:
    """A preset of group size 128 becomes one of 64 where 64 is the largest."""
    space = make_space(Setting(), {"group_size": "32,64", "n_calib": 48})
    projected = space.project(PRESETS["balanced"])
    assert (projected.group_size, projected.n_calib, projected.beta, projected.tau) == (64, 48, 0.5, 2.0)


def test_a_space_without_continuous_dimensions_can_be_counted() -> None:
    """Its settings are all different, and as many as it says."""
    space = make_space(Setting(), {"beta": 0.5, "tau": 2, "n_grid": "5..7", "n_calib": "16,32"})
    assert space.size() == 3 * 2 * 4 == len(set(space.every()))
    assert FULL.size() is None


def test_a_grid_reaches_from_end_to_end() -> None:
    """Every dimension is visited at its bounds."""
    grid = make_space(Setting(), {"n_calib": 16, "group_size": 64}).grid()
    assert len(grid) == len(set(grid)) == 125
    assert {setting.beta for setting in grid} == {0.0, 0.25, 0.5, 0.75, 1.0}
    assert {0.1, 5.0} <= {setting.tau for setting in grid}
    assert {5, 40} <= {setting.n_grid for setting in grid}


@pytest.mark.parametrize("content", ["beta = [", "\xff\xfe"])
def test_a_space_file_that_is_no_toml_is_refused_by_name(tmp_path: Path, content: str) -> None:
    """One line names the file."""
    path = tmp_path / "space.toml"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=r"space\.toml cannot be read"):
        read_space_file(path)


def test_a_space_file_says_what_flags_say(tmp_path: Path) -> None:
    """Numbers, ranges and lists."""
    path = tmp_path / "space.toml"
    path.write_text('beta = "0.1..0.4"\ntau = 2\ngroup_size = [64, 128]\n')
    found = described(make_space(Setting(), read_space_file(path)))
    assert (found["beta"], found["tau"], found["group_size"]) == ("0.1..0.4", "2.0", "64,128")
    path.write_text('tau_risk = "-5..-1"\nbeta_risk = 3.5\nkeep_ratio = [0.1, 0.2]\n')
    found = described(make_space(Setting(method="praq-mixed"), read_space_file(path)))
    assert (found["tau_risk"], found["beta_risk"], found["keep_ratio"]) == ("-5..-1", "3.5", "0.1,0.2")


def test_bits_are_part_of_a_space_where_they_are_not_the_usual_ones() -> None:
    """Studies of before they could be said keep their contract; there is nothing to search where nothing is rounded."""
    assert "bits" not in make_space(Setting(method="gw-awq"), {}).fixed
    assert make_space(Setting(method="gw-awq", bits=8), {}).fixed["bits"] == 8
    with pytest.raises(InputError, match="bits 16 leave every weight as it is, and nothing to search; give fewer"):
        make_space(Setting(method="gw-awq", bits=16), {})
