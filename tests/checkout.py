"""A copy of the checkout, for tests that build from it: nothing is written into the checkout itself."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

__all__ = ["CHECKOUT", "commit_all", "copy_checkout", "git"]

CHECKOUT = Path(__file__).parents[1]
_CACHES = ("__pycache__", ".*_cache", ".hypothesis", ".benchmarks")
_LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "venv", "build", "dist", "out", "*.egg-info", *_CACHES)


def copy_checkout(target: Path) -> Path:
    """Copy what the checkout holds now, committed or not, without history and caches."""
    shutil.copytree(CHECKOUT, target, ignore=_LEFT_OUT)
    return target


def commit_all(folder: Path) -> str:
    """Make a folder a git repository with one commit, and return the commit's hash."""
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--no-verify", "--message", "All files")
    return git(folder, "rev-parse", "HEAD").strip()


def git(folder: Path, *arguments: str) -> str:
    """Run git without the user's settings and hooks."""
    who = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in _WHO.items()}
    done = subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env={**os.environ, **who, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


_WHO = {"NAME": "Tester", "EMAIL": "tester@example.org"}
