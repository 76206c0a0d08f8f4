"""`rulequant verify`"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers

from rulequant.cli.main import run

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`llama`, and `out`, which apply made of it; only read."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        dtype="bfloat16",
    )
    folder = tmp_path_factory.mktemp("verify")
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "llama")
    assert run(["apply", str(folder / "llama"), "-o", str(folder / "out"), "-q"]) == 0
    return folder


@pytest.fixture(autouse=True)
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, with copies; what the command quiets is loud again afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    for name in ("llama", "out"):
        shutil.copytree(made / name, tmp_path / name)
    names = ("bitsandbytes", "torch", "transformers", "huggingface_hub")
    levels = {name: logging.getLogger(name).level for name in names}
    yield tmp_path
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def test_a_whole_output(capsys: Capture) -> None:
    """The result is on stdout, progress on stderr, and the exit code is 0."""
    assert run(["verify", "out", "--against", "llama", "--top", "3"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("output      out (rulequant ")
    assert "hashed: all as in the manifest" in out
    assert "against     llama: all 7 unquantized tensors are the same" in out
    assert "11 more with " in out
    assert out.endswith("\nno problems\n")
    assert err.startswith("comparing 6 files, ")
    assert "\ncomparing 21 tensors, " in err


def test_quiet_and_all(capsys: Capture) -> None:
    """Nothing on stderr, and every weight in the table."""
    assert run(["verify", "out", "--against", "llama", "--all", "-q"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count(" dB\n") == 14
    assert "more with" not in out


def test_json(capsys: Capture) -> None:
    """All weights, worst first, whatever --top says."""
    assert run(["verify", "out", "--against", "llama", "--top", "1", "--format", "json", "-q"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["ok"]
    errors = [each["relative_error"] for each in data["against"]["weights"]]
    assert len(errors) == 14
    assert errors == sorted(errors, reverse=True)


def test_findings(capsys: Capture) -> None:
    """They are printed with their codes, and the exit code is 1."""
    path = Path("out/model.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    Path("out/extra.py").write_text("")
    assert run(["verify", "out", "-q"]) == 1
    out = capsys.readouterr().out
    assert "error[RQ530]: model.safetensors: sha256 is " in out
    assert "error[RQ532]: extra.py: not in the manifest" in out
    assert out.endswith("\n2 problems found\n")
    assert run(["verify", "out", "-q", "--format", "json"]) == 1
    assert [each["code"] for each in json.loads(capsys.readouterr().out)["diagnostics"]] == ["RQ530", "RQ532"]


def test_many_findings(capsys: Capture) -> None:
    """A few of each code are printed, and the rest with --all; all are counted."""
    for number in range(8):
        Path(f"out/{number}.txt").write_text("")
    Path("out/generation_config.json").unlink()
    assert run(["verify", "out", "-q"]) == 1
    out = capsys.readouterr().out
    assert (out.count("error[RQ532]"), out.count("error[RQ531]")) == (5, 1)
    assert out.endswith("\n3 more like these; --all shows them\n\n9 problems found\n")
    assert run(["verify", "out", "-q", "--all"]) == 1
    assert capsys.readouterr().out.count("error[RQ532]") == 8


def test_quick_hashes_nothing(capsys: Capture) -> None:
    """And says so."""
    path = Path("out/model.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert run(["verify", "out", "--quick"]) == 0
    out, err = capsys.readouterr()
    assert "sizes compared, nothing hashed" in out
    assert err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'OUT'"),
        (["nowhere"], "nowhere: no such folder"),
        (["llama"], "no rulequant-manifest.json, so this is not a finished output"),
        (["out/config.json"], "out/config.json: not a folder"),
        (["out", "--against", "nowhere"], "nowhere"),
        (["out", "--against", "out"], "out is already quantized"),
        (["out", "--top", "0"], "Invalid value for '--top'"),
    ],
    ids=["nothing", "nowhere", "no output", "a file", "no original", "quantized original", "top"],
)
def test_mistakes_of_the_call(arguments: list[str], message: str, capsys: Capture) -> None:
    """Exit code 2, and what to do."""
    assert run(["verify", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err


def test_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """rich fits the table to the width; names are no markup."""
    from rulequant.cli import terminal

    monkeypatch.setattr(terminal, "is_terminal", lambda _: True)
    monkeypatch.setenv("COLUMNS", "60")
    assert run(["verify", "out", "--against", "llama", "--top", "2", "-q"]) == 0
    out = capsys.readouterr().out
    assert "relative error" in out
    assert "12 more with " in out
    assert all(len(line) <= 60 for line in out.partition("\n\n")[2].splitlines())
