"""Inventory files: any inventory comes back as it was, equal layers take no room, a broken file is one clear error."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import inventories
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inventories import linear, llama, norm, of

from rulequant.errors import ModelError
from rulequant.inventory import ITEM_SIZES, Inventory, LayerIndex, ModuleInfo, TensorInfo
from rulequant.inventory_file import dump_inventory, is_inventory, load_inventory, parse_inventory


def stack(*names: str, length: int | None = None, start: int = 0, inside: str = "layers") -> list[ModuleInfo]:
    """A ModuleList with a Linear under each name, numbered as registered."""
    size = len(names) if length is None else length
    children = [
        linear(f"{inside}.{name}", 4, 2, layer=LayerIndex(index, size)) for index, name in enumerate(names, start)
    ]
    return [ModuleInfo(inside, "ModuleList"), *children]


def root() -> ModuleInfo:
    """The root of a made-up model."""
    return ModuleInfo("", "Net")


BIAS_BUFFER = TensorInfo("expert_bias", (4,), "float32", buffer=True)

ROUND_TRIPS: dict[str, Inventory] = {
    "empty": of(),
    "root-alone": of(ModuleInfo("", "Linear", "linear", (inventories.weight(4, 2),))),
    "root-owns-tensors": of(
        ModuleInfo("", "Net", tensors=(TensorInfo("scale", (), "float32"), TensorInfo("cls", (1, 8), "float16"))),
        linear("fc", 4, 2),
    ),
    "llama": llama(layers=4, versions={"torch": "2.13.0", "transformers": "5.23.0"}),
    "llama-tied": llama(layers=4, tied=True),
    "no-config": llama(model_type=None, architecture=None),
    "called": llama(called=True),
    "aliases": of(root(), linear("a", 4, 2, aliases=("b", "c.d")), ModuleInfo("c", "Block", aliases=("e",))),
    "alias-order": of(root(), linear("a", 4, 2, aliases=("z", "b"))),
    "tied-weights-in-the-root": of(
        ModuleInfo("", "Net", tensors=(TensorInfo("shared", (4, 2), "float32"),)),
        linear("fc", 4, 2, tensors=(TensorInfo("weight", (4, 2), "float32", tied_to="shared"),)),
    ),
    "buffers": of(root(), linear("gate", 4, 2, tensors=(inventories.weight(4, 2), BIAS_BUFFER))),
    "tensor-order": of(
        root(),
        linear("0", 4, 2, bias=True),
        linear("1", 4, 2, tensors=tuple(reversed(linear("1", 4, 2, bias=True).tensors))),
    ),
    "child-order": of(
        root(),
        ModuleInfo("0", "Block"),
        *(linear("0.a", 4, 2), linear("0.b", 4, 2)),
        ModuleInfo("1", "Block"),
        *(linear("1.b", 4, 2), linear("1.a", 4, 2)),
    ),
    "unequal-layers": of(
        root(),
        *stack("0", "1", "2", length=5),
        linear("layers.3", 8, 2, layer=LayerIndex(3, 5)),
        linear("layers.4", 4, 2, layer=LayerIndex(4, 5)),
    ),
    "stack-of-equal-layers": of(root(), *stack("0", "1", "2")),
    "stack-not-from-zero": of(root(), *stack("1", "2", "3")),
    "stack-with-a-gap": of(
        root(),
        ModuleInfo("layers", "ModuleList"),
        *(linear(f"layers.{index}", 4, 2, layer=LayerIndex(index, 4)) for index in (0, 3)),
    ),
    "stack-with-odd-names": of(root(), *stack("0", "act_fn", "00", "٣", "1")),
    "stack-whose-children-are-aliases": of(
        root(),
        linear("first", 4, 2, aliases=("layers.0",)),
        ModuleInfo("layers", "ModuleList"),
        linear("layers.1", 4, 2, layer=LayerIndex(1, 3), aliases=("layers.2",)),
    ),
    "stack-all-shared": of(
        root(),
        ModuleInfo("layers", "ModuleList"),
        linear("layers.0", 4, 2, layer=LayerIndex(0, 3), aliases=("layers.1", "layers.2")),
    ),
    "empty-stack": of(root(), ModuleInfo("empty", "ModuleList"), *stack("0")),
    "empty-stack-around-a-stack": of(
        root(),
        ModuleInfo("blocks", "ModuleList"),
        ModuleInfo("blocks.0", "ModuleList", layer=LayerIndex(0, 2)),
        *(linear(f"blocks.0.{index}", 4, 2, layer=LayerIndex(0, 2)) for index in range(3)),
        ModuleInfo("blocks.1", "ModuleList", layer=LayerIndex(1, 2)),
        linear("blocks.1.0", 4, 2, layer=LayerIndex(1, 2)),
    ),
    "sequence-is-no-stack": of(root(), ModuleInfo("net", "Sequential"), linear("net.0", 4, 2), linear("net.1", 4, 2)),
    "numbers-not-from-zero": of(root(), *(linear(f"net.{index}", 4, 2) for index in (7, 8, 9, 11, 10))),
    "parameter-list": of(
        ModuleInfo("w", "ParameterList", tensors=tuple(TensorInfo(str(each), (2,), "float32") for each in range(12)))
    ),
    "flags": of(
        root(),
        linear("a", 4, 2, output_head=True, keep_in_fp32=True),
        linear("b", 4, 2, output_embedding=True, weight_reader="Mixer.forward"),
        ModuleInfo("c", "Embedding", "embedding", (inventories.weight(4, 2),), shares_output_embedding=True),
    ),
    "parents-missing": of(linear("a.b.c", 4, 2), linear("a.b.d", 4, 2)),
    "two-stacks": of(
        root(),
        *stack("0", "1", inside="encoder"),
        *stack("0", "1", "2", inside="decoder"),
    ),
    "all-dtypes": of(ModuleInfo("", "Net", tensors=tuple(TensorInfo(each, (2, 3), each) for each in ITEM_SIZES))),
    "large-numbers": of(root(), linear("net.99999999999999999999", 4, 2), linear("net.100000000000000000000", 4, 2)),
    "strange-text": of(norm("a\u2028b"), model='"quoted" 😀', architecture="Ünïcode"),
}  # fmt: skip


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_round_trip(name: str) -> None:
    """What is written comes back equal, in the same order, and is written the same again."""
    inventory = ROUND_TRIPS[name]
    text = dump_inventory(inventory)
    again = parse_inventory(text, file="model.json")
    assert again == inventory
    assert again.versions == inventory.versions
    assert dump_inventory(again) == text


@st.composite
def inventories_of_trees(draw: st.DrawFn) -> Inventory:
    """Random trees of modules in which ModuleLists count as the inspection of a model counts them."""
    modules: list[ModuleInfo] = []

    def grow(name: str, layer: LayerIndex | None, depth: int) -> None:
        is_list = draw(st.booleans())
        shape = draw(st.sampled_from([(), (4, 2), (8,)]))
        tensors = (TensorInfo("weight", shape, draw(st.sampled_from(["bfloat16", "int8"]))),) if shape else ()
        modules.append(ModuleInfo(name, "ModuleList" if is_list else "Block", tensors=tensors, layer=layer))
        if depth == 3:
            return
        names = draw(st.lists(st.sampled_from(["0", "1", "2", "3", "01", "a", "b"]), unique=True, max_size=5))
        missing = draw(st.integers(0, 2))  # children that are None or aliases: they count, and are not there
        for index, each in enumerate(names):
            inner = LayerIndex(index, len(names) + missing) if is_list and layer is None else layer
            grow(f"{name}.{each}" if name else each, inner, depth + 1)

    grow("", None, 0)
    return Inventory("random", tuple(modules))


@given(inventories_of_trees())
@settings(max_examples=60, deadline=None)
def test_round_trip_of_any_tree(inventory: Inventory) -> None:
    """Any tree comes back, whatever the numbers in its stacks."""
    assert parse_inventory(dump_inventory(inventory), file="model.json") == inventory


def test_equal_layers_are_written_once() -> None:
    """Sixty-one layers take as much room as one, and each of them is there again."""
    text = dump_inventory(llama(layers=61))
    assert len(text) < 10_000
    assert '"0..60"' in text
    assert abs(len(text) - len(dump_inventory(llama(layers=11)))) < 10


def test_experts_fold_inside_layers() -> None:
    """Folding works on every level: 61 layers of 256 experts are still small."""
    modules = [root(), ModuleInfo("layers", "ModuleList")]
    for index in range(8):
        layer = LayerIndex(index, 8)
        modules.append(ModuleInfo(f"layers.{index}", "Block", layer=layer))
        modules.append(ModuleInfo(f"layers.{index}.experts", "ModuleList", layer=layer))
        modules += [linear(f"layers.{index}.experts.{each}", 4, 2, layer=layer) for each in range(32)]
    inventory = Inventory("moe", tuple(modules))
    text = dump_inventory(inventory)
    assert len(text) < 1000
    assert parse_inventory(text, file="moe.json") == inventory


def test_a_run_ends_where_a_layer_differs() -> None:
    """Neighbours that differ are apart in the file: 0 to 1, then 2, then 3."""
    inventory = inventories.changed(llama(layers=4), "model.layers.2.mlp.up_proj", keep_in_fp32=True)
    children = json.loads(dump_inventory(inventory))["modules"]["children"]["model"]["children"]["layers"]["children"]
    assert list(children) == ["0..1", "2", "3"]


def test_only_the_outermost_stack_counts() -> None:
    """Inside a layer an inner ModuleList does not start a count of its own."""
    again = parse_inventory(dump_inventory(ROUND_TRIPS["empty-stack-around-a-stack"]), file="model.json")
    assert again.by_name["blocks.0.2"].layer == LayerIndex(0, 2)


def test_load_reads_a_file(tmp_path: Path) -> None:
    """A file comes back, a byte order mark before it or not."""
    path = tmp_path / "llama.json"
    for mark in ("", "\ufeff"):
        path.write_text(mark + dump_inventory(llama()), encoding="utf-8")
        assert load_inventory(path) == llama()


def test_load_says_what_it_cannot_read(tmp_path: Path) -> None:
    """A missing file and one that is not text are errors about the model."""
    with pytest.raises(ModelError, match=r"cannot read the inventory .*gone\.json: .*No such file"):
        load_inventory(tmp_path / "gone.json")
    (tmp_path / "weights.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelError, match=r"cannot read the inventory .*weights\.json: 'utf-8' codec"):
        load_inventory(tmp_path / "weights.json")


def test_is_inventory(tmp_path: Path) -> None:
    """An inventory is recognised by its first key, wherever a formatter has moved it."""
    path = tmp_path / "model.json"
    path.write_text(dump_inventory(llama()), encoding="utf-8")
    assert is_inventory(path)
    path.write_text(json.dumps(json.loads(dump_inventory(llama(layers=40))), indent=2, sort_keys=True))
    assert is_inventory(path)
    path.write_text('{"format_version": 1}')
    assert not is_inventory(path)
    path.write_bytes(b"\xff\xfe")
    assert not is_inventory(path)
    assert not is_inventory(tmp_path / "gone.json")


def document(**changes: Any) -> dict[str, Any]:
    """A valid inventory file as data, with other values for some keys."""
    data: dict[str, Any] = json.loads(dump_inventory(llama(tied=True)))
    return data | changes


def tree(**facts: Any) -> dict[str, Any]:
    """A file with one module `fc` of these facts."""
    return document(tied={}, modules={"type": "Net", "children": {"fc": {"type": "Linear", **facts}}})


MALFORMED: dict[str, tuple[Any, str]] = {
    "not-a-mapping": ([], r"it has no `rulequant_inventory`"),
    "another-file": ({"format_version": 1}, r"it has no `rulequant_inventory`"),
    "another-version": (document(rulequant_inventory=2), r"inventory format 2; this rulequant reads 1\n  write"),
    "version-true": (document(rulequant_inventory=True), r"`rulequant_inventory` is True, not of type int"),
    "no-modules": ({k: v for k, v in document().items() if k != "modules"}, r"it has no `modules`"),
    "no-aliases": ({k: v for k, v in document().items() if k != "aliases"}, r"it has no `aliases`"),
    "model-number": (document(model=3), r"`model` is 3, not of type str"),
    "model-type-list": (document(model_type=["llama"]), r"`model_type` is \['llama'\], not of type str"),
    "versions-number": (document(versions={"torch": 2}), r"`versions` holds 2, not text"),
    "alias-of-nothing": (document(aliases={"a": "nowhere"}), r"'a' is an alias of 'nowhere', which is not a module"),
    "alias-of-an-alias": (document(aliases={"a": "model", "b": "a"}), r"'b' is an alias of 'a', which is not a module"),
    "alias-taken": (document(aliases={"lm_head": "model"}), r"module 'lm_head' comes twice"),
    "tied-to-nothing": (document(tied={"lm_head.weight": "gone"}), r"'lm_head.weight' is tied to 'gone', and not both"),
    "nothing-tied": (document(tied={"gone": "lm_head.weight"}), r"'gone' is tied to 'lm_head.weight', and not both"),
    "tied-to-itself": (document(tied={"lm_head.weight": "lm_head.weight"}), r"and not both of them are tensors"),
    "tensor-number": (tree(tensors={"weight": 3}), r"tensor 'weight' is 3, not a dtype and shape such as"),
    "tensor-dtype": (tree(tensors={"weight": "float3[2]"}), r"tensor 'weight' is 'float3\[2\]', not a dtype and shape"),
    "tensor-shape": (tree(tensors={"weight": "int8[2,,3]"}), r"tensor 'weight' is 'int8\[2,,3\]', not a dtype and"),
    "tensor-digits": (tree(tensors={"weight": f"int8[{'9' * 5000}]"}), r"Exceeds the limit"),
    "tensors-list": (tree(tensors=["weight"]), r"`tensors` is \['weight'\], not of type dict"),
    "kind": (tree(kind="lienar"), r"module 'fc' has the kind 'lienar'; known kinds: linear, conv1d"),
    "flag-text": (tree(output_head="yes"), r"`output_head` is 'yes', not of type bool"),
    "unknown-key": (tree(keep_in_fp16=True), r"module 'fc' has the key `keep_in_fp16`, which means nothing there"),
    "no-type": (document(modules={"tensors": {}}), r"module '' has the key `tensors`, which means nothing there"),
    "type-number": (tree(type=7), r"`type` is 7, not of type str"),
    "layer": (tree(layer=[1]), r"module 'fc' has the layer \[1\], not an index and a length"),
    "layer-true": (tree(layer=[0, True]), r"module 'fc' has the layer \[0, True\]"),
    "stack": (tree(stack=True), r"`stack` is True, not of type int"),
    "children-list": (tree(children=[]), r"`children` is \[\], not of type dict"),
    "child-number": (tree(children={"0": 3}), r"module 'fc.0' is 3, not a mapping"),
    "segment-empty": (tree(children={"": {"type": "A"}}), r"'' is neither one segment of a name nor a range"),
    "segment-dotted": (tree(children={"a.b": {"type": "A"}}), r"'a.b' is neither one segment of a name nor a range"),
    "twice": (tree(children={"0..3": {"type": "A"}, "2": {"type": "A"}}), r"module 'fc.2' comes twice"),
    "range-backwards": (tree(children={"3..0": {"type": "A"}}), r"the range '3..0' is empty or too long"),
    "range-of-one": (tree(children={"3..3": {"type": "A"}}), r"the range '3..3' is empty or too long"),
    "range-huge": (tree(children={"0..999999999999": {"type": "A"}}), r"the range '0..999999999999' is empty or too"),
    "range-digits": (tree(children={f"0..{'9' * 5000}": {"type": "A"}}), r"Exceeds the limit"),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(name: str) -> None:
    """A file that no rulequant wrote is one error that says what is wrong in it, and how to get a good one."""
    data, message = MALFORMED[name]
    with pytest.raises(ModelError, match=message) as caught:
        parse_inventory(json.dumps(data), file="model.json")
    assert caught.value.message.startswith("model.json")
    assert caught.value.remedy == "write it anew with `rulequant inventory MODEL -o FILE`"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param('{"rulequant_inventory": 1', id="truncated"),
        pytest.param("[" * 100_000, id="deep"),
        pytest.param("9" * 10_000, id="digits"),
    ],
)
def test_not_json(text: str) -> None:
    """Text that is no JSON is an error about the model too."""
    with pytest.raises(ModelError, match=r"model\.json is not a valid inventory file"):
        parse_inventory(text, file="model.json")


def test_ranges_within_ranges_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nested ranges multiply; each node counts, module or not."""
    monkeypatch.setattr("rulequant.inventory_file._MAX_MODULES", 1000)
    bomb: dict[str, Any] = {"children": {"0..500": {"children": {"0..500": {"children": {"0..500": {}}}}}}}
    with pytest.raises(ModelError, match="more than 1,000 modules"):
        parse_inventory(json.dumps(document(modules=bomb)), file="model.json")


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(each for key, child in items for each in _paths(child, (*path, key)))]


VALID = document(aliases={"head": "lm_head"})
VALID_PATHS = _paths(VALID)[1:]
JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([]), st.just({}),
    st.sampled_from(["0..3", "int8[2]", "lm_head", "lm_head.weight", "model", "Linear", {"type": "A"}, [0, 1]]),
)  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(VALID_PATHS), st.sampled_from(["set", "drop", "rename"]), JUNK), max_size=3))
@settings(max_examples=200, deadline=None)
def test_mutations_never_escape(changes: list[tuple[tuple[Any, ...], str, Any]]) -> None:
    """A valid file changed at random is refused as a model error, or read; what is read can be written again."""
    data = copy.deepcopy(VALID)
    for path, action, junk in changes:
        _mutate(data, path, action, junk)
    try:
        inventory = parse_inventory(json.dumps(data), file="model.json")
    except ModelError:
        return
    assert parse_inventory(dump_inventory(inventory), file="model.json") == inventory


def _mutate(data: Any, path: tuple[Any, ...], action: str, junk: Any) -> None:
    for part in path[:-1]:
        if not isinstance(data, dict | list) or (isinstance(data, dict) and part not in data):
            return
        if isinstance(data, list) and (not isinstance(part, int) or part >= len(data)):
            return
        data = data[part]
    if not isinstance(data, dict) or path[-1] not in data:
        return
    if action == "set":
        data[path[-1]] = junk
    else:
        value = data.pop(path[-1])
        if action == "rename":
            data[str(junk)] = value
