"""The experiments that benchmark/sweep.py can run: which claim, on what data, against what.

Every arm of a seed starts from the same offline.pt, which the command `offline` makes first; an arm
that names --offline-steps makes its own offline phase. An effect can only show where its
precondition holds: check that first, and where it does not hold, say "not testable here".

The budgets are those of a CPU. Networks of the CQL family have 128 units in a layer instead of 256:
a step then takes less than half the time, and every arm has the same ones.
"""

import dataclasses

# What a step usually takes on one thread of a CPU, in seconds: an update offline, online an
# environment step with its update; evaluations come on top. Only for the time that a sweep
# announces before it has run.
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
class Claim:
    """What is claimed, and the difference that decides it.

    Where the precondition holds, it is shown if the 95 % interval of the paired differences lies
    above the margin, and refuted if it lies below. It is not testable where its control fails, or
    where its two arms come out the same on every seed.
    """

    text: str
    paper: str  # where, and with which number
    pair: tuple[str, str]  # the first arm minus the second; no second: the first arm itself
    measure: str  # what is compared: a name among MEASURES of benchmark/tables.py
    margin: float = 0.0
    # Of a claim that nothing is lost: a difference that must lie above 0, else nothing could be.
    control: tuple[str, str] | None = None
    changed: str = ""  # what of the plan, and when; docs/evidence.md says why


@dataclasses.dataclass
class Experiment:
    """Claims about the same runs, and the runs that can tell."""

    claims: list[Claim]  # empty: a comparison
    precondition: str  # what must hold before a claim can show
    datasets: list[str]
    seeds: int  # 0, 1, ...
    offline: str  # script and flags of the offline phase that the arms share
    arms: dict[str, str]  # name -> script and flags
    pairs: list[tuple[str, str]]  # more differences to print, by the measure of the first claim
    probe: str = ""  # a program that measures the precondition in offline.pt
    shares: str = ""  # the experiment whose offline.pt it uses: the command `offline` is the same
    full: str = ""  # a shell command: the claims at the paper's budget, on its data


def offline_tag(name: str) -> str:
    """The tag of the offline runs that an experiment starts from."""
    return f"{EXPERIMENTS[name].shares or name}-offline"


MAZE = "o2o/pointmaze/medium-play-v0"
UMAZE = "o2o/pointmaze/umaze-v0"
TINY = "o2o/pointmaze/umaze-tiny-v0"
REPLAY = "o2o/hopper/medium-replay-v0"
OFTEN = "--eval-every 1000 --eval-episodes 50"  # in mazes
SELDOM = "--eval-every 5000 --eval-episodes 20"  # the behaviour is measured, not the policy's mean
JSRL = "jsrl_finetune.py --online-steps 40000"
COLD = "jsrl_finetune.py --online-steps 30000 --eval-every 500 --eval-episodes 20 --tolerance 0.15"
O3F = f"o3f.py --online-steps 10000 {SELDOM}"
PEX = "pex.py --online-steps 15000 --eval-every 500"
IQL_OFFLINE = "iql.py --offline-steps 60000 --eval-every 2000"
CQL = "--hidden 128 --num-actions 4"
CAL_QL = f"cal_ql.py {CQL} {OFTEN} --online-steps 8000"
SETTLED = "--gamma 0.99 --offline-steps 15000"  # Q takes 1 / (tau (1 - gamma)) = 5,000 updates
WSRL = f"wsrl.py {CQL} --num-critics 5 {OFTEN}"
WSRL_SELDOM = f"wsrl.py {CQL} --num-critics 5 --eval-every 1000 --online-steps 15000"
WSRL_LONG = f"wsrl.py {CQL} --num-critics 5 --offline-steps 20000 --eval-every 1000"
WSRL_OFFLINE = f"wsrl.py {CQL} --num-critics 5 --offline-steps 6000 --eval-every 500"
WSRL_OFFLINE += " --eval-episodes 20"  # the score at the switch is the mean of the last five
PORL = f"porl.py {CQL} --num-critics 5 --eval-episodes 20"
SEARCH_HELPS = "with critics frozen at the switch, the search beats the policy's own samples"
SEARCH_HELPS += " (interval above 0)"
LAPO = "o3f_lapo.py --batch-size 128"
UPDATES_ONLINE = 15_000
SHORT = f"--online-steps {UPDATES_ONLINE} --eval-every 1000"
OWN = f"--offline-steps 20000 {SHORT}"  # an offline phase of its own


def porl(
    where: str, dataset: str, online: str, offline: str, shares: str, changed: str = ""
) -> Experiment:
    """PORL's three beginnings of Q, from the policies of another experiment's offline phase."""
    return Experiment(
        claims=[
            Claim(
                f"{where}, critics that learned from the frozen policy's rollouts beat new ones",
                paper="PORL: the comparison of its summary; no number could be read",
                pair=("presample", "random"),
                measure="mean_after_warmup",
                changed=changed,
            ),
        ],
        precondition="a score of at least 20 at the switch",
        datasets=[dataset],
        seeds=5,
        offline=offline,
        shares=shares,
        arms={
            "presample": f"{PORL} {online} --q-init presample",
            "random": f"{PORL} {online} --q-init random",
            "kept": f"{PORL} {online} --q-init offline",
        },
        pairs=[("presample", "kept")],
    )


EXPERIMENTS = {
    "jsrl-gate": Experiment(
        claims=[
            Claim(
                "with the automatic gate, training returns fall less after the switch",
                paper="ours: the gate is our addition to JSRL",
                pair=("automatic", "direct"),
                measure="lowest_ten",
                changed="reworded after the runs",
            ),
            Claim(  # else a gate that never opens would win
                "the automatic gate hands over at least a quarter of the steps",
                paper="ours: the gate is our addition to JSRL",
                pair=("automatic", ""),
                measure="learner_share",
                margin=25.0,
            ),
        ],
        precondition="there is a drop: frozen − direct, interval above 0",
        datasets=["o2o/hopper/medium-v0"],
        seeds=8,
        offline=IQL_OFFLINE,
        arms={
            "automatic": JSRL,
            "direct": f"{JSRL} --schedule direct",
            "frozen": f"{JSRL} --schedule direct --learning-rate 0",  # its noise, no learning
            "guide": f"{JSRL} --calibration-episodes 1000000",  # never hands over
        },
        pairs=[("frozen", "direct"), ("frozen", "automatic"), ("guide", "automatic")],
    ),
    "jsrl-cold": Experiment(
        claims=[
            Claim(
                "with little data, a guide that is followed less and less beats fine-tuning it",
                paper="JSRL: antmaze-medium-play with 100k transitions, 86.7 against IQL's 32.8",
                pair=("curriculum", "warm"),
                measure="final_learner",
            ),
            Claim(
                "with little data, a guide beats no guide",
                paper="none: a control of ours",
                pair=("curriculum", "cold"),
                measure="final_learner",
            ),
            Claim(  # else the guide is not followed less and less
                "the curriculum gets more than half-way to the learner alone",
                paper="none: a control of ours",
                pair=("curriculum", ""),
                measure="late_stage",
                margin=5.0,  # of 10 stages
            ),
        ],
        precondition="the guide has 20 to 80 % success",
        datasets=["o2o/pointmaze/medium-play-10k-v0"],
        seeds=8,
        offline=f"iql.py --offline-steps 20000 {OFTEN}",
        arms={
            "curriculum": f"{COLD} --init cold --schedule curriculum",
            "random": f"{COLD} --init cold --schedule random",
            "cold": f"{COLD} --init cold --schedule direct",  # no guide
            "warm": f"{COLD} --schedule direct",  # IQL goes on, with the same batches
        },
        pairs=[("random", "warm")],
    ),
    "o3f-maze": Experiment(
        claims=[
            Claim(
                "in mazes the search beats noise of the same size",
                paper="O3F: +28 % on antmaze-large-diverse with LAPO; none with IQL, used here",
                pair=("o3f", "noise"),
                measure="training_success",
                changed="precondition's comparator changed after the probes and one seed",
            ),
            Claim(
                "in mazes a small sigma is better than a large one",
                paper="O3F: sigma 0.05 on antmaze, 0.2 in locomotion",
                pair=("o3f", "o3f-0.2"),
                measure="training_success",
                changed="precondition's comparator changed after the probes and one seed",
            ),
        ],
        precondition=SEARCH_HELPS,
        datasets=["o2o/pointmaze/large-v0", MAZE],
        seeds=8,
        offline=f"iql.py --num-critics 5 --offline-steps 20000 {SELDOM}",
        arms={
            "o3f": f"{O3F} --exploration o3f",
            "noise": f"{O3F} --exploration noise",
            "plain": f"{O3F} --exploration plain",
            "o3f-0.2": f"{O3F} --exploration o3f --sigma 0.2",
        },
        pairs=[("o3f", "plain")],
        probe="benchmark/inspect_search.py --sigma 0.05 --episodes 50",
    ),
    "o3f-locomotion": Experiment(
        claims=[
            Claim(
                "in locomotion the search beats noise of the same size",
                paper="O3F: +14 % on halfcheetah-medium (IQL)",
                pair=("o3f", "noise"),
                measure="training_return",
                changed="precondition's comparator changed after the runs",
            ),
        ],
        precondition=SEARCH_HELPS,
        datasets=["o2o/halfcheetah/medium-v0", REPLAY],
        seeds=5,
        offline="iql.py --num-critics 5 --offline-steps 30000",
        arms={
            name: f"o3f.py --online-steps 15000 --exploration {name}"
            for name in ("o3f", "noise", "plain")
        },
        pairs=[("o3f", "plain")],
        probe="benchmark/inspect_search.py --sigma 0.2 --episodes 20",
        full="for arm in o3f noise plain; do python o3f.py"
        " --dataset-id mujoco/halfcheetah/medium-v0 --offline-steps 1000000 --online-steps 500000"
        " --exploration $arm; done",
    ),
    "pex-drop": Experiment(
        claims=[
            Claim(
                "before it has learned, PEX's mixture loses less than 5 points",
                paper="PEX: no drop at the switch (from its figures)",
                pair=("pex", "direct"),
                measure="mean_in_warmup",
                margin=-5.0,
            ),
            Claim(
                "once it learns, PEX beats direct fine-tuning",
                paper="PEX: at least as good in the aggregate (from its figures)",
                pair=("pex", "direct"),
                measure="mean_after_warmup",
            ),
        ],
        precondition="a random action outranks the policy's in less than 5 % of the states;"
        " a score of at least 20 at the switch",
        datasets=["o2o/hopper/medium-v0", "o2o/halfcheetah/medium-v0", REPLAY],
        seeds=8,
        offline=IQL_OFFLINE,
        shares="jsrl-gate",
        arms={"pex": PEX, "direct": f"{PEX} --baseline direct"},
        pairs=[],
        probe="benchmark/inspect_critic.py",
    ),
    "wsrl-maze": Experiment(
        claims=[
            Claim(
                "a warm-up is needed",
                paper="WSRL: worse and scattered without it, Q too low (as reported by others)",
                pair=("warm", "cold"),
                measure="mean_while_learning",
                changed="measure changed after the runs",
            ),
            Claim(
                "with a warm-up the offline data are not needed: at most 5 points are lost",
                paper="WSRL: retaining them gives no gain (as reported by others)",
                pair=("warm", "retain"),
                measure="mean_while_learning",
                margin=-5.0,
                control=("retain", "cold"),  # retain has the warm-up, too
                changed="measure changed and control added after the runs",
            ),
            Claim(
                "without the offline data Cal-QL falls behind WSRL",
                paper="WSRL: near 0 for CQL without data, kitchen-partial (as reported by others)",
                pair=("warm", "cal_ql-no-data"),
                measure="mean_while_learning",
                changed="measure changed after the runs",
            ),
        ],
        precondition="at least 50 % success at the switch",
        datasets=[UMAZE],
        seeds=5,
        offline=WSRL_OFFLINE,
        arms={  # 8,000 steps each, on top of the warm-up's 5,000
            "warm": f"{WSRL} --online-steps 13000",
            "cold": f"{WSRL} --online-steps 8000 --warmup-steps 0",
            "retain": f"{WSRL} --online-steps 13000 --retain-offline-ratio 0.5",
            "cal_ql-no-data": f"{CAL_QL} --num-critics 5 --critic-subset 2 --offline-ratio 0",
        },
        pairs=[],
        full="for flags in '' '--warmup-steps 0' '--retain-offline-ratio 0.5'; do python wsrl.py"
        " --dataset-id D4RL/kitchen/partial-v2 $flags; done; python cal_ql.py"
        " --dataset-id D4RL/kitchen/partial-v2 --offline-ratio 0",
    ),
    "wsrl-adam": Experiment(
        claims=[
            Claim(
                "WSRL does better with the longer steps that the authors' Adam makes",
                paper="none: a side effect of the authors' code (docs/wsrl.md, deviation 1)",
                pair=("theirs", "ours"),
                measure="mean_after_warmup",
            ),
        ],
        precondition="a score of at least 20 at the switch",
        datasets=["o2o/hopper/medium-v0", "o2o/halfcheetah/medium-v0"],
        seeds=5,
        offline=WSRL_LONG,
        arms={
            "ours": WSRL_SELDOM,
            # Policy and temperature 2.236 times as fast as ours, critics 4.47 / 4 times.
            "theirs": f"{WSRL_SELDOM} --actor-lr 2.236e-4 --critic-lr 3.354e-4",
        },
        pairs=[],
    ),
    "cal_ql-maze": Experiment(
        claims=[
            Claim(
                "calibration lowers the regret online",
                paper="Cal-QL: lower regret than CQL; CORL: mean online score 92.1 against 84.8",
                pair=("cal_ql", "cql"),
                measure="mean_online_score",
            ),
            Claim(
                "from one checkpoint, going on with calibration lowers the regret",
                paper="Cal-QL: the calibration stays on in the online phase",
                pair=("cal_ql", "switched-off"),
                measure="mean_online_score",
            ),
        ],
        precondition="20 to 95 % success at the switch; mean Q moves less than 5 % over the last"
        " 2,000 updates; bound rate .05 to .9",
        datasets=[TINY],
        seeds=5,
        offline=f"cal_ql.py {CQL} {SETTLED} --eval-every 500 --eval-episodes 20",
        arms={
            "cal_ql": f"{CAL_QL} --gamma 0.99",
            # From the same offline.pt as the arm before.
            "switched-off": f"{CAL_QL} --gamma 0.99 --no-calibrate",
            "cql": f"{CAL_QL} {SETTLED} --no-calibrate",
        },
        pairs=[],
        full="for flags in --calibrate --no-calibrate; do python cal_ql.py"
        " --dataset-id D4RL/antmaze/large-play-v1 $flags; done",
    ),
    "porl-init": porl(
        "in a maze",
        UMAZE,
        online="--online-steps 10000 --eval-every 250",
        offline=WSRL_OFFLINE,
        shares="wsrl-maze",
        changed="steps halved and evaluations denser after four of 20 runs",
    ),
    "porl-hopper": porl(
        "on Hopper",
        "o2o/hopper/medium-v0",
        online="--online-steps 10000 --eval-every 1000",
        offline=WSRL_LONG,
        shares="wsrl-adam",
    ),
    "td3-collapse": Experiment(
        claims=[
            Claim(
                "free TD3 falls further after the switch than constrained TD3, on narrow data",
                paper="TD3-C: abstract; no number could be read",
                pair=("td3c-online_only", "td3-online_only"),
                measure="lowest_of_switch",
                changed="narrowed, and the level at the switch read otherwise, after the runs",
            ),
        ],
        precondition="the offline score is within 10 of the data's (42.3)",
        datasets=["o2o/hopper/medium-v0"],
        seeds=5,
        offline="td3_c.py --offline-steps 50000",
        arms={
            f"{method}-{replay}": f"td3_c.py --online-steps 10000 --method {method}"
            f" --online-replay {replay}"
            for method in ("td3c", "td3", "td3bc")
            for replay in ("append", "online_only")
        },
        pairs=[
            ("td3c-append", "td3-append"),
            ("td3-append", "td3-online_only"),
            ("td3bc-append", "td3c-append"),
        ],
    ),
    "td3-diverse": Experiment(
        claims=[
            Claim(
                "on diverse data free TD3 loses less than a fifth of the return",
                paper="TD3-C: abstract (diversity of the data decides); no number could be read",
                pair=("td3-online_only", ""),
                measure="lowest_of_switch",
                margin=80.0,
                changed="plan's precondition dropped before the runs",
            ),
        ],
        precondition="none",
        datasets=[REPLAY],
        seeds=5,
        offline="td3_c.py --offline-steps 50000",
        arms={
            f"{method}-online_only": f"td3_c.py --online-steps 10000 --method {method}"
            " --online-replay online_only"
            for method in ("td3c", "td3", "td3bc")
        },
        pairs=[("td3c-online_only", "td3-online_only")],
    ),
    "cql-to-sac": Experiment(
        claims=[
            Claim(
                "dropping CQL's conservative term at the switch makes the return fall",
                paper="O3F: halfcheetah-medium falls at once, 15,000 steps to recover,"
                " Q up to 40 times",
                pair=("cql", "sac"),
                measure="mean_online_score",
            ),
        ],
        precondition="none",
        datasets=["o2o/halfcheetah/medium-v0"],
        seeds=5,
        offline=f"cal_ql.py {CQL} --offline-steps 20000 --eval-every 2000",
        arms={
            "sac": f"wsrl.py {CQL} --num-critics 2 --critic-subset 0 --warmup-steps 0 --utd-ratio 1"
            " --retain-offline-ratio 0.5 --online-steps 10000 --eval-every 500",
            "cql": f"cal_ql.py {CQL} --online-steps 10000 --eval-every 500",
        },
        pairs=[],
    ),
    "lapo-search": Experiment(
        claims=[
            Claim(
                "with LAPO the search beats noise of the same size",
                paper="O3F: antmaze-large-diverse +28 % (LAPO)",
                pair=("o3f", "noise"),
                measure="training_success",
                changed="rule for equal arms added after the runs",
            ),
        ],
        precondition="20 to 80 % success at the switch",
        datasets=[UMAZE],
        seeds=5,
        offline=f"{LAPO} --offline-steps 3000 --eval-every 500",
        arms={
            name: f"{LAPO} --online-steps 1000 --eval-every 250 --exploration {name}"
            for name in ("o3f", "noise", "plain")
        },
        pairs=[("o3f", "plain")],
        full="for arm in o3f noise plain; do python o3f_lapo.py"
        " --dataset-id D4RL/antmaze/large-diverse-v1 --exploration $arm; done",
    ),
    "lapo-locomotion": Experiment(
        claims=[
            Claim(
                "with LAPO the search beats noise of the same size, in locomotion",
                paper="O3F: halfcheetah-medium +58 % (LAPO)",
                pair=("o3f", "noise"),
                measure="training_return",
                changed="precondition's comparator changed after the probes",
            ),
        ],
        precondition=SEARCH_HELPS,
        datasets=["o2o/halfcheetah/medium-v0"],
        seeds=5,
        offline=f"{LAPO} --offline-steps 20000 --eval-every 2000",
        arms={
            name: f"{LAPO} --online-steps 5000 --eval-every 1000 --exploration {name}"
            for name in ("o3f", "noise", "plain")
        },
        pairs=[("o3f", "plain")],
        probe="benchmark/inspect_search.py --sigma 0.2 --episodes 20",
        full="for arm in o3f noise plain; do python o3f_lapo.py"
        " --dataset-id mujoco/halfcheetah/medium-v0 --offline-steps 1000000 --online-steps 500000"
        " --exploration $arm; done",
    ),
    "comparison": Experiment(
        claims=[],
        precondition="none",
        datasets=["o2o/hopper/medium-v0", "o2o/halfcheetah/medium-v0", MAZE],
        seeds=5,
        offline="iql.py --offline-steps 20000 --eval-every 1000",
        arms={
            "iql": f"iql.py {SHORT}",
            # As many updates, all on the data set: what these alone would give.
            "iql_offline": "iql.py --offline-steps 35000 --eval-every 1000 --online-steps 0",
            # By default the guide would act alone in two thirds of HalfCheetah's steps.
            "jsrl_finetune": f"jsrl_finetune.py {SHORT} --calibration-episodes 2 --min-episodes 2"
            " --stages 3",
            "pex": f"pex.py {OWN}",
            "o3f": f"o3f.py {OWN}",
            "cal_ql": f"cal_ql.py {CQL} {OWN}",
            "wsrl": f"wsrl.py {CQL} --num-critics 5 {OWN}",
        },
        pairs=[],
    ),
}
