import pytest
from refusals import refusal

from npft import config
from npft.errors import NpftError
from npft.plugins import build
from npft.tuning import Tuning

BASE = {"model": "m", "output": "o"}


def test_written_configuration_reads_back_the_same(tmp_path) -> None:
    first = config.make(
        {
            **BASE,
            "gamma": 0.005,
            "evaluate": {"a": "x.txt", "b c": "y.jsonl"},
            "quant": [{"name": "rtn", "group_size": 64}],
            "sampler": {"name": "channel-uniform", "axis": "input"},
            "tuning": {"noise_bits": [4, 3], "lr": 1e-4},
        }
    )
    file = tmp_path / "config.toml"
    file.write_text(config.dumps(first, {"torch": "1"}), encoding="utf-8")
    assert config.make(config.read(file)) == first


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8", 8),
        ("0.5", 0.5),
        ("true", True),
        ("[3, 4]", [3, 4]),
        ('"word"', "word"),
        ("input", "input"),
        ("a b", "a b"),
    ],
)
def test_option_values_are_toml_or_words(text, expected) -> None:
    values: dict = dict(BASE)
    config.set_option(values, f"tuning.x={text}")
    assert values["tuning"]["x"] == expected


def test_option_of_every_quantizer_and_of_one() -> None:
    values: dict = {**BASE, "quant": [{"name": "rtn"}, {"name": "kmeans"}]}
    config.set_option(values, "quant.rtn.group_size=64")
    config.set_option(values, "quant.x=1")
    assert values["quant"] == [
        {"name": "rtn", "group_size": 64, "x": 1},
        {"name": "kmeans", "x": 1},
    ]


def test_option_keeps_the_default_plugin() -> None:
    values: dict = dict(BASE)
    config.set_option(values, "sampler.quantizers=['rtn']")
    default = config.make(BASE).sampler.name
    assert values["sampler"] == {"name": default, "quantizers": ["rtn"]}


@pytest.mark.parametrize(
    ("assignment", "part"),
    [
        ("nothing", "KIND.OPTION=VALUE"),
        ("tuning=3", "KIND.OPTION=VALUE"),
        ("tuning.=3", "KIND.OPTION=VALUE"),
        ("tunning.lr=3", "no such kind"),
        ("quant.gptq.bits=3", "chosen are rtn, kmeans"),
    ],
)
def test_bad_options_say_what_is_wrong(assignment, part) -> None:
    with pytest.raises(NpftError, match=part):
        config.set_option(dict(BASE), assignment)


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"bits": [9]}, "bits=9 is outside 2..8"),
        ({"bits": [1]}, "bits=1 is outside 2..8"),
        ({"samples": 0}, "samples=0"),
        ({"contxt": 5}, "did you mean 'context'"),
        ({"context": "many"}, "context='many'"),
    ],
)
def test_bad_values_are_named(values, part) -> None:
    with pytest.raises(NpftError) as caught:
        config.make({**BASE, **values})
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_broken_toml_is_one_sentence(tmp_path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("a = [")
    with pytest.raises(NpftError, match="is not TOML"):
        config.read(file)
    with pytest.raises(NpftError, match="cannot be read"):
        config.read(tmp_path / "absent.toml")


@pytest.mark.parametrize("value", ["inf", "nan", "-inf"])
def test_numbers_that_are_not_finite_are_refused(value) -> None:
    """They have no word in JSON, through which a configuration passes: they were dropped."""
    values = {**BASE, "tuning": {"lr": 1e-3}}
    config.set_option(values, f"tuning.lr={value}")
    refusal(lambda: build(Tuning, "tuning", config.make(values).tuning), "lr", "finite")


@pytest.mark.parametrize("kind", ["tuning", "sampler"])
@pytest.mark.parametrize("value", [3, "word", [1], True])
def test_an_option_of_what_is_no_table_is_refused(kind, value) -> None:
    refusal(lambda: config.set_option({**BASE, kind: value}, f"{kind}.x=1"), kind, "table")


@pytest.mark.parametrize("value", [3, "word", [1], [{}], [{"name": 3}], {"name": "rtn"}])
def test_options_of_quantizers_that_are_none_are_refused(value) -> None:
    refusal(lambda: config.set_option({**BASE, "quant": value}, "quant.bits=3"), "quant", "list")


def test_values_that_are_deep_or_long_are_told_in_short() -> None:
    values: dict = dict(BASE)
    config.set_option(values, "tuning.lr=" + "[" * 50_000)
    refusal(lambda: build(Tuning, "tuning", values["tuning"]), "lr")
    refusal(lambda: config.set_option(values, "x" * 50_000), "KIND.OPTION")
