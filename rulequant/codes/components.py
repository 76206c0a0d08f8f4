"""RQ321 to RQ325: rule files that name the components of a pipeline."""

from __future__ import annotations

from rulequant.codes.entry import Code, error

__all__ = ["CODES"]

CODES: tuple[Code, ...] = (
    error(
        "RQ321",
        "rules beside components",
        what="A file that names `components` says something else as well. Beside it only `version`, `name` and "
        "`description` may stand.",
        why="A pipeline has several models, and nothing says of which one the entry speaks.",
        wrong="""
components: {text_encoder_2: t5}
skip_modules: ["**.wo"]
""",
        right="""
components: {text_encoder_2: t5}
""",
    ),
    error(
        "RQ322",
        "no such file for a component",
        what="`components` maps the name of a component to the name of a bundled file, or to a path relative to the "
        "file it stands in.",
        why="The component would be copied as it is.",
        wrong="""
components: {text_encoder_2: t55}
""",
        right="""
components: {text_encoder_2: t5}
""",
    ),
    error(
        "RQ323",
        "components within components",
        what="The rule file of a component names components itself.",
        why="A component is one model, and pipelines do not nest.",
    ),
    error(
        "RQ324",
        "extending a file of components",
        what="`extends` names a file that says which rule file each component of a pipeline gets.",
        why="Such a file has no rules of its own. Extend the rule file of a component.",
    ),
    error(
        "RQ325",
        "rules for a pipeline, and one model",
        what="The rule file names components, and the model is no pipeline.",
        why="It says nothing about the modules of one model. Give the rule file of the component.",
    ),
)
