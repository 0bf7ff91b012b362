# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   ktlib:
#     uses: [mtl, models]
#     data: [multi_fashion_mnist, multi_mnist, multi_fashion]
#     data_parameter: [dataset, transfer_from]
# ---

# %% [markdown]
# (chap-recon-studies)=
# # Is it the conflict layers? Controls and costs of Recon
#
# **The question.** Recon {cite}`shi2023recon,shi2025thesis` splits the layers in which tasks conflict most. A split network has
# more parameters than a shared one, so it may be better for that reason alone. Does it matter *which* layers are split, and how many?
# Does a ranking found in one place hold in another? And what does the search cost?
#
# This chapter takes the method of [the chapter before](chap-recon) and changes one thing at a time.
#
# After this chapter you can
#
# - plan controls for a method that selects something: as many at random, as large at random, the first, the last,
# - say how far two rankings may differ by chance before you call them stable,
# - choose the number of layers with both accuracy and time in view,
# - estimate what a search costs with 2 tasks and with 40.
#
# **Before you start.** Read [the chapter on Recon](chap-recon) first. The [notation page](../notation.md) has the symbols.
#
# **Time to run.** About 2 minutes on two CPU cores at the default size; the
# [execution page](../execution.md) shows the time of the run that you are reading.

# %% tags=["parameters"]
profile = "cpu"  # name of this set of values, noted in the record
run_dir = ""  # folder for result.json and figures; "" writes nothing
device = "auto"  # auto, cpu, cuda or mps; the thesis: one RTX 3090
precision = "float32"  # auto, float32 or bfloat16
seeds = [0, 1]  # one repetition each: weights, batches, images; the thesis: 3 runs
dataset = "multi_fashion_mnist"  # images with several targets; the thesis: this one and four more
backbone = "resnet18"  # the network that the tasks share; the thesis: this one here
train_images = 3000  # training images, 0: all; the thesis: 120,000
test_images = 2000  # test images, 0: all; the thesis: 20,000
width = 16  # channels of the first stage; the thesis: 64
augment = False  # maps scaled, cropped and mirrored at random; authors' code: True for maps
epochs = 2  # passes over the training images; authors' code: 120
batch_size = 64  # images per step; authors' code: 256
optimizer = "sgd"  # sgd with momentum 0.9, or adam; authors' code: sgd
lr = 0.05  # first learning rate; authors' code: 0.1
method_lr = {"pcgrad": 0.02, "graddrop": 0.02}  # of methods with another; authors' code: none
lr_drops = [0.5, 0.75]  # shares of the training after which lr falls; authors' code: these
lr_factor = 0.1  # what lr is multiplied by each time; authors' code: 0.1
cagrad_c = 0.2  # how far CAGrad may move away from the mean; authors' code: 0.2
batch_norm = True  # whether batch norms count as layers; authors' code: True
severity = -0.1  # severity S: a cosine below it is counted; authors' code: -0.1
top_k = 25  # layers K that become task-specific; authors' code: 25 of 41
search_quarters = 1  # quarters of the training that count; the thesis: 1
controls = ["random_layers", "last"]  # other choices of layers; the thesis: these and two more
control_methods = ["joint"]  # trained on every choice of layers; the thesis: CAGrad and PCGrad
counts_studied = [0, 5, 25, 40]  # numbers K of layers; the thesis: a curve without numbers
severities_studied = [0.0, -0.1]  # severities S; the thesis: 0 to -0.15
ranked_methods = ["joint", "pcgrad"]  # whose rankings are compared; the thesis: five methods
transfer_from = ["multi_mnist"]  # rankings used on dataset; the thesis: others
statistics_studied = ["random_layers"]  # choices with own statistics per task; the thesis: none
skips_studied = []  # choices of layers with the released code's lost skips; the thesis: not named
task_counts = [2, 10, 40]  # numbers T of tasks to time; the thesis: up to 40
timed_methods = ["joint", "pcgrad", "mgda"]  # methods to time; the thesis: all
timed_steps = 4  # steps behind every time; not stated in the thesis

# %% tags=["setup"]
from experiments.mtl.parameters import ReconStudyParameters
from experiments.run.parameters import check_parameters

P = check_parameters(globals(), ReconStudyParameters)

# %% [markdown]
# ## The problem
#
# A method that selects something needs **controls**: other selections of the same size, made without looking. If they do as well, the
# selection was idle. The thesis has four, and they differ in what they hold equal:
#
# | control | holds equal | thesis |
# |---|---|---|
# | random layers | number of layers | RSL |
# | random parameters | number of parameters, about | RSP |
# | first | number of layers; all lie early | first K |
# | last | number of layers; all lie late | last K |

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import display
from tqdm import tqdm

import data_prep as data
from experiments.run.plotting import save_figure, use_style
from experiments.run.results import RunRecord
from ktlib.device import choose_device
from ktlib.seeding import deterministic, generator

use_style()
deterministic()
sums = {}
for name in {P.dataset, *P.transfer_from}:
    sums |= {f"{name}/{file}": value for file, value in data.checksums(name).items()}

record = RunRecord.start("recon_studies", P, data=sums)

# %%
from experiments.mtl.experiment import MultiTaskExperiment

experiment = MultiTaskExperiment(P, choose_device(P.device))
print(
    f"{len(experiment.training_rows(P.seeds[0]))} training images, tasks: {', '.join(experiment.tasks)}"
)

# %% [markdown]
# ## Pilot study: how much is chance?
#
# Joint training with each seed is the search of all studies. Its networks, trained to the end, are also the reference. `networks` remembers: a
# network that several studies need is trained once.

# %%
from experiments.run.parallel import parallel_map

networks = {}  # method, seed, layers -> the trained network, its scores


def train(case):
    """A network with these layers split, trained by a method, and its scores on test images."""
    method, seed, layers = case
    run = experiment.train(method, seed, layers)
    return run, experiment.scores(run.network)


# %%
def train_all(methods, choices):
    """Train several networks at once, those that are not there yet.

    `choices` holds what each seed splits: seed -> layers.
    """
    cases = [
        (method, *choice) for method in methods for layers in choices for choice in layers.items()
    ]
    new = [case for case in cases if case not in networks]
    networks.update(parallel_map(train, new, "training", device=experiment.device))


# %%
from experiments.mtl.studies import run_result
from ktlib.mtl import parameter_megabytes

studies = []  # rows of the record's table of this name


def note(study, value, method, seed, layers):
    """Keep the result of one run as part of a study."""
    train_all([method], [{seed: layers}])
    run, scores = networks[method, seed, layers]
    known = {"study": study, "value": value, "method": method, "seed": seed, "layers": len(layers)}
    size = parameter_megabytes(run.network)
    studies.append(known | {"megabytes": size} | run_result(run, scores))


# %%
nothing = dict.fromkeys(P.seeds, ())  # split
train_all(dict.fromkeys(["joint", *P.control_methods, *P.ranked_methods]), [nothing])
for seed in P.seeds:
    note("reference", "shared", "joint", seed, ())

# %% [markdown]
# The search takes place once, with the first seed, as in the thesis. What other seeds would have found comes below.

# %%
searched, _ = networks["joint", P.seeds[0], ()]
trunk_layers = searched.network.shared_layers()
chosen = tuple(experiment.recon_layers(searched))
print(f"{len(chosen)} of {len(trunk_layers)} layers; the first: {', '.join(chosen[:5])}")

# %% [markdown]
# ## The method: change one thing, keep the rest
#
# Each study below follows one pattern: a question, a prediction made before the run, one setting that takes several
# values, everything else as in the reference. `study_table` shows mean ± standard deviation over seeds, and every comparison is a
# mean of differences within pairs of one seed.
#
# (sec-recon-controls)=
# ## Other layers, as many or as large
#
# **Question.** Is Recon's choice of layers better than another one?
#
# **Prediction.** The thesis finds all four controls worse, the late layers more so than the early ones. Conflict layers lie early, so
# *first* has most of them in common with Recon and should come closest.

# %%
from experiments.mtl.controls import control_layers


def unseen(name, seed):
    """Layers that are chosen without looking."""
    rng = generator(seed, "control", name)
    return tuple(control_layers(name, trunk_layers, chosen, rng))


# %%
selections = {"Recon": dict.fromkeys(P.seeds, chosen), "shared": nothing}
selections |= {name: {seed: unseen(name, seed) for seed in P.seeds} for name in P.controls}
train_all(P.control_methods, selections.values())

# %%
for name, layers in selections.items():
    for method in P.control_methods:
        for seed in P.seeds:
            note("control", name, method, seed, layers[seed])

# %%
from experiments.mtl.studies import difference_table, study_table

overlap = {
    name: np.mean([len(set(chosen) & set(layers)) for layers in selections[name].values()])
    for name in P.controls
}
display(study_table(studies, "control"))
pd.Series(overlap, name="layers in common with Recon").to_frame().T

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "One row per choice of layers; points with bars show mean accuracy minus that of Recon's choice.", "classes": "chart"}, "figure": {"name": "fig-recon-controls", "caption": "Mean accuracy over both tasks minus that with Recon's layers. Points: mean of the differences within seeds, bars of one standard deviation, one colour per method. Test images, live run."}}
wide = pd.DataFrame(studies).query("study == 'control'")
wide = wide.pivot_table(index="seed", columns=["method", "value"], values="accuracy")
fig, ax = plt.subplots(figsize=(5.6, 2.8))
for number, method in enumerate(P.control_methods):
    gap = wide[method].sub(wide[method]["Recon"], axis=0)[["shared", *P.controls]]
    places = np.arange(len(gap.columns)) + 0.15 * number
    ax.errorbar(gap.mean(), places, xerr=gap.std().fillna(0), fmt="o", label=method)
ax.axvline(0, color="black", linewidth=1)
ax.set_yticks(
    range(1 + len(P.controls)), [name.replace("_", " ") for name in ("shared", *P.controls)]
)
ax.invert_yaxis()
ax.set_xlabel("mean accuracy minus that with Recon's layers (points)")
ax.legend()
save_figure(fig, P.run_dir, "controls")

# %%
difference_table(studies, "control", "Recon")

# %% [markdown]
# A point to the left of the line is a choice that did worse than Recon's. The row *shared* says what splitting brings at all: where
# it lies on the line, there is nothing that a choice of layers could explain. With few seeds the intervals are wide; the long run below
# has more.
#
# (sec-recon-statistics)=
# ## Wrong layers, or wrong statistics?
#
# **Question.** A batch norm that stays shared behind the split sees the features of every task. In training it normalises those of each task by
# themselves. But it keeps *one* set of running statistics, and with this mixture no task is normalised as it was in training
# when the network is tested. Recon's choice holds most batch norms, so it is hardly touched. A random choice leaves
# many of them shared. Is the random choice bad because of its layers, or because of these statistics?
#
# **Prediction.** This study was planned after the long run of [the chapter before](chap-recon) had shown a random choice that lost 19 points on
# one task, and after one training had confirmed the suspicion. With statistics of its own for each task, the random choice should come close
# to Recon. All weights stay shared as they are; nothing is learned in addition.

# %%
from experiments.mtl.variants import block_losing_skips, lose_skips, own_statistics


def train_variant(case):
    """As `train`, with joint training and a network that is changed before."""
    study, seed, layers = case
    network = experiment.new_network(seed, layers)
    if study == "statistics":
        network = own_statistics(network)
    else:
        network = lose_skips(network, list(experiment.tasks)[-1])
    run = experiment.train_network(network, "joint", seed)
    return run, experiment.scores(run.network)


# %%
def note_variant(study, name, words, layers):
    """Train a choice of layers, seed -> layers, as it is and changed; words name the two."""
    train_all(["joint"], [layers])
    cases = [(study, *case) for case in layers.items()]
    changed = parallel_map(train_variant, cases, study, device=experiment.device)
    for (_, seed, own), (run, scores) in changed.items():
        note(study, f"{name}, {words[0]}", "joint", seed, own)
        known = {"study": study, "value": f"{name}, {words[1]}", "method": "joint", "seed": seed}
        known |= {"layers": len(own), "megabytes": parameter_megabytes(run.network)}
        studies.append(known | run_result(run, scores))


# %%
def table_if_run(study):
    """The table of a study, if this run has it."""
    known = {row["study"] for row in studies}
    return study_table(studies, study) if study in known else "not part of this run"


for name in P.statistics_studied:
    note_variant("statistics", name, ("shared statistics", "own statistics"), selections[name])
table_if_run("statistics")

# %% [markdown]
# (sec-recon-skip)=
# ## A fault of the released code
#
# **Question.** The authors' released network loses skip connections. Where the first split layer lies inside a residual block without a
# projection, only the *first* task, the digits, receives the block's input; the other task does not. Which choices of layers does
# that touch, and what does it cost?
#
# **Prediction.** Recon's own choice holds the batch norm of the stem, in front of all blocks, so it is not touched. Choices that begin
# later are, and the garments should suffer. In table 4.15 of the thesis one of three random choices loses 25 points on the
# second task and one point on the first. The fault may explain such a gap.

# %%
behind = {name: own for name, own in trunk_layers.items() if name not in ("conv1", "bn1")}
whole = experiment.new_network(P.seeds[0]).trunk
selections["behind_stem"] = {}
for seed in P.seeds:
    rng, kept = generator(seed, "control", "behind_stem"), [n for n in chosen if n in behind]
    selections["behind_stem"][seed] = tuple(control_layers("random_layers", behind, kept, rng))

touched = {
    name: block_losing_skips(whole, layers[P.seeds[0]]) or "none"
    for name, layers in selections.items()
}
pd.Series(touched, name="block that loses its skip").to_frame().T

# %%
for name in P.skips_studied:
    hit = {seed: own for seed, own in selections[name].items() if block_losing_skips(whole, own)}
    note_variant("skip", name, ("every task", "one task"), hit)
table_if_run("skip")

# %% [markdown]
# *Behind stem* is a random choice among the layers behind the stem. *One task* is the released code's way: the digits keep the skip connection, the garments do
# without. The live run trains none of them; the long run below does.
#
# (sec-recon-count)=
# ## How many layers?
#
# **Question.** What does each further layer bring, and what does it cost?
#
# **Prediction.** The thesis: few layers leave severe conflicts behind, many bring no further gain. With all layers split the tasks
# are independent networks.

# %%
ranking = experiment.ranking(searched)
counts = [count for count in P.counts_studied if count <= len(ranking)]
cuts = {count: tuple(ranking[:count]) for count in counts}
train_all(["joint"], [dict.fromkeys(P.seeds, layers) for layers in cuts.values()])
for count, layers in cuts.items():
    for seed in P.seeds:
        note("count", count, "joint", seed, layers)

study_table(studies, "count")

# %%
from ktlib.mtl import forward_flops

images = experiment.batch(experiment.test_data, torch.arange(1))[0]
flops = {
    count: forward_flops(experiment.new_network(P.seeds[0], ranking[:count]), images) / 1e6
    for count in counts
}
record.table("flops_by_count", [{"count": k, "megaflops": v} for k, v in flops.items()])

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Three panels against the number of split layers: mean accuracy, share of severe conflicts, floating-point operations.", "classes": "chart"}, "figure": {"name": "fig-recon-count", "caption": "Number of split layers, in the order of the ranking: mean accuracy over both tasks, severe conflicts over the layers still shared, and floating-point operations for one image. Mean over seeds, bars of one standard deviation, joint training, test images (accuracy) and training images (conflicts), live run."}}
table = pd.DataFrame(studies).query("study == 'count'")
fig, axes = plt.subplots(1, 3, figsize=(7.4, 2.8))
for ax, (column, label) in zip(
    axes, {"accuracy": "accuracy (%)", "severe": "severe conflicts (%)"}.items(), strict=False
):
    grouped = table.astype({column: float}).dropna(subset=[column]).groupby("value")[column]
    ax.errorbar(grouped.mean().index, grouped.mean(), yerr=grouped.std().fillna(0), marker="o")
    ax.set_title(label)
axes[2].plot(list(flops), list(flops.values()), marker="o")
axes[2].set_title("MFLOPs per image")
axes[1].set_xlabel("split layers K")
save_figure(fig, P.run_dir, "count")

# %% [markdown]
# The right panel is the bill. It rises in one step, not layer by layer: as soon as *one* early layer is split, everything behind it
# runs once for each task.
#
# (sec-recon-severity)=
# ## Which conflicts should count?
#
# **Question.** How does the severity $S$ change the choice of layers, and does it matter?
#
# **Prediction.** The thesis: $S=0$ counts many mild conflicts, $S=-0.15$ ignores strong ones; both do worse.

# %%
from experiments.mtl.experiment import conflict_ranking

counted = searched.conflicts(P.search_quarters)
picked = {s: tuple(conflict_ranking(counted, s)[: P.top_k]) for s in P.severities_studied}
train_all(["joint"], [dict.fromkeys(P.seeds, layers) for layers in picked.values()])
for s in P.severities_studied:
    for seed in P.seeds:
        note("severity", s, "joint", seed, picked[s])

display(study_table(studies, "severity"))
pd.DataFrame(
    {
        f"S = {s:g}": {f"S = {t:g}": len(set(picked[s]) & set(picked[t])) for t in picked}
        for s in picked
    }
).rename_axis("layers in common")

# %% [markdown]
# The second table says how many layers two severities have in common. Two choices that share nearly all layers cannot differ by much.
#
# (sec-recon-stability)=
# ## Which differences between rankings are chance?
#
# **Question.** The thesis compares rankings between methods and finds them nearly equal. How much do they differ between *seeds* of one method?
#
# **Prediction.** If the seed matters as much as the method, then the method does not matter.

# %%
from itertools import combinations

from experiments.mtl.studies import ranking_pair

rankings = {
    (method, seed): conflict_ranking(
        networks[method, seed, ()][0].conflicts(P.search_quarters), P.severity
    )
    for method in P.ranked_methods
    for seed in P.seeds
}

# %%
stability = []
for one, other in combinations(rankings, 2):
    if one[0] == other[0] or one[1] == other[1]:
        kind = "seeds of one method" if one[0] == other[0] else "methods with one seed"
        stability.append(ranking_pair(rankings[one], rankings[other], P.top_k) | {"compared": kind})

record.table("ranking_stability", stability)

# %%
agreement = pd.DataFrame(stability).groupby("compared")
agreement[["distance", "correlation", "overlap"]].agg(["mean", "min", "max"]).round(2)

# %% [markdown]
# By chance the distance is about a third of the number of layers, the correlation 0, and the overlap the share of layers that are
# chosen.
#
# (sec-recon-transfer)=
# ## A ranking from elsewhere
#
# **Question.** The thesis uses layers found on one data set for another one, which saves the search. Does that work here?
#
# Two relatives of our data, made in the same way, share its images and not its tasks: two digits (multi_mnist) and two garments
# (multi_fashion).
#
# **Prediction.** If the place of conflicts is a property of the network, a ranking from elsewhere does as well as one's own. If it is a property of
# the tasks, it does as badly as random layers.

# %%


def found_on(source):
    """The ranking of layers that joint training on another data set gives."""
    elsewhere = MultiTaskExperiment(P.model_copy(update={"dataset": source}), experiment.device)
    return elsewhere.ranking(elsewhere.train("joint", P.seeds[0]))


# %%
foreign = parallel_map(found_on, P.transfer_from, "other data", device=experiment.device)
picked = {source: tuple(found[: P.top_k]) for source, found in foreign.items()}
train_all(["joint"], [dict.fromkeys(P.seeds, layers) for layers in picked.values()])
for source, layers in picked.items():
    for seed in P.seeds:
        note("transfer", source, "joint", seed, layers)

# %%
for seed in P.seeds:
    note("transfer", "own", "joint", seed, chosen)

alike = {source: ranking_pair(ranking, foreign[source], P.top_k) for source in foreign}
display(pd.DataFrame(alike).T.round(2).rename_axis("ranking against our own"))
study_table(studies, "transfer")

# %% [markdown]
# (sec-recon-cost)=
# ## What does the search cost with many tasks?
#
# **Question.** Each task needs a backward pass of its own. How does the time of a step grow with the number $T$ of tasks?
#
# **Prediction.** In proportion to $T$ for everything that needs task gradients; not at all, nearly, for plain joint training.
#
# The thesis measures it on the 40 attributes of CelebA. Here up to 40 yes-no questions are asked about our images, such as "is the digit one
# of these five?".

# %%
from experiments.mtl.attributes import attribute_tasks

some = experiment.train_data.subset(
    torch.arange(min(len(experiment.train_data), max(1000, P.timed_steps * P.batch_size)))
)

# %%
times = []
for number in tqdm(P.task_counts, desc="numbers of tasks", leave=False):
    asked = experiment.with_parameters(
        epochs=1, train_images=P.timed_steps * P.batch_size
    ).with_data(attribute_tasks(some, number))
    plain = asked.optimise(asked.new_network(P.seeds[0]), P.seeds[0]).seconds
    times.append({"tasks": number, "method": "joint, not counted", "ms": 1000 * plain})
    for method in P.timed_methods:
        ms = 1000 * asked.train(method, P.seeds[0]).seconds
        times.append(
            {"tasks": number, "method": "joint, counted" if method == "joint" else method, "ms": ms}
        )

# %% tags=["nbval-ignore-output"]
record.table("search_cost", times)
pd.DataFrame(times).pivot_table(index="method", columns="tasks", values="ms", sort=False).round(0)

# %% tags=["hide-input", "figure", "nbval-ignore-output"] mystnb={"image": {"alt": "Time of a training step against the number of tasks, both logarithmic, one line per method; plain joint training is flat, all others rise in proportion.", "classes": "chart"}, "figure": {"name": "fig-recon-cost", "caption": "Time of one training step against the number of tasks. All but the first line also count conflicts. First seed, live run."}}
fig, ax = plt.subplots(figsize=(5.4, 3.0))
for name, part in pd.DataFrame(times).groupby("method", sort=False):
    ax.plot(part["tasks"], part["ms"], marker="o", label=name)
ax.set(
    xscale="log", yscale="log", xlabel="tasks T", ylabel="time of a step (ms)", xticks=P.task_counts
)
ax.set_xticklabels(P.task_counts)
ax.minorticks_off()
ax.legend()
save_figure(fig, P.run_dir, "cost")

# %% [markdown]
# Recon pays this price during the search only, and once: a quarter of one training, whatever method and however many runs follow. A method that needs task
# gradients pays it at every step of every run.
#
# ## The long run, from the committed record
#
# The `full` profile has more seeds, images, epochs and values of every setting. Its record is part of the project; these tables are computed
# from it, not typed.

# %%
from experiments.run.results import committed_record, record_label

full = committed_record("recon_studies", "full")
print(record_label(full, "recon_studies", "full"))
long = full.tables if full else {}

# %%
for name in ("control", "statistics", "skip", "count", "severity", "transfer"):
    display(study_table(long["studies"], name) if full else f"{name}: no record yet")

# %%
difference_table(long["studies"], "control", "Recon") if full else "no record yet"

# %%
pd.DataFrame(long["ranking_stability"]).groupby("compared")[
    ["distance", "correlation", "overlap"]
].mean().round(2) if full else "no record yet"

# %%
pd.DataFrame(long["search_cost"]).pivot_table(
    index="method", columns="tasks", values="ms", sort=False
).round(0) if full else "no record yet"

# %% [markdown]
# What the long run of this edition says, in words:
#
# - **Splitting helps a lot; which layers are split is a matter of a point or two.** Recon's choice is six to eight points ahead of the shared
#   network, with each of three methods. It is ahead of as many parameters at random, of the first and of the last layers, too, in every row, but by less than
#   two points, and none of these intervals leaves out zero.
# - **The random choice that fails, fails by its statistics.** As the method is printed, random layers are several points behind, and one seed is
#   far from the next. With running statistics of each task's own, and nothing else changed, they come within two points of Recon,
#   and the spread is gone. So most of what a blind choice seems to lose is not a matter of conflicts at all, and the same may hold for the
#   large losses in the thesis's tables of controls.
# - **The fault of the released code costs the task that it hits.** Where the first stage loses its skip connection, the garments lose several
#   points and the digits one or two. Where a later stage does, nothing is lost. Recon's own choice is not touched.
# - **Ten layers bring most of it,** and the 25 of Recon as much as all 40, which are two networks.
# - **Counting every cosine below zero finds the wrong layers.** From $S=-0.1$ on it hardly matters how strong a conflict has to be.
# - **Seeds move the ranking as much as methods do.** So the method of the search does not matter.
# - **A ranking from a relative does as well.** Layers found on two digits, or on two garments, are as good as our own within the noise: they
#   are nearly the same layers.
# - **The search costs what the gradients cost.** With 40 tasks a step takes many times as long as one of plain joint training, as it does with every
#   method that needs task gradients. Counting the conflicts itself adds little to that.
#
# ## Claims of the thesis, and what became of them
#
# Each verdict below follows from a rule: a claim that something is larger, or smaller, is *reproduced* if the 95 %
# interval of the difference within pairs lies on the claimed side of zero, *not reproduced* if it lies on the other
# side, and *undecided* if it contains zero. With one seed there is no interval, and with too few held-out cases no
# test; a search that counted no conflict chose no layers: nothing was tested.

# %%
from experiments.mtl.studies import study_difference
from experiments.run.claims import (
    Claim,
    claim_rows,
    claims_table,
    verdict_of_difference,
    verdict_of_share,
)

setup = f"{P.dataset}, {P.train_images} images, width {P.width}, {len(P.seeds)} seeds (thesis: 120,000, 64, 3 runs)"
says = {
    "random_layers": ("as many random layers", "Table 4.15"),
    "random_parameters": ("as many random parameters", "Table 4.15"),
    "first": ("the first K layers", "Table 4.16"),
    "last": ("the last K layers", "Table 4.16"),
}
acted = any(counted.scores(P.severity).values())  # else Recon's layers are the network's first
claims = []
for control in P.controls:
    words, place = says[control]
    gain = study_difference(studies, "control", "Recon", control, P.control_methods[0])
    verdict = verdict_of_difference(gain.low, gain.high, "above", cases=P.test_images, acted=acted)
    text = f"Splitting Recon's layers gives a better network than splitting {words}."
    claims.append(
        Claim(text, place, "better in every row", str(gain), setup, verdict, "sec-recon-controls")
    )

# %%
means = pd.DataFrame(studies).query("study == 'severity'").groupby("value")["accuracy"].mean()
inside = [s for s in means.index if -0.15 < s < 0]
if inside and len(means) > len(inside):
    found = ", ".join(f"S = {s:g}: {value:.1f} %" for s, value in means.items())
    verdict = verdict_of_share(int(means.idxmax() in inside), 1)
    text = "A severity between 0 and -0.15 gives the best network."
    anchor = "sec-recon-severity"
    claims.append(Claim(text, "Figure 4.6", "no numbers printed", found, setup, verdict, anchor))

# %%
for source in P.transfer_from:
    change = study_difference(studies, "transfer", source, "own", "joint")
    verdict = verdict_of_difference(change.low + 1, change.high + 1, "above", cases=P.test_images)
    text = f"Layers found on {source} do as well as those found here, within one point."
    place, anchor = "Tables 4.9 and 4.10", "sec-recon-transfer"
    claims.append(Claim(text, place, "other data sets", str(change), setup, verdict, anchor))

# %%
cost = pd.DataFrame(times).pivot_table(index="method", columns="tasks", values="ms")
others = [name for name in cost.index if not name.startswith("joint")]
if others:
    ratios = cost.loc[others, max(P.task_counts)] / cost.loc["joint, counted", max(P.task_counts)]
    found = ", ".join(f"{name} {ratio:.2f} times as long" for name, ratio in ratios.items())
    verdict = verdict_of_share(int((ratios > 0.9).sum()), len(ratios))
    text = "A step of the search takes no longer than a step of a gradient method."
    anchor = "sec-recon-cost"
    claims.append(Claim(text, "Figure 4.11", "no numbers printed", found, setup, verdict, anchor))

# %% tags=["nbval-ignore-output"]
record.table("claims", claim_rows(claims))
claims_table(claims).style.hide(axis="index")

# %% [markdown]
# ## Where it stops
#
# - **One search.** All studies use the layers of one search with one seed. The section on stability says how much another seed would change.
# - **Few seeds and small differences.** With this many intervals of 95 %, one in twenty is expected to leave out zero by chance alone.
# - **A ranking is not a cause.** Layers with many conflicts are small and early. A control that holds size *and* place equal would have to be made of the
#   same layers.
# - **Yes-no questions** about one image share nearly all they need. The times of this chapter carry over to other tasks; the conflicts do not.
#
# ## Exercises
#
# ```{exercise}
# :label: ex-recon-study-chance
# *On paper.* Of $n=40$ layers two searches choose 25 each, independently and at random. How many do they share on average?
# ```
#
# ````{solution} ex-recon-study-chance
# :class: dropdown
# Each of the 25 layers of the first search is in the second one with probability $25/40$. So $25\cdot25/40\approx15.6$ layers, or 62.5 % of 25. An overlap has
# to be read against this number.
# ````
#
# ```{exercise}
# :label: ex-recon-study-distance
# *On paper.* What is the ranking distance of a ranking and the same one turned round, for $n$ layers, $n$ even?
# ```
#
# ````{solution} ex-recon-study-distance
# :class: dropdown
# The layer in place $p$ moves to $n+1-p$, so by $|n+1-2p|$. The sum over $p$ is $n^2/2$, the mean $n/2$.
# ````
#
# ```{exercise}
# :label: ex-recon-study-bn
# *Change a parameter.* Run with `-p batch_norm False -p top_k 10`. Which layers are chosen now? How much larger is the network than with ten batch norms?
# ```
#
# ````{solution} ex-recon-study-bn
# :class: dropdown
# The convolutions with the highest scores. The table *how many layers* shows the size in MB: a convolution in the last stage holds more
# parameters than all batch norms together.
# ````
#
# ```{exercise}
# :label: ex-recon-study-search
# *Change a parameter.* Run with `-p search_quarters 4`, which searches over the whole training. How many layers change?
# ```
#
# ````{solution} ex-recon-study-search
# :class: dropdown
# Compare the printed first layers and the sections below with this run. How many change follows from the ranking distance between the first
# quarter and all of them, which [the chapter before](chap-recon) prints.
# ````
#
# ```{exercise}
# :label: ex-recon-study-size
# *Write code.* Ask for the average number of parameters of a chosen layer and of all layers. What does that say about the control *random layers*?
# ```
#
# ```{solution-start} ex-recon-study-size
# :class: dropdown
# ```

# %%
from experiments.mtl.controls import parameter_count

sizes = pd.Series({name: parameter_count(layer) for name, layer in trunk_layers.items()})
pd.Series({"chosen": sizes[list(chosen)].mean(), "all": sizes.mean()}).round(0)

# %% [markdown]
# If chosen layers are smaller than average, as many random ones hold more parameters: this control gives the random choice *more* freedom than
# Recon has. The control of random parameters gives it as much.
#
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-recon-study-place
# *Write code.* Give every layer its place in the network and its place in the ranking. What is their correlation?
# ```
#
# ```{solution-start} ex-recon-study-place
# :class: dropdown
# ```

# %%
from ktlib.mtl import ranking_correlation

round(ranking_correlation([n for n in trunk_layers if n in ranking], ranking), 2)

# %% [markdown]
# 1 would say that conflicts fall layer by layer from the input to the output, and *first* would be the same choice as Recon.
#
# ```{solution-end}
# ```
#
# ## Summary
#
# - A selection is worth what it gains over other selections of its size.
# - Early layers are cheap to copy and dear to run: count time, not only parameters.
# - Compare rankings with what chance gives, and methods with what seeds give.
# - The search costs one backward pass per task and step, once.
# - Before a choice is blamed, look at what came with it: here, the running statistics of shared batch norms.
#
# ## Further reading
#
# The paper {cite}`shi2023recon` and the thesis {cite}`shi2025thesis` have the printed tables. On which tasks should be trained together
# at all: {cite}`standley2020tasks,fifty2021tag`.

# %%
record.table("studies", studies)
path = record.save(P.run_dir)
print(f"Record with {len(record.tables)} tables; saved: {path is not None}")
