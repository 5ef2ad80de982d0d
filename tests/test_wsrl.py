"""WSRL: what the switch keeps and drops, the warm-up, the online losses, and a resumed run."""

import dataclasses
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, pendulum
from test_cal_ql import Constant, Recorder, make_batch, q_values, stir

import cal_ql
import wsrl

OBS, ACT, B = 5, 2, 16


@pytest.fixture(autouse=True)
def log_often(monkeypatch):
    monkeypatch.setattr(wsrl, "LOG_EVERY", 10)


def make_agent(**settings):
    torch.manual_seed(0)
    args = dataclasses.replace(
        wsrl.Args(), **{"compile": False, "num_actions": 3, "gamma": 0.9, "hidden": 32} | settings
    )
    agent = wsrl.Agent(OBS, ACT, args, torch.device("cpu"))
    stir(agent)
    return agent


def test_defaults():
    args = wsrl.Args()
    assert (
        args.num_critics,
        args.critic_subset,
        args.layer_norm,
        args.warmup_steps,
        args.utd_ratio,
    ) == (10, 2, True, 5000, 4)
    fields = {field.name for field in dataclasses.fields(wsrl.Args)}
    assert all(settings.keys() <= fields for settings in wsrl.PAPER_SETTINGS.values())


def test_settings_offline_are_those_of_cal_ql():
    """But for the ensemble, the layer norm of all networks, the budgets, and kitchen's rewards."""
    offline = "calibrate cql_alpha lagrange cql_gap importance_sampling max_backup num_actions"
    same = [*offline.split(), "hidden", "actor_layers", "critic_layers", "actor_lr", "critic_lr"]
    same += ["gamma", "tau", "reward_scale", "success_ends_episode", "infinite_horizon"]
    assert wsrl.PAPER_SETTINGS.keys() == cal_ql.PAPER_SETTINGS.keys()
    for family in wsrl.PAPER_SETTINGS:
        flags = ["--dataset-id", f"x/{family}/a-v0"]
        args, parent = wsrl.parse_args(flags), cal_ql.parse_args(flags)
        for name in same:
            assert getattr(args, name) == getattr(parent, name), (family, name)
        fixed = (args.num_critics, args.critic_subset, args.layer_norm, args.utd_ratio)
        assert fixed == (10, 2, True, 4)
        assert (args.warmup_steps, args.retain_offline_ratio) == (5_000, 0.0)
        assert args.online_max_backup == ("maze" in family)
        assert args.reward_bias == (-4.0 if family == "kitchen" else parent.reward_bias)
    budgets = {}
    for family in ("antmaze", "door", "kitchen"):
        settings = wsrl.PAPER_SETTINGS[family]
        budgets[family] = (settings["offline_steps"], settings["online_steps"])
    expected = {"antmaze": 1_000_000, "door": 20_000, "kitchen": 250_000}
    assert budgets == {family: (offline, 500_000) for family, offline in expected.items()}


@pytest.mark.parametrize("script", [cal_ql, wsrl])
def test_every_parameter_has_its_own_memory(script):
    agent = script.Agent(
        OBS, ACT, script.Args(layer_norm=True, critic_layers=3, compile=False), torch.device("cpu")
    )
    assert (len(agent.actor.net.norms), len(agent.critic.net.norms)) == (4, 6)
    places = [parameter.data_ptr() for parameter in agent.parameters()]
    assert len(set(places)) == len(places)


def test_offline_losses_are_those_of_cal_ql():
    agent, batch = make_agent(lagrange=True), make_batch()
    args = {name: value for name, value in vars(agent.args).items() if hasattr(cal_ql.Args, name)}
    parent = cal_ql.Agent(OBS, ACT, cal_ql.Args(**args), torch.device("cpu"))
    parent.load_state_dict(agent.state_dict())
    for one, other in (
        (agent.critic_loss, parent.critic_loss),
        (agent.actor_loss, parent.actor_loss),
    ):
        results = []
        for loss in (one, other):
            torch.manual_seed(3)
            results.append(loss(batch))
        assert results[0][0].item() == results[1][0].item()
        for (result, _), network in zip(results, (agent, parent)):
            network.zero_grad()
            result.backward()
        for p, q in zip(agent.parameters(), parent.parameters(), strict=True):
            assert (p.grad is None and q.grad is None) or torch.equal(p.grad, q.grad)
        assert results[0][1].keys() == results[1][1].keys()


@pytest.mark.parametrize(
    "max_backup", [False, True]
)  # the offline phase's alone: it must change nothing here
@pytest.mark.parametrize("online_max_backup", [False, True])
def test_online_critic_loss_equals_numpy(online_max_backup, max_backup):
    agent, batch = (
        make_agent(online_max_backup=online_max_backup, max_backup=max_backup),
        make_batch(),
    )
    agent.actor.sample = recorder = Recorder(agent.actor)
    subsets, choose = [], agent.some_critics
    agent.some_critics = lambda: subsets.append(choose()) or subsets[-1]
    loss, metrics = agent.critic_loss(batch, online=True)
    x = {name: column.double().numpy() for name, column in batch.items()}
    following, _ = recorder.drawn[0]
    assert (len(recorder.drawn), len(following), len(subsets)) == (
        1,
        3 if online_max_backup else 1,
        1,
    )
    next_q = q_values(agent.critic_target.net, x["next_obs"], following, layer_norm=True)
    target = x["rewards"] + 0.9 * (1 - x["terminations"]) * next_q[subsets[0].numpy()].min(0).max(0)
    q = q_values(agent.critic.net, x["obs"], x["actions"][None], layer_norm=True)[:, 0]
    assert loss.item() == pytest.approx(np.mean((q - target) ** 2), rel=1e-4)
    loss.backward()
    assert all(
        p.grad is None for p in (*agent.actor.parameters(), agent.log_alpha, agent.log_multiplier)
    )
    assert metrics.keys() == {"td_loss", "q"}
    assert metrics["q"].item() == pytest.approx(q.mean(), rel=1e-4, abs=1e-5)


def test_the_reward_of_a_success_is_the_target():
    """Antmaze: 10 * 1 - 5 = 5, and no bootstrap."""
    settings = wsrl.PAPER_SETTINGS["antmaze"]
    reward = settings["reward_scale"] * 1 + settings["reward_bias"]
    agent, batch = make_agent(), make_batch()
    agent.critic = Constant(lambda actions: torch.zeros(actions.shape[:2]))
    agent.critic_target = Constant(lambda actions: torch.full(actions.shape[:2], 1e6))
    batch |= {"rewards": torch.full((B,), reward), "terminations": torch.ones(B)}
    assert agent.critic_loss(batch, online=True)[1]["td_loss"].item() == pytest.approx(25)


def test_actor_takes_the_lowest_of_all_critics():
    agent, batch = make_agent(), make_batch()

    def loss():
        torch.manual_seed(0)
        return agent.actor_loss(batch)[1]["actor_loss"].item()

    before = loss()
    with torch.no_grad():
        agent.critic.net.biases[-1][7] += 100.0  # now never the lowest
        raised = loss()
        agent.critic.net.biases[-1][7] += 1.0
        assert loss() == raised
        agent.critic.net.biases[-1][7] -= 300.0  # now always the lowest
        assert loss() > before + 100


def test_a_step_online_is_four_critic_steps_and_one_of_policy_and_temperature():
    agent, batches = make_agent(lagrange=True), [make_batch() for _ in range(4)]
    judged, critic_loss = [], agent.compiled_critic_loss
    for _ in range(2):
        agent.update(batches[0])
    before, critics, seen = agent.log_multiplier.item(), [], []
    follow, actor_loss = agent.update_target, agent.compiled_actor_loss
    agent.update_target = lambda: critics.append(agent.critic.net.weights[0].clone()) or follow()
    agent.compiled_actor_loss = lambda batch: seen.append(batch["obs"]) or actor_loss(batch)
    agent.compiled_critic_loss = lambda *x, **y: judged.append(x[0]) or critic_loss(*x, **y)
    agent.update_online(batches)
    assert [id(batch) for batch in judged] == [id(batch) for batch in batches]
    assert (
        len({weights.sum().item() for weights in critics}) == len(critics) == 4
    )  # the target follows each of them
    assert len(seen) == 1 and torch.equal(seen[0], torch.cat([batch["obs"] for batch in batches]))
    trained = {
        name: p
        for name, p in agent.named_parameters()
        if p.requires_grad and name != "log_multiplier"
    }
    for name, parameter in trained.items():
        assert agent.optimizer.state[parameter]["step"].item() == 2 + (
            4 if name.startswith("critic.") else 1
        ), name
    assert agent.log_multiplier.item() == before


def test_the_target_keeps_its_share_of_the_old_value():
    agent = make_agent()
    with torch.no_grad():
        for old, new in zip(agent.critic_target.parameters(), agent.critic.parameters()):
            old.fill_(1.0)
            new.fill_(0.0)
    for _ in range(4):
        agent.update_target()
    assert all(
        torch.allclose(p, torch.tensor(0.98015), atol=1e-5)
        for p in agent.critic_target.parameters()
    )


@pytest.mark.parametrize("forgotten", ["critic", "actor"])
def test_restart(forgotten):
    agent, batch = make_agent(), make_batch()
    agent.update(batch)
    before = {name: tensor.clone() for name, tensor in agent.state_dict().items()}
    if forgotten == "critic":
        agent.restart(wsrl.Critic, [agent.critic, agent.critic_target])
    else:
        agent.restart(wsrl.Actor, [agent.actor])
    after = agent.state_dict()
    assert not torch.equal(
        before[f"{forgotten}.net.weights.0"], after[f"{forgotten}.net.weights.0"]
    )
    kept = [name for name in before if not name.startswith(forgotten)]
    assert kept
    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert all(
        torch.equal(p, q)
        for p, q in zip(agent.critic.parameters(), agent.critic_target.parameters())
    ) == (forgotten == "critic")
    for name, parameter in agent.named_parameters():
        if parameter.requires_grad and name not in ("log_multiplier",):
            assert (parameter in agent.optimizer.state) == (not name.startswith(forgotten)), name


@pytest.mark.parametrize("script", [cal_ql, wsrl])
def test_temperature_and_multiplier_begin_at_1_and_e(script):
    args = script.Args(hidden=8, compile=False)
    agent = script.Agent(OBS, ACT, args, torch.device("cpu"))
    assert agent.log_alpha.exp().item() == 1.0
    assert agent.log_multiplier.exp().item() == pytest.approx(np.e)


def run(*flags):
    start = (
        []
        if flags[0] == "--resume"
        else ["--dataset-id", "test/pendulum/random-v0", *TINY, "--hidden", "16"]
    )
    start += [] if flags[0] == "--resume" else ["--warmup-steps", "70", "--num-actions", "2"]
    args = wsrl.parse_args([*start, *flags])
    wsrl.main(args)
    return Path(args.run_dir, args.run_name)


@pytest.mark.parametrize(
    "retain, warmup, first", [(0.0, 70, 71), (0.0, 0, 65), (0.5, 0, 33), (0.25, 70, 71)]
)
def test_warm_up_and_what_online_batches_hold(monkeypatch, retain, warmup, first):
    pendulum()
    events, batches = [], []
    update, add = wsrl.Agent.update_online, wsrl.ReplayBuffer.add
    make, state = wsrl.ReplayBuffer.__init__, {}

    def updating(self, parts):
        if not batches:
            state["first update"] = {
                name: tensor.clone() for name, tensor in self.state_dict().items()
            }
        batches.append([(part["rewards"] > 50).sum().item() for part in parts])
        events.append("update")
        return update(self, parts)

    def adding(self, **transition):
        add(self, **transition)
        events.append("add")
        assert self.size - self.offline_size == events.count("add")

    def tagged(self, columns, capacity, device):
        make(
            self, columns | {"rewards": columns["rewards"] + 100}, capacity, device
        )  # offline rows only

    monkeypatch.setattr(wsrl.Agent, "update_online", updating)
    monkeypatch.setattr(wsrl.ReplayBuffer, "add", adding)
    monkeypatch.setattr(wsrl.ReplayBuffer, "__init__", tagged)
    folder = run(
        "--run-name", "run", "--retain-offline-ratio", str(retain), "--warmup-steps", str(warmup)
    )
    assert events.index("update") == first  # so many transitions are there at the first update
    assert len(batches) == 90 - first + 1
    assert all(part == round(16 * retain) for parts in batches for part in parts)
    assert all(len(parts) == 4 for parts in batches)
    offline = torch.load(folder / "offline.pt", weights_only=True)["agent"]
    assert all(torch.equal(tensor, offline[name]) for name, tensor in state["first update"].items())


def test_moments_go_on_across_the_switch(monkeypatch):
    pendulum()
    seen, update = [], wsrl.Agent.update_online

    def updating(self, parts):
        seen.append(
            [
                {k: v.clone() for k, v in moments.items()}
                for moments in self.optimizer.state_dict()["state"].values()
            ]
        )
        return update(self, parts)

    monkeypatch.setattr(wsrl.Agent, "update_online", updating)
    folder = run("--run-name", "run")
    again = run("--run-name", "again", "--offline-checkpoint", str(folder / "offline.pt"))
    offline = torch.load(folder / "offline.pt", weights_only=True)["optimizer"]["state"].values()
    for first in (seen[0], seen[len(seen) // 2]):
        for moments, kept in zip(first, offline, strict=True):
            assert all(
                torch.equal(moments[name], kept[name]) for name in ("exp_avg", "exp_avg_sq", "step")
            )
    assert (again / "summary.json").exists()


@pytest.mark.parametrize("flag", ["--no-load-critic", "--no-load-policy"])
def test_ablations_begin_anew(flag):
    pendulum()
    folder = run("--run-name", "run", flag, "--warmup-steps", "90")  # no update at all
    offline, final = (
        torch.load(folder / name, weights_only=True)["agent"]
        for name in ("offline.pt", "latest.pt")
    )
    changed = {
        name.split(".")[0] for name in offline if not torch.equal(offline[name], final[name])
    }
    assert changed == ({"critic", "critic_target"} if flag == "--no-load-critic" else {"actor"})


@pytest.mark.parametrize("updates", [5, 12])
def test_interrupted_and_resumed_is_the_same_run(monkeypatch, updates):
    pendulum()
    flags = ["--no-load-critic", "--lagrange"]
    whole, update, count = run("--run-name", "whole", *flags), wsrl.Agent.update_online, [0]

    def counting(self, parts):
        count[0] += 1
        if count[0] == updates:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, parts)

    monkeypatch.setattr(wsrl.Agent, "update_online", counting)
    with pytest.raises(SystemExit):
        run("--run-name", "halves", *flags)
    monkeypatch.setattr(wsrl.Agent, "update_online", update)
    halves = run("--resume", "runs/halves/latest.pt")
    for name in ("eval.csv", "metrics.csv"):
        assert (whole / name).read_bytes() == (halves / name).read_bytes()
    state, again = (
        torch.load(folder / "latest.pt", weights_only=True)["agent"] for folder in (whole, halves)
    )
    assert all(torch.equal(tensor, again[name]) for name, tensor in state.items())


def test_resumed_in_the_first_episode_forgets_again_to_the_same_bytes(monkeypatch):
    pendulum()
    whole, add, count = run("--run-name", "whole", "--no-load-policy"), wsrl.ReplayBuffer.add, [0]

    def counting(self, **transition):
        count[0] += 1
        if count[0] == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return add(self, **transition)

    monkeypatch.setattr(wsrl.ReplayBuffer, "add", counting)
    with pytest.raises(SystemExit):
        run("--run-name", "halves", "--no-load-policy")
    monkeypatch.setattr(wsrl.ReplayBuffer, "add", add)
    halves = run("--resume", "runs/halves/latest.pt")
    assert (whole / "metrics.csv").read_bytes() == (halves / "metrics.csv").read_bytes()


def test_offline_checkpoints_of_cal_ql(capsys):
    pendulum()
    flags = [
        "--dataset-id",
        "test/pendulum/random-v0",
        *TINY,
        "--hidden",
        "16",
        "--num-actions",
        "2",
        "--online-steps",
        "0",
    ]
    same = ["--num-critics", "10", "--critic-subset", "2", "--layer-norm"]
    cal_ql.main(cal_ql.parse_args([*flags, *same, "--run-name", "ensemble"]))
    cal_ql.main(cal_ql.parse_args([*flags, "--run-name", "twin"]))
    tuned = run(
        "--run-name",
        "tuned",
        "--offline-checkpoint",
        "runs/ensemble/offline.pt",
        "--warmup-steps",
        "90",
    )
    assert "note: no update is made: the first 90 steps online have none" in capsys.readouterr().out
    start, final = (
        torch.load(path, weights_only=True)["agent"]
        for path in ("runs/ensemble/offline.pt", tuned / "latest.pt")
    )
    assert all(torch.equal(tensor, final[name]) for name, tensor in start.items())
    refused = (
        ([], "its layer_norm is False, not True"),
        (["--no-layer-norm"], "not torch.float32 (10, 5, 16)"),
    )
    for flags, words in refused:
        with pytest.raises(SystemExit) as stop:
            run("--run-name", "refused", "--offline-checkpoint", "runs/twin/offline.pt", *flags)
        assert stop.value.code == 2
        assert words in capsys.readouterr().err
    twin = ["--num-critics", "2", "--critic-subset", "0", "--no-layer-norm"]
    run("--run-name", "twin-tuned", "--offline-checkpoint", "runs/twin/offline.pt", *twin)
    for flags, words in (
        (["--utd-ratio", "0"], "--utd-ratio must be between 1"),
        (["--warmup-steps", "-1"], "--warmup-steps must be between 0"),
        (["--retain-offline-ratio", "2"], "between 0.0 and 1.0"),
    ):
        with pytest.raises(SystemExit):
            run("--run-name", "refused", *flags)
        assert words in capsys.readouterr().err
