"""`rulequant apply`, and what else reads a checkpoint."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from rulequant.cli.inputs import torch_extra
from rulequant.cli.main import run
from rulequant.plan import Plan

Capture = pytest.CaptureFixture[str]
RULES = 'version: 1\nextends: causal_lm\nskip_modules: ["**.o_proj"]\n'


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of two layers with random weights."""
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
    folder = tmp_path_factory.mktemp("llama")
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, with a rule file; what the commands quiet is loud again afterwards."""
    import logging

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    Path("rules.yaml").write_text(RULES)
    levels = {
        name: logging.getLogger(name).level for name in ("bitsandbytes", "torch", "transformers", "huggingface_hub")
    }
    yield tmp_path
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def _config(output: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(output, "config.json").read_text())
    return found


def test_apply(checkpoint: Path, capsys: Capture) -> None:
    """The checkpoint is written; the summary is on stderr, and stdout stays empty."""
    assert run(["apply", str(checkpoint), "rules.yaml", "-o", "out"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("reading 21 tensors, ")
    assert "written          out (" in err
    assert "container        bitsandbytes, which transformers loads as it is" in err
    assert "bits per weight" in err
    assert re.search(r"^worst modules +[\d.]+%  model\.layers\.\S+ \(relative error, sampled\)$", err, re.MULTILINE)
    assert err.endswith(f"check it any time: rulequant verify out --against {checkpoint}\n")
    assert _config("out")["quantization_config"]["quant_method"] == "bitsandbytes"


def test_quiet_and_json(checkpoint: Path, capsys: Capture) -> None:
    """The record is on stdout, and with --quiet nothing is on stderr."""
    assert run(["apply", str(checkpoint), "-o", "out", "--quiet", "--format", "json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    record = json.loads(out)
    assert record["rules"] == "bundled:llama"
    assert record["output"] == "out"
    assert record["modules_quantized"] == 14
    assert record["bytes_after"] <= record["bytes_written"] < record["bytes_before"]
    errors = [each["relative_error"] for each in record["worst_modules"]]
    assert len(errors) == 5
    assert errors == sorted(errors, reverse=True)
    assert all(0.05 < each < 0.15 for each in errors)
    assert record["container"] == "bitsandbytes"


def test_saved_plan(checkpoint: Path, capsys: Capture) -> None:
    """`--plan` applies exactly what was saved, whatever the rules say now."""
    assert run(["plan", str(checkpoint), "rules.yaml", "-o", "plan.json"]) == 0
    Path("rules.yaml").unlink()
    assert run(["apply", str(checkpoint), "--plan", "plan.json", "-o", "out", "-q", "--format", "json"]) == 0
    out = capsys.readouterr().out
    record = json.loads(out[out.rindex("\n{") :])
    assert record["modules_quantized"] == 12


def test_container(checkpoint: Path) -> None:
    """The container may be asked for."""
    assert run(["apply", str(checkpoint), "-o", "out", "-q", "--container", "rulequant"]) == 0
    assert _config("out")["quantization_config"]["quant_method"] == "rulequant"


def test_shards(checkpoint: Path) -> None:
    """Files stay below the size that is asked for."""
    assert run(["apply", str(checkpoint), "-o", "out", "-q", "--max-shard-size", "40KB"]) == 0
    assert len(list(Path("out").glob("*.safetensors"))) > 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        pytest.param(["{model}"], 2, "Missing option '-o'", id="no output"),
        pytest.param(["{model}", "-o", "."], 2, ". exists", id="existing output"),
        pytest.param(["rules.yaml", "-o", "out"], 2, "is a file, and apply reads a checkpoint", id="a file for MODEL"),
        pytest.param(["{model}", "rules.yaml", "--plan", "p", "-o", "out"], 2, "give one of the two", id="two plans"),
        pytest.param(["{model}", "--plan", "rules.yaml", "-o", "out"], 2, "rules.yaml is not a plan", id="no plan"),
        pytest.param(["{model}", "-o", "out", "--max-shard-size", "5"], 2, "less than a kilobyte", id="shard size"),
        pytest.param(["{model}", "-o", "out", "--workers", "0"], 2, "0 is not in the range x>=1", id="no workers"),
        pytest.param(
            ["{model}", "-o", "out", "--workers", "2", "--memory", "20MB"],
            2,
            "20.00 MB is too little for 2 workers, each of which takes at least 12.58 MB\n  give at least 24MiB",
            id="memory",
        ),
        pytest.param(["{model}", "misfit.yaml", "-o", "out"], 1, "RQ401", id="rules that do not fit"),
        pytest.param(["{model}", "t5", "-o", "out"], 1, "RQ405", id="rules of another family"),
        pytest.param(["{model}", "-o", "gone/out"], 2, "gone", id="no folder for the output"),
        pytest.param(["{model}", "-o", "{model}/out"], 2, "inside", id="output inside the input"),
    ],
)
def test_refuses(arguments: list[str], code: int, message: str, checkpoint: Path, capsys: Capture) -> None:
    """Each mistake has its message and exit code, and nothing is written."""
    Path("misfit.yaml").write_text(RULES.replace("o_proj", "o_prj"))
    before = sorted(Path().rglob("*"))
    assert run(["apply", *(each.format(model=checkpoint) for each in arguments)]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert sorted(Path().rglob("*")) == before


def test_warnings_are_told(checkpoint: Path, capsys: Capture) -> None:
    """A warning about the rules and this model does not stop the run, and is printed."""
    Path("rules.yaml").write_text('version: 1\nextends: causal_lm\nskip_modules: ["**.norm"]\n')
    assert run(["apply", str(checkpoint), "rules.yaml", "-o", "out", "--quiet"]) == 0
    assert "warning[RQ403]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("told", "complete", "line"),
    [
        pytest.param("", False, "interrupted; nothing was written to out\n", id="before anything"),
        pytest.param(
            "2 of 4 shards are kept",
            False,
            "interrupted; nothing was written to out; 2 of 4 shards are kept\n",
            id="half way",
        ),
        pytest.param("", True, "interrupted; out is complete\n", id="too late"),
    ],
)
def test_interrupt(
    told: str, complete: bool, line: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Ctrl-C says what became of the output."""
    from rulequant.torch.checkpoint import write as write_module

    def interrupted(*_: object, **__: object) -> Plan:
        if complete:
            Path("out").mkdir()
        raise KeyboardInterrupt(told) if told else KeyboardInterrupt

    monkeypatch.setattr(write_module, "write_output", interrupted)
    assert run(["apply", str(checkpoint), "-o", "out"]) == 130
    assert capsys.readouterr().err == line


def test_restart(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """The same command again takes what is there; `--restart` does not."""
    from rulequant.cli import progress as progress_module

    class Stopped(progress_module.Silent):
        def advance(self, tensor: str, nbytes: int) -> None:
            if tensor.endswith("layers.1.mlp.down_proj.weight"):
                raise KeyboardInterrupt

    command = ["apply", str(checkpoint), "-o", "out", "--max-shard-size", "10KB"]
    with monkeypatch.context() as patch:
        patch.setattr(progress_module, "choose_progress", lambda quiet: Stopped())
        assert run(command) == 130
        assert run(command) == 130
    assert "\nchecking " in capsys.readouterr().err
    assert run([*command, "--restart"]) == 0
    assert capsys.readouterr().err.startswith("removing what an interrupted run left in ")


def test_inventory_and_plan_agree(checkpoint: Path, capsys: Capture) -> None:
    """A plan of the inventory file is that of the checkpoint."""
    assert run(["inventory", str(checkpoint), "-o", "model.json"]) == 0
    capsys.readouterr()
    plans = []
    for model in (str(checkpoint), "model.json"):
        assert run(["plan", model, "rules.yaml", "--format", "json"]) == 0
        plans.append(json.loads(capsys.readouterr().out))
    assert plans[0] == plans[1]


def test_callable(capsys: Capture) -> None:
    """MODEL may be a function that returns a module; without a type it needs RULES."""
    Path("mine.py").write_text("from torch import nn\ndef build():\n    return nn.Sequential(nn.Linear(64, 64))\n")
    assert run(["plan", "mine:build", "causal_lm"]) == 0
    assert "Sequential" in capsys.readouterr().out
    assert run(["plan", "mine:build"]) == 2


def test_libraries_are_quiet(checkpoint: Path) -> None:
    """In a process of its own neither torch nor transformers nor bitsandbytes writes a word."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONWARNINGS"}
    command = [sys.executable, "-m", "rulequant", "apply", str(checkpoint), "-o", "out", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_libraries_are_loud_when_asked(checkpoint: Path) -> None:
    """RULEQUANT_DEBUG leaves their logging alone."""
    code = (
        "import logging, os\nfrom rulequant.cli.inputs import torch_extra\n"
        "with torch_extra('x'):\n    pass\n"
        "print(logging.getLogger('bitsandbytes').level)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"RULEQUANT_DEBUG": "1"},
        check=True,
    )
    assert done.stdout == "0\n"


@pytest.mark.parametrize("arguments", [["plan"], ["apply", "-o", "out", "--workers", "2"]], ids=lambda each: each[0])
def test_a_broken_library_is_named(arguments: list[str], checkpoint: Path, tmp_path: Path) -> None:
    """What is installed and cannot be imported is no defect of rulequant; an import that fails elsewhere is."""
    stub = tmp_path / "stub" / "torch"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text("raise ImportError('libcudart.so: cannot open shared object file')\n")
    environment = os.environ | {"PYTHONPATH": str(stub.parent)}
    command = [sys.executable, "-m", "rulequant", *arguments, str(checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert "needs torch, which is installed and cannot be imported: libcudart.so: cannot open" in done.stderr
    assert "install it anew, with all that it needs: pip install 'rulequant[torch]'" in done.stderr
    with pytest.raises(ImportError, match="ours"), torch_extra("it"):
        raise ImportError("ours")


def _apply_alone(*arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, which has another one prepare."""
    command = [sys.executable, "-m", "rulequant", "apply", *arguments, "-o", "out", "--workers", "2"]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"NO_COLOR": "1"})


def test_findings_of_the_preparing_process_come_whole(checkpoint: Path) -> None:
    """As text with the line of the rule file, as JSON, with the exit code; warnings go to stderr by themselves."""
    Path("misfit.yaml").write_text(RULES.replace("o_proj", "o_prj"))
    told = _apply_alone(str(checkpoint), "misfit.yaml")
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr.startswith("error[RQ401]: `**.o_prj` matches no module of ")
    assert "--> misfit.yaml:3:16" in told.stderr
    assert "did you mean `**.o_proj`?" in told.stderr
    data = _apply_alone(str(checkpoint), "misfit.yaml", "--format", "json")
    assert (data.returncode, data.stderr) == (1, "")
    assert [each["code"] for each in json.loads(data.stdout)["diagnostics"]] == ["RQ401"]
    Path("rules.yaml").write_text('version: 1\nextends: causal_lm\nskip_modules: ["**.norm"]\n')
    warned = _apply_alone(str(checkpoint), "rules.yaml", "--quiet")
    assert warned.returncode == 0
    assert warned.stderr.startswith("warning[RQ403]")


def test_errors_of_the_preparing_process_come_whole(checkpoint: Path, tmp_path: Path) -> None:
    """With the remedy, and exit code 2."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((checkpoint / "config.json").read_text())
    told = _apply_alone(str(broken))
    assert (told.returncode, told.stdout) == (2, "")
    assert "no weights: neither model.safetensors nor" in told.stderr
    assert "  give a folder with the weights in safetensors format" in told.stderr
