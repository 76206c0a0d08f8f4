"""A plan as a page."""

from __future__ import annotations

from html.parser import HTMLParser

from inventories import llama, of, ruleset

from rulequant.inventory import ModuleInfo, TensorInfo
from rulequant.planner import make_plan
from rulequant.report.html import GENERATOR, plan_html

VOID = {"meta", "br", "link", "img", "hr"}
ODD = ModuleInfo("<script>alert(1)</script>", '"&\x1b', tensors=(TensorInfo("weight", (4,), "float32"),))


class _Page(HTMLParser):
    """Checks that tags close, and collects what the page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [str(value) for key, value in attrs if key in {"src", "href"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _page(text: str) -> _Page:
    page = _Page()
    page.feed(text)
    page.close()
    return page


def test_is_whole_and_loads_nothing() -> None:
    """Every tag is closed, and neither scripts nor addresses are in it."""
    text = plan_html(make_plan(ruleset('skip_modules: ["**.o_proj"]'), llama()))
    page = _page(text)
    assert page.open == []
    assert page.addresses == []
    assert "script" not in page.tags
    assert "url(" not in text
    assert "@import" not in text


def test_says_what_the_plan_says() -> None:
    """Model, modules and findings are on it."""
    text = plan_html(make_plan(ruleset('skip_modules: ["**.o_prj"]'), llama()))
    assert GENERATOR in text
    assert "model.layers.*.self_attn.q_proj ×2" in text
    assert "RQ401" in text


def test_names_are_escaped() -> None:
    """A module cannot bring its own tags."""
    text = plan_html(make_plan(ruleset("output_embeddings: skip"), of(ODD, model="<b>m</b>")))
    assert "<script>" not in text
    assert "<b>m</b>" not in text
    assert "\x1b" not in text
    assert _page(text).open == []


def test_a_model_without_parameters() -> None:
    """Nothing is divided by zero."""
    assert _page(plan_html(make_plan(ruleset("output_embeddings: skip"), of(ModuleInfo("", "Empty"))))).open == []
