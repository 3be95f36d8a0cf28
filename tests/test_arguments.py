"""What is typed as a path or a name arrives letter by letter; what is printed can be pasted."""

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from sd_aanet.arguments import in_quotes, setting, spelt, word


def parsed(value: str, several: bool = False) -> object:
    """What Hydra makes of a value that was spelt out: of several, a list of them."""
    (override,) = OverridesParser.create().parse_overrides([f"out={spelt(value, several)}"])
    if override.is_sweep_override():
        return [
            OverridesParser.create().parse_overrides([f"out={e}"])[0].value() for e in override.sweep_string_iterator()
        ]
    return override.value()


@pytest.mark.parametrize(
    "path",
    [
        *(
            "2026_01_15",
            "1_1",
            "11",
            "1e3",
            "true",
            "False",
            "inf",
            "nan",
            "007",
            "0x1F",
            "2026-01-15",
            "12:30:45",
            "1.0",
        ),
        *(
            "runs/mine",
            "a=b",
            "my run (lr=0.1)",
            "a[1].png",
            "~/data",
            "C:\\data\\x",
            "\\\\server\\share",
            "a{b}",
            "a'b",
        ),
        *("bilder/été/猫.png", "a#b", "a&b;c", 'in"side', "${fold}/x", "x_${oc.env:A,b}", "choice", "run(1)", "^!<>"),
    ],
)
def test_a_path_keeps_its_spelling(path: str) -> None:
    assert parsed(path) == path
    assert parsed(f"[{path.replace(']', chr(92) + ']')},b.png]") == [path, "b.png"]
    assert parsed(f"{path},2", several=True) == [path, "2"]


@pytest.mark.parametrize(
    ("value", "pasted"),
    [
        ("runs/mine", "out=runs/mine"),
        ("my run (lr=0.1, k=5)/best.ckpt", """'out="my run (lr=0.1, k=5)/best.ckpt"'"""),
        ("mine_${hydra:job.num}.json", "'out=mine_${hydra:job.num}.json'"),
        ("a'b", """'out="a'"'"'b"'"""),
        ("null", """'out="null"'"""),
        ("a,b", """'out="a,b"'"""),
    ],
)
def test_hints(value: str, pasted: str) -> None:
    assert setting("out", value) == pasted


def test_forms_of_hydra_stay() -> None:
    assert parsed("null") is None
    assert parsed("Null", several=True) is None
    assert parsed("") == ""
    assert parsed("[]") == []
    assert parsed("{}") == {}
    assert parsed("[null, 5]") == [None, "5"]
    assert parsed("'a,b'") == "a,b"
    assert parsed('["a,b", 1e3 ]') == ["a,b", "1e3"]
    assert parsed(r"a\,b") == "a,b"
    assert parsed("[{image: 1e3, mask: C:\\m.png},{image:'a,b',mask: 2}]") == [
        {"image": "1e3", "mask": "C:\\m.png"}, {"image": "a,b", "mask": "2"},
    ]  # fmt: skip
    assert parsed("choice(a,b)", several=True) == ["a", "b"]
    assert parsed("1,'2',c", several=True) == ["1", "2", "c"]
    assert spelt("null", several=False, null=False) == '"null"'


@pytest.mark.parametrize("value", ["a,b", "[a", "[a]b", "'a'b", "{a", "[draft] run", "[a,{b]"])
def test_what_is_no_value_is_left_for_hydra_to_refuse(value: str) -> None:
    assert spelt(value, several=False) == value


@given(st.text(st.characters(exclude_characters="\0\n\r", codec="utf-8"), min_size=1))
def test_any_text_in_quotes_and_any_hint_comes_back(text: str) -> None:
    assert parsed(in_quotes(text)) == text
    (pasted,) = shlex.split(setting("out", text))
    key, _, value = pasted.partition("=")
    assert (key, parsed(value)) == ("out", text)
    assert shlex.split(word(text)) == [text]


@given(st.text(), st.booleans(), st.booleans())
def test_nothing_that_is_typed_breaks_it(text: str, several: bool, null: bool) -> None:
    assert isinstance(spelt(text, several, null), str)
