"""Which skips and rules select which modules: globs, types, layers, exceptions and aliases, before anything wins."""

from __future__ import annotations

import pytest
from inventories import HIDDEN, linear, llama, of, ruleset

from rulequant.inventory import Inventory, LayerIndex, ModuleInfo
from rulequant.selection import Selection, select


def skipped(entry: str, inventory: Inventory) -> list[str]:
    """The modules with weights that one skip selects."""
    selection = select(ruleset(f"skip_modules: [{entry}]"), inventory)
    return [each.name for each in inventory.owners if selection.skips_of(each)]


def stacks() -> Inventory:
    """An encoder of two layers, a decoder of four, and a ModuleList inside each of the decoder's layers."""
    modules = [ModuleInfo("", "Net"), ModuleInfo("encoder", "ModuleList"), ModuleInfo("decoder", "ModuleList")]
    modules += [linear(f"encoder.{index}.fc", 4, 2, layer=LayerIndex(index, 2)) for index in range(2)]
    for index in range(4):
        layer = LayerIndex(index, 4)
        modules.append(ModuleInfo(f"decoder.{index}.experts", "ModuleList", layer=layer))
        modules += [linear(f"decoder.{index}.experts.{each}", 4, 2, layer=layer) for each in range(3)]
    return of(*modules, linear("head", 4, 2))


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        pytest.param("lm_head", ["lm_head"], id="name"),
        pytest.param("model.layers.0.mlp", ["0.mlp.gate_proj", "0.mlp.up_proj", "0.mlp.down_proj"], id="inside"),
        pytest.param('"**.q_proj"', ["0.self_attn.q_proj", "1.self_attn.q_proj"], id="any-depth"),
        pytest.param('"**.0.self_attn.{q,k}_proj"', ["0.self_attn.q_proj", "0.self_attn.k_proj"], id="braces"),
        pytest.param('"*.norm"', ["model.norm"], id="one-segment"),
        pytest.param("norm", [], id="whole-name-must-match"),
        pytest.param("MODEL.norm", [], id="case"),
        pytest.param('{modules: ["model.norm", "lm_head"]}', ["model.norm", "lm_head"], id="list"),
        pytest.param(
            '{modules: model.layers.1.mlp, except: "**.up_proj"}', ["1.mlp.gate_proj", "1.mlp.down_proj"], id="except"
        ),
        pytest.param(
            '{modules: model.layers.1, except: ["**.mlp", "model.layers.1.self_attn"]}',
            ["1.input_layernorm", "1.post_attention_layernorm"],
            id="except-what-is-inside",
        ),
        pytest.param("{modules: model.norm, except: model}", [], id="except-around"),
        pytest.param('{modules: "**", types: Embedding}', ["model.embed_tokens"], id="type"),
        pytest.param('{modules: "**.0.self_attn", types: LlamaAttention}', [], id="type-of-each-module-itself"),
        pytest.param('{modules: "**.o_proj", layers: -1}', ["1.self_attn.o_proj"], id="layer"),
        pytest.param('{modules: "**", types: Linear, layers: 5}', [], id="layer-beyond"),
        pytest.param("{modules: lm_head, layers: 0}", [], id="layer-outside-of-any"),
        pytest.param(
            '{modules: "**", types: "*Norm", layers: 0}', ["0.input_layernorm", "0.post_attention_layernorm"], id="all"
        ),
    ],
)
def test_a_selector_selects(entry: str, expected: list[str]) -> None:
    """Globs over whole names, minus exceptions, narrowed by type and layer; what is inside a selected module counts."""
    names = [f"model.layers.{each}" if each[0].isdecimal() else each for each in expected]
    assert skipped(entry, llama()) == names


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        pytest.param("0", {"encoder.0", "decoder.0"}, id="first-of-each"),
        pytest.param("-1", {"encoder.1", "decoder.3"}, id="last-of-each"),
        pytest.param('["0:1", "-1:"]', {"encoder.0", "encoder.1", "decoder.0", "decoder.3"}, id="ends-of-each"),
        pytest.param('"::2"', {"encoder.0", "decoder.0", "decoder.2"}, id="every-other"),
        pytest.param('"2:"', {"decoder.2", "decoder.3"}, id="out-of-range-in-the-shorter"),
        pytest.param('"7:9"', set(), id="out-of-range"),
    ],
)
def test_layers_count_in_the_outermost_stack(layers: str, expected: set[str]) -> None:
    """Each stack counts its own layers, and a ModuleList inside a layer starts no new count."""
    names = skipped(f'{{modules: "**", layers: {layers}}}', stacks())
    assert {".".join(each.split(".")[:2]) for each in names} == expected


def test_inner_lists_are_in_the_layer_around_them() -> None:
    """Expert 2 of layer 0 is in layer 0."""
    assert skipped('{modules: "**.experts.2", layers: [0]}', stacks()) == ["decoder.0.experts.2"]


def test_a_module_is_selected_under_any_of_its_names() -> None:
    """A pattern or an exception that matches an alias matches the module."""
    shared = linear("encoder.embed", 8, 4, aliases=("decoder.embed", "shared"))
    inventory = of(ModuleInfo("", "Net"), shared, linear("fc", 4, 2))
    assert skipped("decoder", inventory) == ["encoder.embed"]
    assert skipped("{modules: encoder, except: shared}", inventory) == []


def test_the_root_is_selected_by_all_alone() -> None:
    """The root's name is empty: only `**` matches it."""
    root = ModuleInfo("", "Linear", "linear", linear("x", 4, 2).tensors)
    assert skipped('"**"', of(root)) == [""]
    assert skipped('"*"', of(root)) == []


def selection_of(text: str, inventory: Inventory) -> Selection:
    """What the rule file selects."""
    return select(ruleset(text), inventory)


def test_all_entries_in_order_of_precedence() -> None:
    """A module has all the skips and rules that select it; the first of each is the one that counts."""
    text = """
    skip_modules: ["**.mlp", model.layers.0]
    rules:
      - {modules: "**.q_proj", scheme: int8}
      - {modules: "**.up_proj", scheme: nf4}
      - {modules: "**", scheme: int8}
    """
    inventory = llama()
    selection = selection_of(text, inventory)
    lines = {
        name: (
            [each.location.line for each in selection.skips_of(inventory.by_name[name])],
            [each.location.line for each in selection.rules_of(inventory.by_name[name])],
        )
        for name in ("model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj", "lm_head")
    }
    assert lines == {
        "model.layers.0.mlp.up_proj": ([1, 1], [4, 5]),
        "model.layers.1.self_attn.q_proj": ([], [3, 5]),
        "lm_head": ([], [5]),
    }


def test_uses_are_counted_for_each_pattern() -> None:
    """How many modules a pattern names, how many of them the entry selects, and which of those own a tensor."""
    text = """
    skip_modules:
      - {modules: ["**.mlp", lm_head, gone], types: Linear, except: "**.up_proj"}
    rules:
      - {modules: "**.mlp", scheme: int8}
    """
    uses = selection_of(text, llama()).uses
    found = [(use.glob.text, use.position, use.named, use.selected, use.weighty) for use in uses]
    assert found == [
        ("**.mlp", 0, 10, 4, 4),
        ("lm_head", 1, 1, 1, 1),
        ("gone", 2, 0, 0, 0),
        ("**.mlp", 0, 10, 10, 6),
    ]
    assert [each.name for each in uses[1].owners] == ["lm_head"]


def test_matches_are_counted_before_precedence() -> None:
    """What an earlier entry takes too is counted all the same."""
    text = """
    skip_modules: ["**"]
    rules: [{modules: lm_head, scheme: int8}, {modules: lm_head, scheme: nf4}]
    """
    assert [use.selected for use in selection_of(text, llama()).uses] == [len(llama().modules), 1, 1]


def test_exceptions_that_leave_nothing_out() -> None:
    """An exception is used where it matches what the patterns beside it name, and nowhere else."""
    text = """
    skip_modules:
      - {modules: "**.mlp", except: ["**.up_proj", lm_head, "**.upproj"]}
      - {modules: lm_head, except: "**.up_proj", optional: true}
    """
    unused = selection_of(text, llama()).unused_exceptions
    assert [(entry.location.line, glob.text) for entry, glob in unused] == [
        (2, "lm_head"),
        (2, "**.upproj"),
        (3, "**.up_proj"),
    ]


def test_nothing_to_select() -> None:
    """A rule file without entries, and a model without modules, select nothing."""
    assert select(ruleset("name: x"), llama()).uses == ()
    assert selection_of('skip_modules: ["**"]', of()).uses[0].named == 0


def test_shapes_do_not_matter() -> None:
    """Selection looks at names, types and layers alone."""
    assert skipped("fc", of(linear("fc", HIDDEN, 1, dtype="float8_e4m3fn"))) == ["fc"]
