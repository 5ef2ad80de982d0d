"""The pages that teach: lines that they quote stand in iql.py, and their numbers are true."""

import importlib.util
import math
import re

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, pendulum, run

import iql

READING = (ROOT / "docs/reading_iql.md").read_text()
ADDING = (ROOT / "docs/add_algorithm.md").read_text()
SCRIPT = (ROOT / "iql.py").read_text()
QUOTES = re.findall(r"```python\n(.*?)```", READING, re.S)
ARGS = iql.Args(**iql.PAPER_SETTINGS["hopper"])


def packed(code: str) -> str:
    """Code without its whitespace: indented less, a statement may need fewer lines."""
    return "".join(code.split())


def table(text: str) -> dict[str, np.ndarray]:
    """The lines `name number number ...` of what docs/reading_iql.py prints."""
    rows = re.findall(r"^(\w+) +((?: *-?\d+\.\d{5})+)$", text, re.M)
    return {name: np.array(numbers.split(), float) for name, numbers in rows}


PRINTED = re.search(r"```text\n(mean .*?)```", READING, re.S)[1]
BEFORE, AFTER = [table(part) for part in PRINTED.split("after the update:")]


def log_prob(mean, std, action):
    z = (action - mean) / std
    return np.sum(-0.5 * z**2 - np.log(std) - 0.5 * math.log(2 * math.pi))


def test_there_are_quotes():
    assert len(QUOTES) >= 12
    assert re.findall(r"^## (\d+)\. ", READING, re.M) == [str(n) for n in range(1, 13)]


@pytest.mark.parametrize("quote", QUOTES, ids=lambda quote: quote.split("\n")[0].strip()[:40])
def test_quotes_stand_in_the_script(quote):
    assert packed(quote) in packed(SCRIPT)


def test_printed_numbers_follow_from_each_other():
    x = BEFORE
    assert ARGS.num_critics == len(x["critic"]) == len(x["critic_target"])
    assert x["reward"] == pytest.approx(x["raw_reward"] * x["scale"], abs=2e-5)
    expected = log_prob(x["mean"], x["std"], x["action"])
    assert x["log_prob"] == pytest.approx(expected, abs=2e-4)
    for x in (BEFORE, AFTER):
        u = x["critic_target"].min() - x["v"]
        assert x["advantage"] == pytest.approx(u, abs=2e-5)
        share = np.where(u > 0, ARGS.expectile, 1 - ARGS.expectile)
        assert x["value_loss"] == pytest.approx(share * u**2, abs=2e-5)
        assert x["weight"] == pytest.approx(np.minimum(np.exp(ARGS.beta * u), 100), abs=1e-4)
        assert x["actor_loss"] == pytest.approx(-x["weight"] * x["log_prob"], abs=5e-5)
        target = BEFORE["reward"] + ARGS.gamma * x["next_v"]
        assert x["critic_loss"] == pytest.approx(np.sum((x["critic"] - target) ** 2), abs=1e-4)
        assert x["q"] == pytest.approx(x["critic"].mean(), abs=2e-5)


def test_numbers_in_the_text():
    """Every long number in the text is printed by the script, or derived here."""
    target = BEFORE["reward"][0] + ARGS.gamma * BEFORE["next_v"][0]
    errors = (BEFORE["critic"] - target) ** 2
    step = ARGS.tau * (AFTER["critic"][0] - BEFORE["critic_target"][0])
    opposite = ARGS.expectile * BEFORE["advantage"][0] ** 2
    known = [target, *errors, step, opposite]
    for part in (BEFORE, AFTER):
        known += [abs(number) for numbers in part.values() for number in numbers]
    text = re.sub(r"```.*?```", "", READING, flags=re.S)
    numbers = re.findall(r"\d+\.\d{5}", text)
    assert len(numbers) > 20
    for number in numbers:
        assert min(abs(float(number) - x) for x in known) < 1.1e-5, number
    moved = AFTER["critic_target"][0] - BEFORE["critic_target"][0]
    assert moved == pytest.approx(step, abs=2e-5)  # so says the text


def test_short_numbers_in_the_text():
    assert f"u = {math.log(100) / ARGS.beta:.3f}" in READING
    assert f"{100 * BEFORE['clipped'][0]:.1f} % of the rows" in READING
    assert f"{100 * BEFORE['positive'][0]:.0f} % have u > 0" in READING
    assert f"about {100_001 / ARGS.batch_size:.0f} updates" in READING
    assert f"{100 * ARGS.tau:g} % of the way" in READING
    assert f"With beta = {ARGS.beta:g}, our action weighs" in READING
    rows = 100_000 + ARGS.online_steps
    assert f"{ARGS.online_steps:,} steps of a default run, a third of\nits {rows:,} rows" in READING
    assert ARGS.online_steps / rows == pytest.approx(1 / 3)


def test_sizes_of_the_networks():
    agent = iql.Agent(11, 3, iql.Args(compile=False), torch.device("cpu"))
    sizes = {}
    for name, tensor in agent.state_dict().items():
        network = name.split(".")[0]
        sizes[network] = sizes.get(network, 0) + tensor.numel()
    assert sizes["critic"] == sizes["critic_target"]
    policy, value, critic = (f"{sizes[name]:,}" for name in ("actor", "value", "critic"))
    words = f"{sum(sizes.values()):,} numbers: {policy} of the policy, {value} of V, {critic} of"
    assert words in " ".join(READING.split())


def test_the_numbers_come_from_the_script(tmp_path, monkeypatch, capsys):
    """It runs, on a smaller task, and prints the lines of the page."""
    folder = run("--dataset-id", pendulum(), "--normalize-returns", *TINY, "--online-steps", 0)
    path = ROOT / "docs/reading_iql.py"
    spec = importlib.util.spec_from_file_location("reading_iql", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "DOCS", tmp_path)
    capsys.readouterr()
    script.main(str(folder / "offline.pt"))
    before, after = [table(part) for part in capsys.readouterr().out.split("after the update:")]
    assert list(before) == list(BEFORE)
    assert list(after) == list(AFTER)
    assert (tmp_path / "reading_iql.png").stat().st_size > 10_000
    assert len(path.read_text().splitlines()) <= 90


def test_the_recipe_names_what_exists():
    for name in re.findall(r"(?:\w+/)*\w+\.(?:py|md)\b", ADDING):
        assert "mine" in name or (ROOT / name).exists(), name
    for flag in re.findall(r"--([a-z-]+)", " ".join(re.findall(r"python mine.py.*", ADDING))):
        assert hasattr(iql.Args, flag.removeprefix("no-").replace("-", "_")), flag
    for name in ("PAPER_SETTINGS", "NETWORKS", "ONLINE_ONLY", "METRICS", "return_scale"):
        assert f"`{name}`" in ADDING
        assert hasattr(iql, name)
    assert "CHANGED_LINES = {" in (ROOT / "tests/test_shape.py").read_text()


def test_a_name_that_is_not_in_metrics(monkeypatch):
    """The mistake that the page describes says what the page says."""
    monkeypatch.setattr(iql, "KEYS", [key for key in iql.KEYS if key != "offline/v"])
    with pytest.raises(ValueError, match="dict contains fields not\\s+in fieldnames"):
        run("--dataset-id", pendulum(), *TINY, "--online-steps", 0)
