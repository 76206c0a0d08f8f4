"""What cannot be loaded or resolved: each problem once, at the name that leads there, with what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from inventories import check, write

from rulequant.diagnostics import DiagnosticsError
from rulequant.errors import UsageError
from rulequant.loader import Loader, check_rules, load_rules


def problems(rules: str | Path | dict[str, Any]) -> list[str]:
    """What is wrong with a rule file, one line each."""
    found, diagnostics = check_rules(rules)
    assert found is None
    return [each.concise() for each in diagnostics]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_mapping_with_mistakes() -> None:
    """Messages point into the mapping's JSON."""
    assert problems({"version": True, "scheme": "nf4", "quantizable_types": ["torch.nn.Linear"]}) == [
        "<mapping>:2:14: RQ103 error: `version` cannot be true; allowed: 1",
        (
            "<mapping>:5:5: RQ205 error: 'torch.nn.Linear' is not a class name; "
            'write the class name alone, such as Linear, or with wildcards: "*Experts"'
        ),
    ]


@pytest.mark.parametrize("value", [int, b"Linear", {"Linear"}], ids=["class", "bytes", "set"])
def test_mapping_with_objects(value: object) -> None:
    """What has no place in YAML is refused, not turned into its text."""
    with pytest.raises(UsageError, match="is not the data of a rule file: "):
        load_rules({"version": 1, "quantizable_types": value})


def test_mapping_that_is_no_data() -> None:
    """What no file could hold is refused."""
    loop: dict[str, Any] = {"version": 1}
    loop["rules"] = [loop]
    with pytest.raises(UsageError, match="the mapping is not the data of a rule file: Circular reference"):
        load_rules(loop)
    with pytest.raises(UsageError, match="not the data of a rule file: keys must be str"):
        load_rules({"version": 1, "schemes": {("a", "b"): 1}})


def test_missing_file(here: Path) -> None:
    """A path that leads nowhere says so."""
    assert problems("no/such.yaml") == [
        "no/such.yaml:1:1: RQ001 error: cannot read `no/such.yaml`: No such file or directory; check the path"
    ]


@pytest.mark.parametrize("name", ["lama", "bundled:lama"])
def test_unknown_name(here: Path, name: str) -> None:
    """A name that is neither a file nor bundled is answered with the nearest bundled one."""
    assert problems(name) == [
        (
            f"{name}:1:1: RQ001 error: there is neither a file nor a bundled rule file called `{name}`; "
            "did you mean `llama`?"
        )
    ]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("a\0b", id="nul"),
        pytest.param("./a\0b.yaml", id="nul-path"),
        pytest.param("x" * 5000, id="long"),
    ],
)
def test_impossible_names(here: Path, name: str) -> None:
    """A name that no file can have is a diagnostic too."""
    assert [each.partition("RQ001 error: ")[1] for each in problems(name)] == ["RQ001 error: "]


def test_load_rules_raises_errors(here: Path) -> None:
    """`load_rules` raises with all errors; `check_rules` returns them."""
    write(here, bad="nme: x\nscheme: 4\n")
    with pytest.raises(DiagnosticsError, match=r"bad\.yaml:2:1: RQ101 error(.|\n)*bad\.yaml:3:9: RQ104") as caught:
        load_rules("bad.yaml")
    assert [each.code for each in caught.value.diagnostics] == ["RQ101", "RQ104"]


def test_missing_parent(here: Path) -> None:
    """A path that leads nowhere is named as it was tried."""
    write(here, **{"team/llama": "extends: [causal_lm, ../base.yaml, ./gone/base.yaml]\n"})
    assert problems("team/llama.yaml") == [
        (
            "team/llama.yaml:2:22: RQ302 error: `extends`: the file `base.yaml` does not exist; "
            "paths are relative to the file that extends"
        ),
        (
            "team/llama.yaml:2:36: RQ302 error: `extends`: the file `team/gone/base.yaml` does not exist; "
            "paths are relative to the file that extends"
        ),
    ]


def test_unknown_bundled_parent(here: Path) -> None:
    """The file for a model type of that name or the nearest bundled name is suggested, or else what may stand there."""
    write(here, a="extends: casual_lm\n", b="extends: [zzz]\n", c="extends: bundled:lama\n", d="extends: olmo3\n")
    assert problems("a.yaml") == [
        "a.yaml:2:10: RQ302 error: `extends`: no bundled rule file is called `casual_lm`; did you mean `causal_lm`?"
    ]
    assert problems("b.yaml") == [
        (
            "b.yaml:2:11: RQ302 error: `extends`: no bundled rule file is called `zzz`; "
            "give a path such as ./base.yaml, or one of the names that `rulequant rules` lists"
        )
    ]
    assert problems("c.yaml") == [
        "c.yaml:2:10: RQ302 error: `extends`: no bundled rule file is called `bundled:lama`; did you mean `llama`?"
    ]
    assert problems("d.yaml") == [
        (
            "d.yaml:2:10: RQ302 error: `extends`: no bundled rule file is called `olmo3`; "
            "models of type `olmo3` have the bundled file `olmo2`"
        )
    ]


@pytest.mark.parametrize("name", [pytest.param('"./a\\0b"', id="nul"), pytest.param("./" + "x" * 5000, id="long")])
def test_impossible_parent(here: Path, name: str) -> None:
    """A name that no file can have does not exist."""
    write(here, a=f"extends: {name}\n")
    assert [each.split(":")[3].split()[0] for each in problems("a.yaml")] == ["RQ302"]


def test_parent_is_a_folder(here: Path) -> None:
    """Only a regular file is read."""
    (here / "base.yaml").mkdir()
    write(here, a="extends: ./base.yaml\n")
    assert problems("a.yaml") == [
        "base.yaml:1:1: RQ001 error: cannot read `base.yaml`: it is a directory; give a regular file"
    ]


@pytest.mark.parametrize(
    ("called", "folder"),
    [
        pytest.param("a.yaml", "", id="plain"),
        pytest.param("./a.yaml", "", id="dot"),
        pytest.param("../rules/a.yaml", "../rules/", id="through-the-parent"),
        pytest.param("{here}/a.yaml", "{here}/", id="absolute"),
        pytest.param("link.yaml", "", id="symbolic-link"),
    ],
)
def test_cycle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, called: str, folder: str) -> None:
    """A cycle is one error that prints the chain, however the files are spelled."""
    here = write(tmp_path / "rules", a="extends: b.yaml\n", b="extends: [causal_lm, ./c.yaml]\n")
    write(here, c="extends: ./../rules/a.yaml\n")
    (here / "link.yaml").symlink_to("a.yaml")
    monkeypatch.chdir(here)
    called, folder = called.format(here=here), folder.format(here=here)
    chain = f"{called} > {folder}b.yaml > {folder}c.yaml > {called}"
    assert problems(called) == [
        f"{folder}c.yaml:2:10: RQ303 error: `extends` goes in a circle: {chain}; remove one of them"
    ]


@pytest.mark.parametrize("called", ["a.yaml", "./a.yaml"])
@pytest.mark.parametrize("name", ["a.yaml", "./a.yaml", "./b/../a.yaml"])
def test_cycle_of_one(here: Path, called: str, name: str) -> None:
    """A file that extends itself is a cycle of one."""
    write(here, a=f"extends: {name}\n")
    assert problems(called) == [
        f"{called}:2:10: RQ303 error: `extends` goes in a circle: {called} > {called}; remove one of them"
    ]


def test_cycle_further_up(here: Path) -> None:
    """Only the files of the cycle are in the chain, and it is reported once."""
    write(
        here,
        child="extends: [./left.yaml, ./right.yaml]\n",
        left="extends: ./x.yaml\n",
        right="extends: ./x.yaml\n",
        x="extends: ./y.yaml\n",
        y="extends: ./x.yaml\n",
    )
    assert problems("child.yaml") == [
        "y.yaml:2:10: RQ303 error: `extends` goes in a circle: x.yaml > y.yaml > x.yaml; remove one of them"
    ]


def test_cycle_through_text(here: Path) -> None:
    """Text that stands for a file closes a cycle as the file would."""
    write(here, a="name: saved\n", b="extends: ./a.yaml\n")
    loader = Loader()
    loaded = loader.load_text("version: 1\nextends: ./b.yaml\n", file="<stdin>", path=here / "a.yaml")
    assert loaded is not None
    assert loader.resolve(loaded) is None
    assert [each.message for each in loader.diagnostics] == [
        f"`extends` goes in a circle: <stdin> > {here}/b.yaml > <stdin>"
    ]


def test_problems_of_all_files(here: Path) -> None:
    """Every file that is reached is checked, each once."""
    write(
        here,
        child="extends: [./left.yaml, ./right.yaml, ./gone.yaml]\n",
        left="extends: ./base.yaml\n",
        right="extends: ./base.yaml\nscheme: 4\n",
        base="nme: x\n",
    )
    assert [each.partition(" error")[0] for each in problems("child.yaml")] == [
        "base.yaml:2:1: RQ101",
        "right.yaml:3:9: RQ104",
        "child.yaml:2:38: RQ302",
    ]


def test_problems_are_reported_once_by_one_loader(here: Path) -> None:
    """A base with a missing parent is reported once for all its children."""
    write(here, base="extends: ./gone.yaml\n", a="extends: ./base.yaml\n", b="extends: ./base.yaml\n")
    loader = Loader()
    for name in ("a", "b", "base"):
        loaded = loader.load(Path(f"{name}.yaml"))
        assert loaded is not None
        assert loader.resolve(loaded) is None
    assert [str(each.location) for each in loader.diagnostics] == ["base.yaml:2:10"]


def test_unknown_schemes() -> None:
    """A scheme that nothing defines is reported at its name, with the nearest or all that are defined."""
    text = """
    version: 1
    schemes: {nf4: {method: bnb_4bit}, int8: {method: bnb_int8}}
    scheme: nf5
    rules:
      - {modules: a, scheme: bf16}
      - modules: b
        scheme: "int_8"
      - {modules: c, scheme: nf4}
    """
    rules, diagnostics = check(text)
    assert rules is None
    assert [each.concise() for each in diagnostics] == [
        "rules.yaml:3:9: RQ301 error: no scheme is called `nf5`; did you mean `nf4`?",
        "rules.yaml:5:26: RQ301 error: no scheme is called `bf16`; defined: nf4, int8",
        "rules.yaml:7:13: RQ301 error: no scheme is called `int_8`; did you mean `int8`?",
    ]
    assert diagnostics[0].allowed == ("nf4", "int8")


def test_no_schemes_at_all() -> None:
    """Where nothing is defined, that is what to do."""
    _, diagnostics = check("version: 1\nscheme: nf4\n")
    assert [each.concise() for each in diagnostics] == [
        "rules.yaml:2:9: RQ301 error: no scheme is called `nf4`; define it under `schemes`"
    ]


def test_a_child_may_define_what_its_parent_names(here: Path) -> None:
    """Schemes are looked up in the whole, so a base may leave them to its children."""
    write(here, base="scheme: nf4\n", child="extends: ./base.yaml\nschemes: {nf4: {method: bnb_4bit}}\n")
    assert load_rules("child.yaml").scheme == "nf4"
    assert problems("base.yaml") == ["base.yaml:2:9: RQ301 error: no scheme is called `nf4`; define it under `schemes`"]
