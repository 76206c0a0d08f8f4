"""Loading: from files, names and data to one rule set, and what a file inherits from those that it extends."""

from __future__ import annotations

from pathlib import Path

import pytest
from inventories import write

from rulequant.diagnostics import Location
from rulequant.loader import Loader, load_rules
from rulequant.ruleset import RuleSet

BASE = "version: 1\nschemes: {nf4: {method: bnb_4bit}, int8: {method: bnb_int8}}\n"


def skips(rules: RuleSet) -> list[str]:
    """The patterns that are skipped, in order."""
    return [glob.text for each in rules.skips for glob in each.selector.modules]


def rule_patterns(rules: RuleSet) -> list[str]:
    """The patterns of the rules, in order of precedence."""
    return [glob.text for each in rules.rules for glob in each.selector.modules]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_path(here: Path) -> None:
    """A file is called as the user called it, and its stem is its name."""
    write(here, llama_team=BASE + "scheme: nf4")
    for path in ("llama_team.yaml", here / "llama_team.yaml"):
        rules = load_rules(path)
        assert (rules.name, rules.file, rules.files) == ("llama_team", str(path), (str(path),))


def test_bundled_name(here: Path) -> None:
    """A bundled file goes by its name, and so do its parents."""
    rules = load_rules("llama")
    assert rules == load_rules("bundled:llama")
    assert (rules.name, rules.file) == ("llama", "bundled:llama")
    assert rules.files == ("bundled:causal_lm", "bundled:llama")
    assert rules.models == ("llama",)


def test_a_file_comes_before_a_bundled_name(here: Path) -> None:
    """A file called like a bundled one is meant; a folder is not, and `bundled:` says what is."""
    (here / "llama").write_text("version: 1\nname: mine\n")
    (here / "gpt2").mkdir()
    assert load_rules("llama").name == "mine"
    assert load_rules("bundled:llama").name == "llama"
    assert load_rules("gpt2").name == "gpt2"


def test_mapping() -> None:
    """The data of a rule file pass the same checks, and are read like text."""
    rules = load_rules(
        {
            "version": 1,
            "description": 'é 😀 "quoted" \\ \u2028 \x7f',
            "schemes": {"a": {"method": "bnb_int8", "threshold": 1e-7}},
            "scheme": "a",
            "extends": ("causal_lm",),
        }
    )
    assert rules.description == 'é 😀 "quoted" \\ \u2028 \x7f'
    assert rules.schemes["a"].model_dump() == {"method": "bnb_int8", "threshold": 1e-7}
    assert (rules.name, rules.file) == ("<mapping>", "<mapping>")


def test_text_with_a_path(here: Path) -> None:
    """Text that stands for a file, such as an editor's, extends what that file would."""
    write(here, **{"team/base": BASE + "scheme: nf4"})
    loader = Loader()
    loaded = loader.load_text("version: 1\nextends: ./base.yaml\n", file="<stdin>", path=here / "team" / "rules.yaml")
    assert loaded is not None
    rules = loader.resolve(loaded)
    assert rules is not None
    assert rules.files == (str(here / "team" / "base.yaml"), "<stdin>")


def test_scalars_replace(here: Path) -> None:
    """The child's value replaces the parent's, and what it leaves out is inherited."""
    write(
        here,
        base=BASE
        + "name: base\ndescription: The base.\nmodels: [llama, mistral]\nquantizable_types: [Linear, Conv1D]\n"
        "output_embeddings: quantize\nscheme: nf4\n",
        child="extends: ./base.yaml\nmodels: llama\nscheme: int8\n",
        grandchild="extends: ./child.yaml\nquantizable_types: ['*Experts']\noutput_embeddings: skip\n",
    )
    child, grandchild = load_rules("child.yaml"), load_rules("grandchild.yaml")
    assert (child.models, child.scheme, child.output_embeddings) == (("llama",), "int8", "quantize")
    assert child.quantizable_types == ("Linear", "Conv1D")
    assert (grandchild.models, grandchild.scheme, grandchild.output_embeddings) == (("llama",), "int8", "skip")
    assert grandchild.quantizable_types == ("*Experts",)


def test_names_are_not_inherited(here: Path) -> None:
    """A name and a description are about one file."""
    write(here, base=BASE + "name: base\ndescription: The base.\n", child="extends: ./base.yaml\n")
    assert (load_rules("child.yaml").name, load_rules("child.yaml").description) == ("child", None)


def test_schemes_merge_by_name(here: Path) -> None:
    """A scheme of the child replaces the whole scheme of that name, and no other."""
    write(
        here,
        base="schemes: {a: {method: bnb_4bit, blocksize: 128}, b: {method: bnb_int8}}\n",
        child="extends: ./base.yaml\nschemes: {a: {method: bnb_4bit, quant_type: fp4}, c: {method: bnb_int8}}\n",
    )
    rules = load_rules("child.yaml")
    assert list(rules.schemes) == ["a", "b", "c"]
    assert rules.schemes["a"].model_dump(include={"quant_type", "blocksize"}) == {
        "quant_type": "fp4",
        "blocksize": 64,
    }
    assert str(rules.origin("schemes.a")) == "child.yaml:3:11"
    assert str(rules.origin("schemes.b")) == "base.yaml:2:50"


def test_expect_merges_by_key(here: Path) -> None:
    """Each floor is replaced alone, and `null` lifts it."""
    write(
        here,
        base="expect: {min_quantized: 0.5, min_quantized_layers: 0.9}\n",
        child="extends: ./base.yaml\nexpect: {min_quantized: 0.6}\n",
        lifted="extends: ./child.yaml\nexpect: {min_quantized_layers: null}\n",
    )
    child, lifted = load_rules("child.yaml"), load_rules("lifted.yaml")
    assert (child.expect.min_quantized, child.expect.min_quantized_layers) == (0.6, 0.9)
    assert (lifted.expect.min_quantized, lifted.expect.min_quantized_layers) == (0.6, None)
    assert str(lifted.origin("expect.min_quantized")) == "child.yaml:3:10"
    assert str(child.origin("expect.min_quantized_layers")) == "base.yaml:2:30"


def test_skips_add_up_and_rules_of_the_child_come_first(here: Path) -> None:
    """Skips stand in the order of the files, rules in the order of precedence."""
    write(
        here,
        base=BASE + "skip_modules: [s1, s2]\nrules: [{modules: r4, scheme: nf4}, {modules: r5, scheme: nf4}]\n",
        child="extends: ./base.yaml\nskip_modules: [s3]\nrules: [{modules: r3, scheme: nf4}]\n",
        grandchild="extends: ./child.yaml\nskip_modules: [s4]\n"
        "rules: [{modules: r1, scheme: nf4}, {modules: r2, scheme: int8}]\n",
    )
    rules = load_rules("grandchild.yaml")
    assert skips(rules) == ["s1", "s2", "s3", "s4"]
    assert rule_patterns(rules) == ["r1", "r2", "r3", "r4", "r5"]
    assert rules.files == ("base.yaml", "child.yaml", "grandchild.yaml")


def test_several_parents(here: Path) -> None:
    """Of several parents the later wins, as a child would."""
    write(
        here,
        a=BASE + "scheme: nf4\nskip_modules: [sa]\nrules: [{modules: ra, scheme: nf4}]\nmodels: [a]\n",
        b=BASE + "scheme: int8\nskip_modules: [sb]\nrules: [{modules: rb, scheme: nf4}]\n",
        child="extends: [./a.yaml, ./b.yaml]\nskip_modules: [sc]\n",
    )
    rules = load_rules("child.yaml")
    assert (rules.scheme, rules.models) == ("int8", ("a",))
    assert skips(rules) == ["sa", "sb", "sc"]
    assert rule_patterns(rules) == ["rb", "ra"]


def test_a_file_reached_twice_counts_once(here: Path) -> None:
    """In a diamond the common parent comes once, before both."""
    write(
        here,
        base=BASE + "skip_modules: [s0]\nrules: [{modules: r0, scheme: nf4}]\nscheme: nf4\n",
        left="extends: ./base.yaml\nskip_modules: [s1]\n",
        right="extends: ./base.yaml\nskip_modules: [s2]\nscheme: int8\n",
        child=f"extends: [./left.yaml, ./right.yaml, ./../{here.name}/base.yaml]\n",
    )
    rules = load_rules("child.yaml")
    assert skips(rules) == ["s0", "s1", "s2"]
    assert rule_patterns(rules) == ["r0"]
    assert rules.scheme == "int8"
    assert rules.files == ("base.yaml", "left.yaml", "right.yaml", "child.yaml")


def test_diamonds_upon_diamonds(here: Path) -> None:
    """Each file is visited once, not once for each way that leads to it."""
    size = 40
    write(here, **{f"{side}{size}": "" for side in "ab"})
    for level in range(size):
        both = f"extends: [./a{level + 1}.yaml, ./b{level + 1}.yaml]\n"
        write(here, **{f"a{level}": both, f"b{level}": both})
    assert len(load_rules("a0.yaml").files) == 2 * size + 1


def test_a_long_chain(here: Path) -> None:
    """Files may extend each other deeper than anyone needs: the depth does not come from Python's stack."""
    write(here, last=BASE, f0="extends: ./last.yaml\n")
    write(here, **{f"f{number}": f"extends: ./f{number - 1}.yaml\n" for number in range(1, 600)})
    assert len(load_rules("f599.yaml").files) == 601


def test_paths_are_relative_to_the_file(here: Path) -> None:
    """Each file's parents are sought from its own folder, and bundled names from anywhere."""
    write(
        here,
        **{
            "team/llama": "extends: ../shared/base.yaml\n",
            "shared/base": "extends: [causal_lm, more.yaml]\n",
            "shared/more": "skip_modules: [x]\n",
        },
    )
    files = ("bundled:causal_lm", "shared/more.yaml", "shared/base.yaml", "team/llama.yaml")
    assert load_rules("team/llama.yaml").files == files
    assert load_rules(here / "team" / "llama.yaml").files[0] == "bundled:causal_lm"


def test_origins_are_kept(here: Path) -> None:
    """Every part of the rule set knows its file, line and column."""
    write(
        here,
        base=BASE + "skip_modules:\n- a\n- modules: [b, c]\n  except: [b.x]\n",
        child="extends: ./base.yaml\nrules:\n- modules: d\n  scheme: nf4\nscheme: int8\n",
    )
    rules = load_rules("child.yaml")
    bare, full = rules.skips
    (rule,) = rules.rules
    assert [str(each) for each in (bare.location, *bare.pattern_locations)] == ["base.yaml:4:3"] * 2
    assert str(full.location) == "base.yaml:5:3"
    assert [str(each) for each in full.pattern_locations] == ["base.yaml:5:13", "base.yaml:5:16"]
    assert [str(each) for each in full.except_locations] == ["base.yaml:6:12"]
    assert [str(each) for each in (rule.location, *rule.pattern_locations)] == ["child.yaml:4:3", "child.yaml:4:12"]
    assert (rule.scheme_location, rules.origin("scheme")) == (
        Location("child.yaml", 5, 11, 5, 14),
        Location("child.yaml", 6, 9, 6, 13),
    )
