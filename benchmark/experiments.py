"""The experiments that benchmark/sweep.py can run: which claim, on what data, against what.

Every arm of a seed starts from the same offline.pt, which the command `offline` makes first; an arm
that names --offline-steps makes its own offline phase. An effect can only show where its
precondition holds: check that first, and where it does not hold, say "not testable here".

The budgets are those of a CPU. Networks of the CQL family have 128 units in a layer instead of 256:
a step then takes less than half the time, and every arm has the same ones.
"""

import dataclasses

# What a step usually takes on one thread of a CPU, in seconds: an update offline, online an
# environment step with its update. Only for the time that a sweep announces before it has run.
SECONDS_PER_STEP = {
    "iql.py": 0.006,
    "o3f.py": 0.010,
    "pex.py": 0.008,
    "jsrl_finetune.py": 0.008,
    "cal_ql.py": 0.025,
    "wsrl.py": 0.05,
    "porl.py": 0.05,
    "awac.py": 0.01,
    "td3_c.py": 0.006,
    "o3f_lapo.py": 0.05,
}


@dataclasses.dataclass
class Experiment:
    """One claim, and the runs that can tell."""

    claim: str  # what is claimed; empty: a comparison without a claim
    paper: str  # where, and with which number
    refuted: str  # what would refute it
    precondition: str  # what must hold before it can show
    metric: str  # what is compared, paired by seed
    measure: str  # its name among MEASURES of benchmark/tables.py
    pairs: list[tuple[str, str]]  # arms to compare; the first pair decides the claim
    datasets: list[str]
    seeds: int  # 0, 1, ...
    offline: str  # script and flags of the offline phase that the arms share
    arms: dict[str, str]  # name -> script and flags
    probe: str = ""  # a program that measures the precondition in offline.pt
    margin: float = 0.0  # the claim is shown if the interval of the first pair lies above
    shares: str = ""  # the experiment whose offline.pt it uses: the command `offline` is the same


def offline_tag(name: str) -> str:
    """The tag of the offline runs that an experiment starts from."""
    return f"{EXPERIMENTS[name].shares or name}-offline"


MAZE = "o2o/pointmaze/medium-play-v0"
REPLAY = "o2o/hopper/medium-replay-v0"
OFTEN = "--eval-every 1000 --eval-episodes 50"  # in mazes
JSRL = "jsrl_finetune.py --online-steps"
COLD = f"{JSRL} 40000 --eval-every 2000 --eval-episodes 50"
SELDOM = "--eval-every 5000 --eval-episodes 20"  # the behaviour is measured, not the policy's mean
O3F = f"o3f.py --online-steps 15000 {SELDOM} --exploration"
CQL = "--hidden 128 --num-actions 4"
WSRL = f"{CQL} --num-critics 5 {OFTEN}"
WSRL_OFFLINE = f"wsrl.py {CQL} --num-critics 5 --offline-steps 30000 --eval-every 1000"
WSRL_OFFLINE += " --eval-episodes 20"  # the score at the switch is the mean of the last five
WSRL_STEPS = f"wsrl.py {CQL} --num-critics 5 --eval-every 1000 --online-steps"
CAL_QL = f"cal_ql.py {CQL} --online-steps 10000 {OFTEN}"
IQL_OFFLINE = "iql.py --offline-steps 50000"
LAPO = "o3f_lapo.py --batch-size 128"
LAPO_ONLINE = f"{LAPO} --online-steps 2000 --eval-every 500 --exploration"
SHORT = "--online-steps 10000 --eval-every 2500"
OWN = f"--offline-steps 10000 {SHORT}"  # an offline phase of its own

EXPERIMENTS = {
    "jsrl-gate": Experiment(
        claim="the automatic gate prevents the drop after the switch",
        paper="ours: the gate is our addition to JSRL",
        refuted="automatic - direct: the paired 95 % interval holds 0",
        precondition="none",
        metric="lowest mean of 10 training episodes, as a share of the guide's",
        measure="lowest_ten",
        pairs=[("automatic", "direct"), ("guide", "automatic")],
        datasets=["o2o/hopper/medium-v0"],
        seeds=8,
        offline=IQL_OFFLINE,
        arms={
            "automatic": f"{JSRL} 50000",
            "direct": f"{JSRL} 50000 --schedule direct",
            "guide": f"{JSRL} 50000 --calibration-episodes 1000000",  # never hands over
        },
    ),
    "jsrl-cold": Experiment(
        claim="with little data, a guide that is followed less and less beats fine-tuning it",
        paper="JSRL: antmaze-medium-play with 100k transitions, 86.7 against IQL's 32.8",
        refuted="curriculum - warm: not above 0",
        precondition="the guide has at least 20 % success",
        metric="mean success online of the learner alone",
        measure="mean_online_learner",
        pairs=[("curriculum", "warm"), ("curriculum", "cold"), ("random", "warm")],
        datasets=["o2o/pointmaze/medium-play-10k-v0"],
        seeds=8,
        offline=f"iql.py --offline-steps 20000 {OFTEN}",
        arms={
            "curriculum": f"{COLD} --init cold --schedule curriculum",
            "random": f"{COLD} --init cold --schedule random",
            "cold": f"{COLD} --init cold --schedule direct",  # no guide
            "warm": f"{COLD} --schedule direct",  # IQL goes on, with the same batches
        },
    ),
    "o3f-maze": Experiment(
        claim="the search beats noise of the same size, and in mazes sigma must be small",
        paper="O3F over equal noise: +28 % on antmaze-large-diverse (LAPO), none there with IQL",
        refuted="o3f - noise: not above 0 in both mazes",
        precondition="with critics frozen at the switch, their choice beats the policy",
        metric="share of training episodes that reach the goal",
        measure="training_success",
        pairs=[("o3f", "noise"), ("o3f", "plain"), ("o3f", "o3f-0.2")],
        datasets=["o2o/pointmaze/large-v0", MAZE],
        seeds=8,
        offline=f"iql.py --num-critics 5 --offline-steps 20000 {SELDOM}",
        arms={
            "o3f": f"{O3F} o3f",
            "noise": f"{O3F} noise",
            "plain": f"{O3F} plain",
            "o3f-0.2": f"{O3F} o3f --sigma 0.2",
        },
        probe="benchmark/inspect_search.py --sigma 0.05 0.2 --episodes 50",
    ),
    "o3f-locomotion": Experiment(
        claim="the search beats noise of the same size",
        paper="O3F over equal noise: +14 % on halfcheetah-medium (IQL)",
        refuted="o3f - noise: not above 0",
        precondition="with critics frozen at the switch, their choice beats the policy",
        metric="mean return of the training episodes",
        measure="training_return",
        pairs=[("o3f", "noise"), ("o3f", "plain")],
        datasets=["o2o/halfcheetah/medium-v0", REPLAY],
        seeds=5,
        offline="iql.py --num-critics 5 --offline-steps 50000",
        arms={
            "o3f": "o3f.py --online-steps 25000",
            "noise": "o3f.py --online-steps 25000 --exploration noise",
            "plain": "o3f.py --online-steps 25000 --exploration plain",
        },
        probe="benchmark/inspect_search.py --sigma 0.2",
    ),
    "pex-drop": Experiment(
        claim="the frozen policy and the gate prevent the drop after the switch",
        paper="PEX: no drop at the switch (figures)",
        refuted="a drop of more than 5 points where a random action seldom outranks the policy's",
        precondition="that share of states, printed beside the drop, is below 5 %",
        metric="score in the warm-up, without any update, minus the score at the switch",
        measure="change_in_warmup",
        pairs=[("pex", "")],
        margin=-5.0,
        datasets=["o2o/hopper/medium-v0", "o2o/halfcheetah/medium-v0", REPLAY],
        seeds=8,
        offline=IQL_OFFLINE,
        shares="jsrl-gate",
        arms={
            "pex": "pex.py --online-steps 15000 --eval-every 1000",
            "direct": "pex.py --online-steps 15000 --eval-every 1000 --baseline direct",
        },
        probe="benchmark/inspect_critic.py",
    ),
    "wsrl-maze": Experiment(
        claim="a warm-up is needed, the offline data are not",
        paper="WSRL: without warm-up the values collapse; offline data are not needed",
        refuted="warm - cold: not above 0; or Cal-QL without data does not fall",
        precondition="at least 50 % success at the switch",
        metric="mean success over all evaluations online",
        measure="mean_online_score",
        pairs=[("warm", "cold"), ("warm", "cal_ql-no-data"), ("warm", "retain")],
        datasets=[MAZE],
        seeds=5,
        offline=WSRL_OFFLINE,
        arms={
            "warm": f"wsrl.py --online-steps 10000 {WSRL}",
            "cold": f"wsrl.py --online-steps 10000 {WSRL} --warmup-steps 0",
            "retain": f"wsrl.py --online-steps 10000 {WSRL} --retain-offline-ratio 0.5",
            "cal_ql-no-data": f"cal_ql.py --online-steps 10000 {WSRL} --critic-subset 2"
            " --offline-ratio 0",
        },
    ),
    "wsrl-adam": Experiment(
        claim="WSRL does better with the longer steps that the authors' Adam makes",
        paper="none: a side effect of the authors' code (docs/wsrl.md, deviation 1)",
        refuted="theirs - ours: not above 0",
        precondition="none",
        metric="mean score over all evaluations online",
        measure="mean_online_score",
        pairs=[("theirs", "ours")],
        datasets=["o2o/hopper/medium-v0", "o2o/halfcheetah/medium-v0"],
        seeds=5,
        offline=WSRL_OFFLINE,
        shares="wsrl-maze",
        arms={
            "ours": f"{WSRL_STEPS} 15000",
            # Policy and temperature 2.236 times as fast as ours, critics 4.47 / 4 times.
            "theirs": f"{WSRL_STEPS} 15000 --actor-lr 2.236e-4 --critic-lr 3.354e-4",
        },
    ),
    "cal_ql-maze": Experiment(
        claim="calibration lowers the regret online",
        paper="Cal-QL: lower regret than CQL; CORL: mean online score 92.1 against 84.8",
        refuted="cal_ql - cql: the paired interval is not above 0",
        precondition="mean Q moves less than 5 % over the last 2,000 updates; bound rate .05 to .9",
        metric="mean success over all evaluations online",
        measure="mean_online_score",
        pairs=[("cal_ql", "cql"), ("cal_ql", "switched-off")],
        datasets=[MAZE],
        seeds=5,
        offline=f"cal_ql.py {CQL} --offline-steps 20000 {OFTEN}",
        arms={
            "cal_ql": CAL_QL,
            "switched-off": f"{CAL_QL} --no-calibrate",  # from the same Cal-QL offline.pt
            "cql": f"{CAL_QL} --offline-steps 20000 --no-calibrate",
        },
    ),
    "porl-init": Experiment(
        claim="critics that learned from the frozen policy's rollouts beat new ones",
        paper="PORL: the comparison of its summary; no number could be read",
        refuted="presample - random: not above 0",
        precondition="a score of at least 20 at the switch",
        metric="mean score over all evaluations online",
        measure="mean_online_score",
        pairs=[("presample", "random"), ("presample", "offline")],
        datasets=[MAZE, "o2o/hopper/medium-v0"],
        seeds=5,
        offline=WSRL_OFFLINE,
        shares="wsrl-maze",
        arms={
            "presample": f"porl.py --online-steps 15000 {WSRL}",
            "random": f"porl.py --online-steps 15000 {WSRL} --q-init random",
            "offline": f"porl.py --online-steps 15000 {WSRL} --q-init offline",
        },
    ),
    "td3-collapse": Experiment(
        claim="free TD3 falls further after the switch than constrained TD3, on narrow data",
        paper="TD3-C: abstract; no number could be read",
        refuted="td3c - td3 (online-only): not above 0",
        precondition="the offline score is within 10 of the data's (42.3)",
        metric="lowest mean of 10 training episodes, in per cent of the return at the switch",
        measure="lowest_of_switch",
        pairs=[
            ("td3c-online_only", "td3-online_only"),
            ("td3c-append", "td3-append"),
            ("td3-append", "td3-online_only"),
            ("td3bc-append", "td3c-append"),
        ],
        datasets=["o2o/hopper/medium-v0"],
        seeds=5,
        offline="td3_c.py --offline-steps 50000",
        arms={
            f"{method}-{replay}": f"td3_c.py --online-steps 10000 --method {method}"
            f" --online-replay {replay}"
            for method in ("td3c", "td3", "td3bc")
            for replay in ("append", "online_only")
        },
    ),
    "td3-diverse": Experiment(
        claim="on diverse data free TD3 loses less than a fifth of the return",
        paper="TD3-C: abstract (diversity of the data decides); no number could be read",
        refuted="td3 (online-only): below 80 %",
        precondition="none",
        metric="lowest mean of 10 training episodes, in per cent of the return at the switch",
        measure="lowest_of_switch",
        pairs=[("td3-online_only", ""), ("td3c-online_only", "td3-online_only")],
        margin=80.0,
        datasets=[REPLAY],
        seeds=5,
        offline="td3_c.py --offline-steps 50000",
        arms={
            f"{method}-online_only": f"td3_c.py --online-steps 10000 --method {method}"
            " --online-replay online_only"
            for method in ("td3c", "td3", "td3bc")
        },
    ),
    "cql-to-sac": Experiment(
        claim="dropping CQL's conservative term at the switch makes the return fall",
        paper="O3F: halfcheetah-medium falls at once, 15,000 steps to recover, Q up to 40 times",
        refuted="cql - sac: not above 0",
        precondition="none",
        metric="mean score over all evaluations online",
        measure="mean_online_score",
        pairs=[("cql", "sac")],
        datasets=["o2o/halfcheetah/medium-v0"],
        seeds=5,
        offline=f"cal_ql.py {CQL} --offline-steps 20000 --eval-every 2000",
        arms={
            "sac": f"wsrl.py {CQL} --num-critics 2 --critic-subset 0 --warmup-steps 0 --utd-ratio 1"
            " --retain-offline-ratio 0.5 --online-steps 10000 --eval-every 500",
            "cql": f"cal_ql.py {CQL} --online-steps 10000 --eval-every 500",
        },
    ),
    "lapo-search": Experiment(
        claim="with LAPO the search beats noise of the same size",
        paper="O3F over equal noise: halfcheetah-medium +58 %, antmaze-large-diverse +28 % (LAPO)",
        refuted="o3f - noise: not above 0",
        precondition="none",
        metric="mean score over all evaluations online",
        measure="mean_online_score",
        pairs=[("o3f", "noise"), ("o3f", "plain")],
        datasets=["o2o/halfcheetah/medium-v0", MAZE],
        seeds=5,
        offline=f"{LAPO} --offline-steps 20000 --eval-every 4000",
        arms={name: f"{LAPO_ONLINE} {name}" for name in ("o3f", "noise", "plain")},
    ),
    "comparison": Experiment(
        claim="",
        paper="",
        refuted="",
        precondition="none",
        metric="mean score over all evaluations online",
        measure="mean_online_score",
        pairs=[],
        datasets=["o2o/hopper/medium-v0", "o2o/halfcheetah/medium-v0", MAZE],
        seeds=5,
        offline="iql.py --offline-steps 10000 --eval-every 2500",
        arms={
            "iql": f"iql.py {SHORT}",
            "pex": f"pex.py {SHORT}",
            "jsrl_finetune": f"jsrl_finetune.py {SHORT}",
            "o3f": f"o3f.py {OWN}",
            "awac": f"awac.py {OWN}",
            "td3_c": f"td3_c.py {OWN}",
            "cal_ql": f"cal_ql.py {CQL} {OWN}",
            "wsrl": f"wsrl.py {CQL} --num-critics 5 {OWN}",
            "porl": f"porl.py {CQL} --num-critics 5 {OWN}",
        },
    ),
}
