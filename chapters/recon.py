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
#     data: [multi_fashion_mnist]
#     data_parameter: dataset
# ---

# %% [markdown]
# (chap-recon)=
# # Two tasks, one network: which layers should they not share?
#
# **The question.** One network is to do two things at once: name a garment and read a digit, both in the same image.
# It has one trunk for both tasks. Every step of training asks both tasks how the trunk should change, and they
# do not agree. Where in the network do they disagree, and what is the cheapest way out?
#
# The answer of this chapter, Recon {cite}`shi2023recon,shi2025thesis`, is: *look first, then cut*. Train for a while and count,
# layer by layer, how often the tasks pull in opposite directions. Give each task a copy of its own of the few layers
# with the highest counts, and train again from the start.
#
# After this chapter you can
#
# - measure conflicts between the gradients of tasks, in the whole network and layer by layer,
# - tell what gradient surgery (MGDA, PCGrad, GradDrop, CAGrad, ...) changes, and what it leaves as it was,
# - find the layers of *your* network in which tasks conflict, and split them, in ten lines,
# - compare multi-task networks fairly: by every task, by size, and by time.
#
# **Before you start.** You should have trained a small convolutional network with PyTorch once. No
# knowledge of multi-task learning is needed; the [notation page](../notation.md) has the symbols.
#
# **Time to run.** About 2 minutes on two CPU cores at the default size; the
# [execution page](../execution.md) shows the time of the run that you are reading. To run it again:
#
# ```bash
# make book                                         # this chapter, at the default size
# make notebooks                                    # chapters as notebooks, then for example:
# papermill notebooks/recon.ipynb out.ipynb -y '{seeds: [7]}' -p top_k 10
# ```
#
# Whether the *choice* of layers matters, how many there should be, and what the search costs with many tasks, is the
# matter of the [next chapter](chap-recon-studies).

# %% tags=["parameters"]
profile = "cpu"  # name of this set of values, noted in the record
run_dir = ""  # folder for result.json and figures; "" writes nothing
device = "auto"  # auto, cpu, cuda or mps; the thesis: one RTX 3090
precision = "float32"  # auto, float32 or bfloat16
seeds = [0, 1]  # one repetition each: weights, batches, images; the thesis: 3 runs
dataset = "multi_fashion_mnist"  # images with several targets; the thesis: this one and four more
tasks = []  # tasks of the data set that are trained, empty: all; the thesis: PASCAL-Context 4 of 5
backbone = "resnet18"  # the network that the tasks share; the thesis: this one here
weights = ""  # what it starts from, empty: random; authors' code: ImageNet's for PASCAL-Context
train_images = 4000  # training images, 0: all; the thesis: 120,000
test_images = 2000  # test images, 0: all; the thesis: 20,000
width = 16  # channels of the first stage; the thesis: 64
augment = False  # maps scaled, cropped and mirrored at random; authors' code: True for maps
epochs = 3  # passes over the training images; authors' code: 120
batch_size = 64  # images per step; authors' code: 256
optimizer = "sgd"  # sgd with momentum 0.9, or adam; authors' code: sgd
lr = 0.05  # first learning rate; authors' code: 0.1
method_lr = {
    "pcgrad": 0.02,
    "graddrop": 0.02,
    "upgrad": 0.02,
    "nashmtl": 0.1,
    "rotograd": 0.02,
    "mmoe": 0.1,
}  # of methods with another; authors' code: none
lr_drops = [0.5, 0.75]  # shares of the training after which lr falls; authors' code: these
lr_factor = 0.1  # what lr is multiplied by each time; authors' code: 0.1
cagrad_c = 0.2  # how far CAGrad may move away from the mean; authors' code: 0.2
batch_norm = True  # whether batch norms count as layers; authors' code: True
severity = -0.1  # severity S: a cosine below it is counted; authors' code: -0.1
top_k = 25  # layers K that become task-specific; authors' code: 25 of 41
search_quarters = 1  # quarters of the training that count; the thesis: 1
methods = ["single", "joint", "mgda", "pcgrad", "graddrop", "cagrad"]  # to train as they are
recon_methods = ["joint", "pcgrad"]  # to train on the split network, too; the thesis: all
compared_seeds = 1  # seeds, at most, that methods other than single and joint are run with
experts = 2  # expert networks of MMoE; the thesis: 2, by the size that it prints
timed_images = 200  # images of the timed forward pass; not stated in the thesis

# %% tags=["setup"]
from experiments.mtl.parameters import ReconParameters
from experiments.run.parameters import check_parameters

P = check_parameters(globals(), ReconParameters)

# %% [markdown]
# ## The problem
#
# In **multi-task learning** {cite}`caruana1997multitask` one network serves $T$ tasks. It has a **trunk**, the layers
# $\theta_{\mathrm{sh}}$ that all tasks share, and a **head** for each task, the layers $\theta_i$ that only this task uses. Each task $i$ has a
# loss $L_i(\theta_{\mathrm{sh}},\theta_i)$. The plain way to train, **joint training**, minimises their sum:
#
# ```{math}
# :label: eq-recon-joint
# \min_{\theta_{\mathrm{sh}},\theta_1,\dots,\theta_T}\ \sum_{i=1}^T L_i(\theta_{\mathrm{sh}},\theta_i).
# ```
#
# Sharing saves memory and time, and what one task learns may help another. It may also hurt: then a network for each
# task alone would have been better. That is called **negative transfer**.
#
# The data of this chapter is Multi-Fashion+MNIST {cite}`lin2019paretomtl`, made for this question: each image has a garment
# of Fashion-MNIST {cite}`xiao2017fashion` in one corner and a digit of MNIST {cite}`lecun1998mnist` in the other, and each is a task of ten classes. What
# is signal for one task is clutter for the other.

# %%
import matplotlib.pyplot as plt
import pandas as pd
import torch
from IPython.display import display
from myst_nb import glue

import data_prep as data
from experiments.run.plotting import save_figure, use_style
from experiments.run.results import RunRecord
from ktlib.device import choose_device
from ktlib.seeding import deterministic

use_style()
deterministic()
record = RunRecord.start("recon", P, data=data.checksums(P.dataset))

# %% [markdown]
# `MultiTaskExperiment` holds what must be the same for all methods: images, networks, batches. A seed changes all three.
# Test images come from the test files only, the same for every seed.

# %%
from experiments.mtl.experiment import MultiTaskExperiment

experiment = MultiTaskExperiment(P, choose_device(P.device))
rows = experiment.training_rows(P.seeds[0])
print(f"{len(rows)} training images, {len(experiment.test_data)} test images")
print("tasks:", ", ".join(experiment.tasks))

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Six small grey images; each has one object towards the upper left corner and another towards the lower right one, and they overlap.", "classes": "photo"}, "figure": {"name": "fig-recon-images", "caption": "Six training images and their targets, first seed."}}
shown_images = experiment.training_images(rows[:6])
fig, axes = plt.subplots(1, 6, figsize=(7.2, 1.7))
for number, ax in enumerate(axes):
    ax.imshow(shown_images.images[number].permute(1, 2, 0).squeeze().numpy(), cmap="gray")
    known = [
        task.class_names[int(shown_images.targets[name][number])]
        for name, task in experiment.tasks.items()
        if task.kind == "classes"
    ]
    ax.set_title("\n".join(known[:2]), fontsize=7)
    ax.set_axis_off()
save_figure(fig, P.run_dir, "images")

# %% [markdown]
# A small example shows what "hurt" means. Two tasks share a single weight vector $v$ in the plane. Each has a quadratic loss
# with a place of its own where it is lowest. The arrows are the directions in which each task would move $v$.

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Two panels with two arrows each that start at one point: in the left panel they form an acute angle, in the right one an obtuse angle; a third, dashed arrow is their sum.", "classes": "chart"}, "figure": {"name": "fig-recon-angle", "caption": "Two task gradients (with their sign turned, so arrows show the steps) and their sum, dashed. Left: the tasks agree, the sum helps both. Right: they conflict. The sum is short, and along it the loss of the second task rises. Computed for two quadratic losses."}}
import numpy as np

fig, axes = plt.subplots(1, 2, figsize=(5.8, 2.8), sharex=True, sharey=True)
for ax, other in zip(axes, ([0.2, 1.0], [-1.0, 0.35]), strict=True):
    steps = np.array([[1.6, 0.3], other])
    cosine = steps[0] @ steps[1] / np.linalg.norm(steps[0]) / np.linalg.norm(steps[1])
    for step, name, line in (
        *zip(steps, ("task 1", "task 2"), "--", strict=True),
        (steps.sum(0), "sum", ":"),
    ):
        ax.annotate(
            "",
            step,
            (0, 0),
            arrowprops={"arrowstyle": "->", "linestyle": "-" if line == "-" else "--"},
        )
        ax.text(*(step * 1.08), name, fontsize=9)
    ax.set(title=f"cosine {cosine:+.2f}", xlim=(-1.5, 2.4), ylim=(-0.4, 1.6), aspect="equal")
save_figure(fig, P.run_dir, "angle")

# %% [markdown]
# Let $g_i=\nabla_{\theta_{\mathrm{sh}}}L_i$ be the gradient of task $i$ on the shared layers. Two tasks **conflict** (thesis, 4.1) if
#
# ```{math}
# :label: eq-recon-conflict
# \cos_{ij}=\frac{\langle g_i,g_j\rangle}{\lVert g_i\rVert\,\lVert g_j\rVert}<0 .
# ```
#
# A small step along the summed gradient $g_1+g_2$ changes the loss of task 2 by about $-\alpha\,(\langle g_1,g_2\rangle+\lVert g_2\rVert^2)$. With a
# negative inner product that is less progress than alone, and if $g_1$ is long enough it is none at all.
#
# ## Pilot study: do tasks conflict, and does gradient surgery stop it?
#
# `ConflictMeter` is the tool of this chapter. At each step it takes the losses of all tasks, computes the gradient of each
# once, counts the cosines, and hands the gradients on to whatever makes the update. So watching costs next to nothing
# extra. This is the whole training step:

# %%
import inspect
import textwrap

from IPython.display import Code


def show_body(function):
    """The lines of a function below its description."""
    lines = inspect.getsource(function).split('"""')[2].strip("\n")
    return Code(textwrap.dedent(lines), language="python")


show_body(MultiTaskExperiment.train_network)

# %% [markdown]
# `compare` trains networks, several at once, and notes scores and conflicts of each. `split_layers` says which layers each task has
# for itself: none, at first.

# %%
from experiments.mtl.comparison import train_architecture
from experiments.mtl.parameters import ARCHITECTURES
from experiments.mtl.report import RECON, SHARED, histogram_rows, result_rows
from experiments.run.parallel import parallel_map

compared = P.seeds[: P.compared_seeds]
split_layers = {SHARED: dict.fromkeys(P.seeds, ())}  # which layers -> seed -> their names
runs, results, histograms = {}, [], []


def train(case):
    """A trained network, and its scores on test images."""
    method, which, seed = case
    chosen = split_layers[which][seed]
    if method in ARCHITECTURES:
        run = train_architecture(experiment, method, seed, chosen, experts=P.experts)
    else:
        run = experiment.train(method, seed, chosen)
    return run, experiment.scores(run.network)


# %%
def compare(methods, which):
    """Train with each method: joint with all seeds, the others with those that are compared."""
    seeds = {method: P.seeds if method == "joint" else compared for method in methods}
    cases = [(method, which, seed) for method in methods for seed in seeds[method]]
    done = parallel_map(train, cases, which, device=experiment.device)
    for (method, _, seed), (run, scores) in done.items():
        runs[method, which, seed] = run
        known = {"method": method, "recon": which == RECON, "layers": which, "seed": seed}
        results.extend(result_rows(scores, **known))
        if run.meters:
            histograms.extend(histogram_rows(run.conflicts(), **known))


# %%
compare(["joint"], SHARED)

# %% [markdown]
# In joint training the update is the plain sum of the task gradients. **Gradient surgery** makes another update of
# them, so that no task is pushed back:
#
# - **mgda** {cite}`desideri2012mgda,sener2018mgda` takes the shortest vector among all averages of the gradients;
# - **pcgrad** {cite}`yu2020pcgrad` removes from each gradient the part that points against another one;
# - **graddrop** {cite}`chen2020graddrop` keeps, in each coordinate, only the positive or only the negative parts, at random;
# - **cagrad** {cite}`liu2021cagrad` stays close to the mean and helps the task that would gain least.
#
# They come from the library `torchjd` {cite}`quinton2024upgrad`; only for two tasks CAGrad is solved here in closed form. Libraries differ in scale: some add up, some average. Here every
# method is on the scale of the *sum* of losses, so one learning rate can serve them all.

# %%
from experiments.mtl.parameters import GRADIENT_METHODS

surgery = [name for name in P.methods if name in GRADIENT_METHODS and name != "joint"]
compare(surgery, SHARED)


# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Step histograms of the cosine between the gradients of the two tasks, one line per method; all are centred near zero and overlap.", "classes": "chart"}, "figure": {"name": "fig-recon-pilot", "caption": "Cosine between the gradients of the two tasks over all shared layers, one value per training step. Left of the line at 0 the tasks conflict. Training images, first seed, live run."}}
def draw_histogram(ax, method, layers, seed, **style):
    """Shares of the cosines as steps, two bins together."""
    table = pd.DataFrame(histograms).set_index(["method", "layers", "seed"]).sort_index()
    part = table.loc[(method, layers, seed)]
    edges = np.linspace(-1, 1, 101)
    middle = (part["bin_low"] + part["bin_high"]) / 2
    heights, _ = np.histogram(middle, bins=edges, weights=part["share"])
    ax.stairs(100 * heights, edges, **style)


fig, ax = plt.subplots(figsize=(5.8, 3.0))
for number, name in enumerate(["joint", *surgery]):
    draw_histogram(ax, name, SHARED, P.seeds[0], label=name, color=f"C{number}", linewidth=1.4)
ax.axvline(0, color="black", linewidth=1)
ax.set(xlabel="cosine", ylabel="share of steps (%)", xlim=(-0.5, 0.5))
ax.legend()
save_figure(fig, P.run_dir, "pilot")

# %% [markdown]
# The thesis sorts the cosines into intervals and calls those below $-0.01$ severe. *Fewer severe* says how many percent fewer of
# them a method has than joint training with the same seed.

# %%
from experiments.mtl.report import interval_table
from experiments.run.results import thesis_table

interval_table([row for row in histograms if row["seed"] in compared], thesis_table("4_11"))

# %% [markdown]
# Surgery changes the *update*, not the place where the gradients come from. At the next step the tasks ask for
# opposite things again. The thesis concludes: conflicts have to be treated at their root, in the network.
#
# ## The method
#
# Recon {cite}`shi2023recon` has three steps (thesis, algorithm 2).
#
# 1. **Search.** Train for a while, by any method, and count for each layer $k$ how often the tasks conflict *in this layer*.
# 2. **Split.** Make the $K$ layers with the highest counts task-specific: each task gets a copy.
# 3. **Train** the split network from scratch, by any method.
#
# ### Search: conflict scores
#
# Let $g_i^{(k)}$ be the part of $g_i$ that belongs to layer $k$. A *layer* is a module that owns parameters: a convolution, a
# batch norm, a linear map. The score of layer $k$ at **severity** $S\in(-1,0]$ counts pairs of tasks, summed over the steps of the search (4.3):
#
# ```{math}
# :label: eq-recon-score
# s^{(k)}(S)=\sum_{\text{steps}}\ \bigl|\{\,i<j:\ \cos_{ij}^{(k)}<S\,\}\bigr| .
# ```
#
# The meter has counted all of this already, in each quarter of the training separately, and at several severities at
# once. The search of the thesis uses the first quarter only.

# %%
from experiments.mtl.report import score_rows

scores = [
    row
    for (method, layers, seed), run in runs.items()
    if layers == SHARED
    for quarter, meter in enumerate(run.meters, start=1)
    for row in score_rows(meter, method=method, seed=seed, stage=quarter)
    if row["severity"] == P.severity  # of all that were counted: the record stays small
]
record.table("layer_scores", scores)

# %%
searched = runs["joint", SHARED, P.seeds[0]]
layers = experiment.recon_layers(searched)
counts = searched.conflicts(P.search_quarters)
names = list(counts.layers)
pd.DataFrame({"score": {name: counts.scores(P.severity)[name] for name in layers[:8]}}).T

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Heat map with a column per layer in network order and a row per quarter of training; batch norms and early layers are brighter.", "classes": "photo"}, "figure": {"name": "fig-recon-heat", "caption": "Share of steps in which the tasks conflict in a layer (cosine below the severity), for each quarter of joint training. Layers in the order of the network; marks above: the layers that Recon splits. First seed, live run."}}
shares = [
    [meter.scores(P.severity)[name] / max(1, meter.pairs[name]) for name in names]
    for meter in searched.meters
]
fig, ax = plt.subplots(figsize=(7.2, 2.9))
image = ax.imshow(100 * np.array(shares), aspect="auto", cmap="cividis")
ax.scatter(
    [names.index(name) for name in layers],
    [-0.75] * len(layers),
    marker="v",
    s=10,
    color="black",
    clip_on=False,
)
ax.set(yticks=range(4), ylabel="quarter", xticks=range(len(names)))
ax.set_yticklabels(range(1, 5))
ax.set_xticklabels(names, rotation=90, fontsize=5)
ax.grid(visible=False)
fig.colorbar(image, ax=ax, label="conflicts (%)")
save_figure(fig, P.run_dir, "heat")

# %% [markdown]
# Which kinds of layers are these? In the authors' released run the top of the ranking is mostly batch norms and the earliest
# convolutions, small layers all of them.

# %%
from experiments.mtl.report import layer_kinds

trunk_layers = searched.network.shared_layers()
layer_kinds(trunk_layers, searched.network.shared_layers(batch_norm=False), layers)

# %% [markdown]
# ### Which tasks?
#
# A score adds all pairs of tasks up. The meter of this chapter has `task_pairs=True` and counts each pair by itself, too, with the inner
# products and lengths that {prf:ref}`thm-recon` is about. With two tasks there is one pair; with more, the left panel shows who should
# not share a network. In the right one, the other tasks push a task's way on blue layers and against it on red ones: $0$ means that
# they neither help nor hurt, and $-1$ that they undo its own step.

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Two heat maps: a square one with a row and a column per task, and one with a row per layer and a column per task, in which most layers are near zero.", "classes": "photo"}, "figure": {"name": "fig-recon-pairs", "caption": "Which tasks conflict, in the searched part of joint training. Left: share of the steps in which two tasks conflict over all shared layers (cosine below the severity). Right: what the gradients of the other tasks add to a step of a task on each layer, as a share of its own step (mean cosine times the ratio of lengths, summed over the others). First seed, live run."}}
from experiments.mtl.report import layer_task_table, pair_table

size = min(8, 110 / len(experiment.tasks))  # of letters, also for the 40 tasks of CelebA
added = {"cmap": "RdBu", "vmin": -1, "vmax": 1, "aspect": "auto"}
panels = (
    (pair_table(counts, P.severity), "conflicts (%)", {"cmap": "cividis", "vmin": 0}, size),
    (layer_task_table(counts), "added by others", added, 7),
)
fig, axes = plt.subplots(1, 2, figsize=(4.6, 1.5 + 0.13 * len(names)))
for ax, (table, label, style, letters) in zip(axes, panels, strict=True):
    image = ax.imshow(table, **style)
    ax.set_yticks(range(len(table.index)), table.index, fontsize=letters)
    ax.set_xticks(range(len(table.columns)), table.columns, rotation=90, fontsize=size)
    ax.grid(visible=False)
    fig.colorbar(image, ax=ax, label=label, location="top")
save_figure(fig, P.run_dir, "pairs")

# %% [markdown]
# ### Is the ranking stable?
#
# A search is worth its time only if it would give the same layers again. The **ranking distance** (4.20) is the mean number of
# places that a layer moves between two rankings. For $n$ layers in random order it is about $n/3$.

# %%
from experiments.mtl.experiment import conflict_ranking
from experiments.mtl.report import distance_table, printed_distances
from experiments.mtl.studies import ranking_pair

by_quarter = {
    f"quarter {number}": conflict_ranking(meter, P.severity)
    for number, meter in enumerate(searched.meters, start=1)
}
by_quarter["all"] = conflict_ranking(searched.conflicts(), P.severity)
print(f"by chance: {len(names) / 3:.1f}")
display(distance_table(by_quarter).rename_axis("this run"))
printed_distances(thesis_table("4_6")).rename_axis("thesis")

# %%
by_method = {
    name: conflict_ranking(runs[name, SHARED, P.seeds[0]].conflicts(P.search_quarters), P.severity)
    for name in ["joint", *surgery]
}
display(distance_table(by_method).rename_axis("this run"))
printed_distances(thesis_table("4_8")).rename_axis("thesis")

# %%
first = experiment.ranking(searched)
others = {seed: experiment.ranking(runs["joint", SHARED, seed]) for seed in P.seeds[1:]}
stability = {
    f"seeds {P.seeds[0]} and {seed}": ranking_pair(first, other, P.top_k)
    for seed, other in others.items()
}
pd.DataFrame(stability).T.round(2)

# %% [markdown]
# The first table compares quarters of one training, the second methods, the third seeds; below the first two stand those of the
# thesis, from a far longer training. *Overlap* is the share of the split layers that both seeds find. It has to be read against chance:
# of two sets of 25 layers out of 41 more than half are common without any reason. By chance the correlation is 0.
#
# ### Split: a copy of some layers for each task
#
# `split(trunk, layers, tasks)` works on any PyTorch module. Layers that stay shared are the *same objects* in the
# trunks of all tasks. What lies in front of the first split layer is computed once, the rest once for each task. With
# `example=images` outputs and gradients are first compared with those of whole copies; where they differ, every task
# computes its whole trunk, and a warning says why.

# %%
from ktlib.mtl import forward_flops, parameter_megabytes

images = experiment.batch(
    experiment.test_data, torch.arange(min(P.timed_images, len(experiment.test_data)))
)[0]

# %%
one, few = (
    parameter_megabytes(experiment.new_network(P.seeds[0], chosen)) for chosen in ((), layers)
)
print(f"{len(layers)} of {len(names)} layers split: {one:.2f} MB become {few:.2f} MB")
print(f"that is {100 * (few / one - 1):+.1f} %")

# %% [markdown]
# Few parameters are added, as the conflict layers are small. Time is another matter: an early layer that is split makes
# everything behind it run once for each task. The thesis reports sizes; this book reports time and floating-point
# operations beside them.
#
# ### Train, and look again

# %%
with_recon = [name for name in P.recon_methods if name in GRADIENT_METHODS]
split_layers[RECON] = dict.fromkeys(P.seeds, layers)
compare(with_recon, RECON)

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Two panels with step histograms of the cosine before and after Recon, for joint training and for another method; after Recon the left flank is lower.", "classes": "chart"}, "figure": {"name": "fig-recon-after", "caption": "Cosine between the task gradients over the layers that are still shared, before and after Recon. Training images, first seed, live run."}}
pairs = with_recon[:4]
fig, axes = plt.subplots(1, len(pairs), figsize=(3.4 * len(pairs), 2.8), sharey=True, squeeze=False)
for ax, name in zip(axes.flat, pairs, strict=True):
    draw_histogram(ax, name, SHARED, P.seeds[0], label="shared", color="C0")
    draw_histogram(ax, name, RECON, P.seeds[0], label="Recon", color="C1")
    ax.axvline(0, color="black", linewidth=1)
    ax.set(title=name, xlabel="cosine", xlim=(-0.5, 0.5))
axes[0, 0].set_ylabel("share of steps (%)")
axes[0, 0].legend()
save_figure(fig, P.run_dir, "after")

# %% [markdown]
# ## Is it the right layers, or any layers?
#
# A split network has more parameters, and the layers that conflict are gone from the count. Both alone might explain
# fewer conflicts. So one control: as many layers, chosen *at random* (RSL in the thesis). The [next chapter](chap-recon-studies)
# has more of them.

# %%
from experiments.mtl.controls import control_layers
from ktlib.seeding import generator

rngs = {seed: generator(seed, "control", "random_layers") for seed in P.seeds}
split_layers["random_layers"] = {
    seed: control_layers("random_layers", trunk_layers, layers, rng) for seed, rng in rngs.items()
}
compare(["joint"], "random_layers")

interval_table(histograms, thesis_table("4_11"))

# %% [markdown]
# The cosine is taken over *all layers that are still shared*. With other layers split, other layers remain, so the rows of Recon and of random layers
# do not describe the same parameters. What a task has for itself cannot conflict.

# %%
from experiments.mtl.report import severe_shares
from experiments.run.paired import PairedDifference

severe = severe_shares(histograms)


def severe_change(after, before=SHARED):
    """Severe conflicts in joint training, in points, within pairs of one seed."""
    return PairedDifference.of(severe["joint", after] - severe["joint", before])


glue("recon-severe", str(severe_change(RECON)).split(" (")[0], display=False)
glue("recon-severe-random", str(severe_change("random_layers")).split(" (")[0], display=False)

# %% [markdown]
# Severe conflicts in joint training, in percentage points of all steps: after Recon {glue:text}`recon-severe`; with random layers split
# {glue:text}`recon-severe-random`.
#
# ## Does it help the tasks?
#
# Fewer conflicts are a means. The end is accuracy on each task. The reference is a network for each task alone, **single**, and the
# **relative improvement** over it is, with metrics $M_i$ and $S_i$ of the method and of single-task training,
#
# ```{math}
# :label: eq-recon-dm
# \Delta m=\frac1T\sum_{i=1}^T(-1)^{l_i}\,\frac{M_i-S_i}{S_i},\qquad l_i=1\text{ if lower is better, else }0 .
# ```


# %%
def train_single(seed):
    """A network for each task alone, and their scores."""
    alone = experiment.train_single(seed)
    return alone, experiment.single_scores(alone)


single = parallel_map(train_single, P.seeds, "single tasks", device=experiment.device)
for seed, (_, reached) in single.items():
    known = {"method": "single", "recon": False, "layers": SHARED, "seed": seed}
    results.extend(result_rows(reached, **known))

# %% [markdown]
# Three methods change the architecture, and one rotates what the heads see. They are run where the parameters name them; in the long run
# below all are:
#
# - **rotograd** {cite}`javaloy2022rotograd` rotates the features for each task, so that the rotated gradients agree;
# - **mmoe** {cite}`ma2018mmoe` has several trunks, called experts, and each task mixes them by a gate;
# - **cross_stitch** {cite}`misra2016crossstitch` has a trunk per task and learns how much each stage passes to the others;
# - **bmtas** {cite}`bruggemann2020bmtas` searches for the place where the tasks should part.

# %%
architectures = [name for name in P.methods if name in ARCHITECTURES]
compare(architectures, SHARED)
compare([name for name in architectures if name in P.recon_methods], RECON)

# %%
from ktlib.mtl.cost import forward_milliseconds


def cost_of(networks):
    """Size, and operations and time of a forward pass, of the networks that serve all tasks."""
    return {
        "megabytes": sum(map(parameter_megabytes, networks)),
        "gigaflops": sum(forward_flops(network, images) for network in networks) / 1e9,
        "forward_ms": sum(forward_milliseconds(network, images) for network in networks),
    }


# %%
alone = [run.network for run in single[P.seeds[0]][0].values()]
costs = [{"method": "single", "recon": False, "layers": SHARED} | cost_of(alone)]
for (method, which, seed), run in runs.items():
    if seed == P.seeds[0]:
        known = {"method": method, "recon": which == RECON, "layers": which}
        costs.append(known | cost_of([run.network]))

# %% tags=["nbval-ignore-output"]
from experiments.mtl.report import improvement_rows, in_order, results_table
from experiments.mtl.tasks import LOWER_IS_BETTER

record.table("conflict_histogram", histograms)
record.table("mtl_results", results)
record.table("mtl_costs", costs)
gains = pd.DataFrame(improvement_rows(results, LOWER_IS_BETTER))
results_table(in_order(results), costs, LOWER_IS_BETTER, thesis_table("4_1"))

# %% [markdown]
# Accuracy in percent on test images, mean ± standard deviation over seeds (none for one seed). Δm is relative to *single*, seed
# by seed. #P is the size of all parameters; floating-point operations and time are those of one forward pass for
# all tasks. Compare the two sides of a pair, *method* and *method + Recon*, and keep the last three columns in view: part of
# what a split network gains, it pays for.

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Scatter plot: relative improvement against the floating-point operations of one forward pass, one marker per method, filled with Recon.", "classes": "chart"}, "figure": {"name": "fig-recon-price", "caption": "What is gained, against what it costs: relative improvement over single-task training (upwards) and floating-point operations of a forward pass (to the right). Filled: the split network. Mean over seeds, test images, live run."}}
from experiments.mtl.report import run_name

price = {(row["method"], row["layers"]): row["gigaflops"] for row in costs}
places = {name: place for place, name in enumerate(dict.fromkeys(gains["method"]))}
fig, ax = plt.subplots(figsize=(5.8, 3.4))
for (method, which), part in gains.groupby(["method", "layers"], sort=False):
    spread = part["improvement"].std() if len(part) > 1 else None
    style = {"fillstyle": "none" if which == SHARED else "full", "color": f"C{places[method] % 10}"}
    style |= {"marker": "o" if which in (SHARED, RECON) else "s", "linestyle": "none"}
    point = price[method, which], part["improvement"].mean()
    ax.errorbar(*point, yerr=spread, label=run_name(method, which), **style)
ax.axhline(0, color="black", linewidth=1)
ax.set(xlabel="GFLOPs of one forward pass", ylabel="relative improvement (%)")
ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
save_figure(fig, P.run_dir, "price")

# %%
paired = gains.pivot_table(index="seed", columns=["method", "layers"], values="improvement")


def gain(after, before):
    """Change of the relative improvement of joint training, within pairs of one seed."""
    return PairedDifference.of(paired["joint", after] - paired["joint", before])


glue("recon-gain", str(gain(RECON, SHARED)), display=False)
glue("recon-gain-random", str(gain(RECON, "random_layers")), display=False)

# %% [markdown]
# Relative improvement, in percentage points: Recon against plain joint training {glue:text}`recon-gain`; Recon against as many random
# layers {glue:text}`recon-gain-random`.
#
# ### The long run, from the committed record
#
# The live run above is small, so that it ends in minutes. The `full` profile trains longer, on more images, and runs every method with
# all seeds, each with and without Recon. Its record is part of the project; these tables are computed from it, not
# typed.

# %%
from experiments.run.results import committed_record, record_label

full = committed_record("recon", "full")
print(record_label(full, "recon", "full"))
live = {"mtl_results": results, "mtl_costs": costs, "conflict_histogram": histograms}
long = full.tables if full else live

# %% tags=["nbval-ignore-output"]
printed = thesis_table("4_1")
results_table(in_order(long["mtl_results"]), long["mtl_costs"], LOWER_IS_BETTER, printed)

# %%
interval_table(in_order(long["conflict_histogram"]), thesis_table("4_11"))

# %% [markdown]
# What the long run of this edition says, in words:
#
# - **Recon helps every gradient method.** With all of them, and with rotograd, the relative improvement rises by several points, and the interval of
#   the differences within seeds lies above zero. Only for mmoe, which has two trunks to begin with, it contains zero.
# - **Split networks reach the single-task networks, and no further.** With Recon every method lies at most about one point below the networks
#   with one task each, none is clearly above them. They store little more than half as much, and compute as much.
# - **Surgery alone does not help here.** None of the six ways to combine gradients is better than plain joint training at its own best learning
#   rate, and severe conflicts do not become fewer under them. So far the thesis is confirmed: they treat the update, not the cause.
# - **Fewer severe conflicts, but less than printed.** Recon removes a third of them or a little more, not two thirds.
# - **Random layers remove as many.** That contradicts the thesis, where random layers *add* severe conflicts. So the number of conflicts left
#   over does not tell a good choice from a blind one.
# - **Random layers may ruin a task, and not because they are the wrong layers.** One of the three random choices loses far more than all others, nearly all
#   of it on the garments. Read {ref}`what becomes of it <sec-recon-statistics>` when each task keeps its own running statistics.
# - **Two whole networks in disguise do as well.** mmoe, cross_stitch and bmtas, with as many parameters as two networks, come close to them without any
#   search for conflicts. What Recon adds is that it needs hardly more than one network to store.
#
# ### How the settings were chosen
#
# The learning rate was searched for every method, at the size of the live run, on validation images that were held
# out of the training images, with seeds that the chapter does not use. The test images took no part in it.
# `python -m experiments.searches.recon` runs the search, and its record is part of the project; the table shows mean
# validation accuracy over both tasks and two seeds.
#
# A first grid had the rate of the authors' code, 0.1, in its middle. Their training has tens of thousands of steps. In a few
# hundred steps such a rate does harm: each of the first five methods did best at the smallest rate tried. So that search was
# stopped, and the grid begins lower now. Where a method did best at the end of the grid (nashmtl and mmoe at 0.1), two more
# rates were tried.
# Severity, number of layers and the schedule are those of the authors' released code.

# %%
from experiments.run.tables import mean_and_spread

search = committed_record("recon", "search")
tried = (
    search.frame("search") if search else pd.DataFrame(columns=["method", "lr", "mean_accuracy"])
)
by_rate = mean_and_spread(tried, ["method", "lr"], "mean_accuracy")
by_rate.pivot_table(index="method", columns="lr", values="mean", sort=False).round(2)

# %% [markdown]
# (sec-recon-claims)=
# ## Claims of the thesis, and what became of them
#
# Each verdict below follows from a rule: a claim that something is larger, or smaller, is *reproduced* if the 95 %
# interval of the difference within pairs lies on the claimed side of zero, *not reproduced* if it lies on the other
# side, and *undecided* if it contains zero. With one seed there is no interval, and with too few held-out cases no
# test; a search that counted no conflict chose no layers: nothing was tested. A claim about several
# methods counts the methods for which it holds.

# %%
from experiments.run.claims import (
    Claim,
    claim_rows,
    claims_table,
    not_testable,
    verdict_of_difference,
    verdict_of_share,
)  # fmt: skip

setup = (
    f"{P.dataset}, {len(rows)} images, width {P.width}, {P.epochs} epochs, {len(P.seeds)} seeds "
    "(thesis: 120,000 images, width 64, 3 runs)"
)
claims = []


def claim(text, place, thesis, found, verdict, anchor, told=setup):
    claims.append(Claim(text, place, thesis, found, told, verdict, anchor))


# %%
from experiments.mtl.report import reductions


def percents(values):
    return ", ".join(f"{name} {value:+.0f} %" for name, value in values.items())


fewer = thesis_table("4_11").pivot_table(index="base_method", columns="variant", values="reduction")
before, after = reductions(histograms, SHARED), reductions(histograms, RECON)
before = {method: before[method] for method in surgery}  # not those that change the network
theirs = fewer["base"].dropna()
theirs = f"{theirs.min():.1f} to {theirs.max():.1f} %"
if before:  # not where joint training is the only gradient method
    verdict = verdict_of_share(sum(value < 25 for value in before.values()), len(before))
    text = "Gradient surgery removes less than a quarter of the severe conflicts."
    claim(text, "Table 4.11", theirs, percents(before), verdict, "fig-recon-pilot")

# %%
acted = any(counts.scores(P.severity).values())  # else the layers are the first of the network
hits = sum(value > 50 for value in after.values())
verdict = verdict_of_share(hits, len(after), acted=acted)
text = "With Recon, more than half of the severe conflicts are gone, whatever the method."
theirs = f"{fewer['recon'].min():.1f} to {fewer['recon'].max():.1f} %"
claim(text, "Table 4.11", theirs, percents(after), verdict, "fig-recon-after")

# %%
change = severe_change("random_layers", RECON)
verdict = verdict_of_difference(change.low, change.high, "above", acted=acted)
text = "Splitting random layers leaves more severe conflicts than splitting those of Recon."
apart = fewer["recon"]["Joint-train"] - fewer["rsl"]["Joint-train"]
theirs, found = f"reductions {apart:.1f} points apart", str(change).split(" (")[0]
claim(text, "Table 4.11", theirs, found, verdict, "fig-recon-after")

# %%
better = gain(RECON, SHARED)
verdict = verdict_of_difference(better.low, better.high, "above", cases=P.test_images, acted=acted)
text = "Recon improves joint training."
joint_printed = printed.query("base_method == 'Joint-train'").set_index("variant")
rise = joint_printed["delta_m"]["recon"] - joint_printed["delta_m"]["base"]
claim(text, "Table 4.1", f"{rise:+.2f} points of Dm", str(better), verdict, "fig-recon-price")

# %%
better = gain(RECON, "random_layers")
verdict = verdict_of_difference(better.low, better.high, "above", cases=P.test_images, acted=acted)
text = "Recon's layers are better than as many random ones."
claim(text, "Table 4.15", "in every row", str(better), verdict, "fig-recon-price")

# %%
chance = len(names) / 3


def stable(text, number, row, distance):
    """A ranking that hardly moves: by less than a fifth of what chance gives."""
    table = thesis_table(number.replace(".", "_")).query("row != column")
    theirs = table[(table["row"] == row) | (table["column"] == row)]["value"].max()
    place, thesis = f"Table {number}", f"at most {theirs:.2f} places"
    found = f"at most {distance:.1f} places, {chance:.1f} by chance"
    verdict = verdict_of_share(int(distance < chance / 5), 1)
    claim(text, place, thesis, found, verdict, "fig-recon-heat")


# %%
from ktlib.mtl import ranking_distance

quarters = [by_quarter[f"quarter {number}"] for number in range(1, 5)]
moved = max(ranking_distance(by_quarter["all"], ranking) for ranking in quarters)
text = "The ranking of layers hardly changes during training."
stable(text, "4.6", "all", moved)
moved = max([ranking_distance(by_method["joint"], by_method[m]) for m in surgery], default=0.0)
text = "The ranking of layers hardly depends on the method of the search."
stable(text, "4.8", "Joint-train", moved)

# %%
text = "The split layers hold few parameters: the network grows by less than 5 %."
verdict = verdict_of_share(int(few / one < 1.05), 1)
growth = joint_printed["params_mb"]["recon"] / joint_printed["params_mb"]["base"] - 1
found = f"{100 * (few / one - 1):.1f} %"
claim(text, "Table 4.1", f"{100 * growth:+.1f} %", found, verdict, "fig-recon-heat")
reason = "the images cannot be fetched here; loaders, networks and profile are in the project"
for name, place in (
    ("CelebA", "Table 4.2"), ("CityScapes", "Table 4.3"), ("PASCAL-Context", "Table 4.4"), ("NYUv2", "Table 4.5"),
):  # fmt: skip
    words = f"Recon improves every gradient method on {name}."
    claims.append(
        Claim(words, place, "see the table", anchor="sec-recon-claims", **not_testable(reason))
    )

record.table("claims", claim_rows(claims))
claims_table(claims).style.hide(axis="index")

# %% [markdown]
# ### The thesis's other data
#
# Loaders, losses, metrics and networks for CelebA (40 tasks), CityScapes, NYUv2 and PASCAL-Context are part of the project.
# With the data in place (`python -m data_prep.nyuv2` says how), one file of values per data set runs this chapter on it:
#
# ```bash
# make book PROFILE=paper                            # Multi-Fashion+MNIST at full size
# papermill notebooks/recon.ipynb out.ipynb -f chapters/params/recon.paper_celeba.yaml
# papermill notebooks/recon.ipynb out.ipynb -f chapters/params/recon.paper_cityscapes.yaml
# papermill notebooks/recon.ipynb out.ipynb -f chapters/params/recon.paper_nyuv2.yaml
# papermill notebooks/recon.ipynb out.ipynb -f chapters/params/recon.paper_pascal_context.yaml
# ```
#
# Methods that need the gradients of all tasks on one device run on a single device: they cannot be spread over several GPUs as plain
# training can.
#
# ### On a network of your own
#
# The tool knows nothing of this chapter's network. Any module will do, and any losses:
#
# ```python
# meter = ConflictMeter(trunk)
# for images, labels in batches:
#     optimizer.zero_grad()
#     features = trunk(images)
#     losses = {task: loss(heads[task](features), labels[task]) for task in labels}
#     own = {task: heads[task].parameters() for task in losses}
#     gradients = meter.observe(losses, task_parameters=own)
#     apply_gradients(trunk, gradients, aggregator("joint"))
#     optimizer.step()
# network = split(trunk, meter.ranking(severity=-0.1)[:25], list(heads), example=images)
# ```
#
# ## What is proved, and what is not
#
# ```{prf:theorem} One step of Recon, thesis, Theorem 4.1
# :label: thm-recon
# Let $\sum_iw_i=1$, let $P$ be the set of split layers whose copies start equal, and let $\cos_{ij}^{(k)}\lVert g_i^{(k)}\rVert<\lVert g_j^{(k)}\rVert$
# for all tasks $i\ne j$ and all $k\in P$. Then for a small enough step the summed loss after a step of the split network is smaller than after
# a step of the shared one.
# ```
#
# In words: for one small step, copies beat sharing. {prf:ref}`thm-recon` holds for *any* set $P$ that satisfies its condition. Conflicting layers always do; many
# layers without conflict do as well. So it does not say that the layers of highest score are the right ones. With the sum of losses, as
# everybody trains in practice, there is a version that does: {ref}`proof-recon` proves both, line by line, and measures them.
#
# ## Where it stops
#
# - **One step is not training.** The theorem is about the training loss after a single small step. What many steps do to test images is
#   a matter of experiment.
# - **Time.** Conflict layers lie early. Whoever splits them computes most of the network once for each task. Compare the columns of time and of
#   size.
# - **The count depends on its threshold.** A severity of 0 counts half of all steps in any network, as gradients of unrelated
#   tasks are nearly orthogonal and have a random sign. The [next chapter](chap-recon-studies) varies it.
# - **Running statistics.** Batch norms that stay shared keep one set of statistics for all tasks, as in the published method. How good a
#   choice of layers looks depends on how many of them it leaves shared ({ref}`measured in the next chapter <sec-recon-statistics>`).
# - **Noise.** The cosine of two gradients of a *batch* contains the noise of the batch. Smaller batches have cosines nearer to 0.
# - **The released code is not the printed text.** Where the split begins in a block without a projection, only the first task receives its skip
#   connection ({ref}`measured in the next chapter <sec-recon-skip>`), its copies start from different weights, and PCGrad draws its
#   order of tasks without a seed. This chapter follows the text: every task has its skip, and copies start equal.
# - **The baseline.** With well-chosen settings plain joint training is hard to beat {cite}`kurin2022defense,xin2022current`. So it stands in every table.
#
# ## Exercises
#
# ```{exercise}
# :label: ex-recon-surgery
# *On paper.* Two tasks have the gradients $g_1=(2,0)$ and $g_2=(-1,1)$. What is the update of joint training, and what does PCGrad
# make of them: each gradient loses its part along the other one, and the two results are added? MGDA takes the shortest vector
# $w_1g_1+w_2g_2$ with $w_1,w_2\ge0$ and $w_1+w_2=1$. Find $w_1$. For which pairs of gradients is it $0$? Check with `aggregator`.
# ```
#
# ```{solution-start} ex-recon-surgery
# :class: dropdown
# ```
#
# The inner product is $-2$, so they conflict. The sum is $(1,1)$. PCGrad makes $g_1+\frac22g_2=(1,1)$ of the first and
# $g_2+\frac24g_1=(0,1)$ of the second, together $(1,2)$: longer than the sum, and at an angle below 90° to both gradients.
#
# For MGDA, $\lVert w_1g_1+(1-w_1)g_2\rVert^2$ is a parabola in $w_1$ with its lowest point at
# $w_1=(\lVert g_2\rVert^2-\langle g_1,g_2\rangle)/\lVert g_1-g_2\rVert^2=\frac4{10}$. Where that is below $0$, the edge $w_1=0$ is the best: if
# $\langle g_1,g_2\rangle\ge\lVert g_2\rVert^2$, so if $g_1$ points the same way and is the longer one. MGDA then listens to the short gradient alone.
# It is the case in which condition (4.6) of {ref}`proof-recon` fails. In the code the weights of MGDA are multiplied by the number
# of tasks, as all methods here are on the scale of the sum.

# %%
from ktlib.mtl import aggregator

pair = torch.tensor([[2.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
for name in ("joint", "pcgrad", "mgda"):
    print(f"{name:>6}: update {[round(x, 3) for x in aggregator(name)(pair).tolist()]}")
long = torch.tensor([[3.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
print("weights of MGDA, g1 long and aligned:", aggregator("mgda").weights(long @ long.T).tolist())

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-recon-cost
# *On paper.* A trunk consists of three convolutions of $3\times3$ without bias, from 1 to 8, from 8 to 16 and from 16 to 16 channels. They keep the
# size of the image, $8\times8$. There are three tasks. How many copies and how many parameters are there if the second
# convolution is split, and how many if the third one is? How many floating-point operations does one image need in each case, a
# multiplication and an addition counted as one each? What would they be if every task computed its whole trunk?
# ```
#
# ```{solution-start} ex-recon-cost
# :class: dropdown
# ```
#
# The convolutions have $9\cdot1\cdot8=72$, $9\cdot8\cdot16=1152$ and $9\cdot16\cdot16=2304$ parameters. A split layer has a copy for each of the 3 tasks in place of
# one, so it adds two times its size: $3528+2304=5832$ parameters with the second one split, and $3528+4608=8136$ with the third.
#
# Each parameter of a convolution is used once at each of the 64 places: $2\cdot64$ operations. What stands in front of the split
# layer, the prefix, runs once; the split layer *and everything behind it* runs three times:
# $128\,(72+3\cdot3456)=1\,336\,320$ for the second and $128\,(1224+3\cdot2304)=1\,041\,408$ for the third. Whole trunks need $128\cdot3\cdot3528=1\,354\,752$. The earlier layer is
# the cheaper one to store and the dearer one to compute. With one output only, the shared trunk, it is $451\,584$.

# %%
from torch import nn

from ktlib.mtl import split

sizes = ((1, 8), (8, 16), (16, 16))
convolutions = nn.Sequential(*(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in sizes))
blank = torch.zeros(1, 1, 8, 8)
for layers in ([], ["1"], ["2"]):
    network = split(convolutions, layers, ["a", "b", "c"])
    count = sum(parameter.numel() for parameter in network.parameters())
    print(f"split {layers}: {count} parameters, {forward_flops(network, blank):,} operations")
network = split(convolutions, ["1"], ["a", "b", "c"], share_prefix=False)
print(f"whole trunks: {forward_flops(network, blank):,} operations")

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-recon-severity
# *Change a parameter.* The search counts a cosine as a conflict where it lies below `severity`. What should become of the scores
# and of the ranking with $S=0$? Predict it. The meter has counted several severities in one pass, so no new training is needed to see.
# ```
#
# ```{solution-start} ex-recon-severity
# :class: dropdown
# ```

# %%
from ktlib.mtl import top_overlap

for severity in (P.severity, 0.0):
    share = pd.Series(counts.scores(severity)) / pd.Series(counts.pairs)
    print(f"S = {severity:5}: counted {share.mean():.0%} of the pairs, ", end="")
    print(f"on a layer {share.min():.0%} to {share.max():.0%}")
strict, loose = conflict_ranking(counts, P.severity), conflict_ranking(counts, 0.0)
print(f"{ranking_distance(strict, loose):.1f} places apart on average, ", end="")
print(f"{top_overlap(strict, loose, P.top_k):.0%} of the first {P.top_k} in common")

# %% [markdown]
# With $S=0$ every slightly negative cosine counts as much as an open conflict. Gradients of millions of entries that have nothing to do with each
# other have a cosine close to zero, and by chance it is negative half of the time. So all scores move towards one half, and what separates two layers
# is more often chance. A negative $S$ keeps the cases that chance does not produce. If it is too far below zero, few pairs are left to
# count, and chance has its say again. In the notebook, `-p severity 0.0` trains the network that this ranking leads to.
#
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-recon-all
# *Change a parameter.* Let `top_k` grow up to the number of all layers. What happens to the number of parameters, to the cost of a forward
# pass, to the number of conflicts on shared layers, and to the accuracy? Which of the four is a reason to do it?
# ```
#
# ```{solution-start} ex-recon-all
# :class: dropdown
# ```

# %%
ranking = experiment.ranking(searched)
images, _ = experiment.batch(experiment.train_data, experiment.training_rows(P.seeds[0])[:4])
rows = []
for K in (0, P.top_k, len(ranking)):
    trunk = experiment.new_trunk().to(images.device)
    network = split(trunk, ranking[:K], list(experiment.tasks), example=images)
    row = {"K": K, "#P (MB)": parameter_megabytes(network)}
    row |= {"MFLOPs per image": forward_flops(network, images) / len(images) / 1e6}
    rows.append(row | {"shared layers": len(network.shared_layers())})
pd.DataFrame(rows).style.hide(axis="index").format(precision=2)

# %% [markdown]
# With all layers split, every task has a network of its own: this is single-task training with its accuracy, $T$ times the parameters and $T$ times the
# operations, up to what the heads need. There is *no* conflict on shared layers, since there are none. So a falling number of conflicts is no success in itself; every
# split brings it about. What counts is accuracy at a given cost, and against random layers in the same number.
#
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-recon-angles
# *Write code.* Test `ConflictMeter` where you know the answer. Make a trunk of two layers and three tasks whose gradients have the directions 0°, 60° and −60° on
# the first layer, and 0°, 100° and 200° on the second, all of length 1. Which scores do you expect at $S=0$, $-0.4$ and $-0.6$, on each layer and on all shared parameters
# together? Then let UPGrad make an update of the gradients, and look at whether it conflicts with a task. Hint: the gradient of $\langle w,x\rangle$ with respect to $w$ is $x$.
# ```
#
# ```{solution-start} ex-recon-angles
# :class: dropdown
# ```

# %%
from ktlib.mtl import ConflictMeter

angles = {"first": (0, 60, -60), "second": (0, 100, 200)}
three = nn.ModuleDict({name: nn.Linear(2, 1, bias=False) for name in angles})


def losses():
    """Task -> a loss whose gradient on each layer has the given direction."""
    turn = {name: torch.deg2rad(torch.tensor(angles[name], dtype=torch.float)) for name in angles}
    inputs = {name: torch.stack([a.cos(), a.sin()], dim=1) for name, a in turn.items()}
    return {f"task {i}": sum(three[n](x[i]).sum() for n, x in inputs.items()) for i in range(3)}


# %%
meter = ConflictMeter(three, severities=(0.0, -0.4, -0.6))
gradients = meter.observe(losses())
for severity in meter.severities:
    print(severity, meter.scores(severity), "together", meter.shared_score(severity))

# %% [markdown]
# On the first layer the cosines are 0.5, 0.5 and −0.5, on the second −0.17, −0.94 and −0.17. On both together the lengths are $\sqrt2$ and the cosines are
# the means: 0.16, −0.22 and −0.34. Below $-0.4$ there is no pair *together*, although there is one on each of the two layers: a gradient over all parameters
# averages over its layers, which is why Recon looks at each of them.

# %%
from ktlib.mtl import apply_gradients

apply_gradients(three, gradients, aggregator("upgrad"))
update = torch.cat([parameter.grad.flatten() for parameter in three.parameters()])
print("inner products with the update:", [round(float(x), 3) for x in gradients.matrix @ update])
again = meter.observe(losses())
print("counted after two observations:", meter.scores(0.0))

# %% [markdown]
# No product is below zero (rounding aside): a small step along the update makes no task worse. But the second observation counts the same conflicts again. Gradient surgery changes what is made of
# the gradients, not the gradients.
#
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-recon-early
# *Write code.* For which layers of the trunk is it cheap to split one? Split each layer alone, and draw or list the parameters that this adds and
# the factor by which the forward pass grows, in the order of the network. What does that say about a search that finds mostly early batch norms?
# ```
#
# ```{solution-start} ex-recon-early
# :class: dropdown
# ```

# %%
from ktlib.mtl import layers_of

trunk = experiment.new_trunk().to(images.device)
whole, shared_cost = parameter_megabytes(trunk), forward_flops(trunk, images)
rows = []
for layer in list(layers_of(trunk))[::4]:
    network = split(trunk, [layer], list(experiment.tasks), example=images)
    row = {"layer": layer, "MB added": parameter_megabytes(network) - whole}
    rows.append(row | {"times the operations": forward_flops(network, images) / shared_cost})
pd.DataFrame(rows).style.hide(axis="index").format(precision=3)

# %% [markdown]
# Early layers have few parameters, and almost the whole network lies behind them: splitting one costs next to no memory and nearly as much computation as a
# network per task. Late layers are the other way round. The number of parameters alone, which the thesis reports, hides that; and the first layer that is
# split decides about the computation, however few they are.
#
# ```{solution-end}
# ```
#
# ## Summary
#
# - Tasks conflict where their gradients have a negative inner product. Gradient surgery changes the update, not the gradients.
# - Conflicts are not spread evenly: a few, mostly small, layers have many. A short search finds them.
# - `ConflictMeter` counts while you train; `split` gives each task its own copy of the layers that you name.
# - Look at time beside size, and at random layers beside chosen ones, before you praise a split.
#
# ## Further reading
#
# The paper {cite}`shi2023recon` and the thesis {cite}`shi2025thesis`; a survey of multi-task learning for dense prediction
# {cite}`vandenhende2021survey`; two sober comparisons of multi-task optimisers {cite}`kurin2022defense,xin2022current`. The next chapter
# [varies everything](chap-recon-studies) that this one kept fixed.

# %%
path = record.save(P.run_dir)
print(f"Record with {len(record.tables)} tables; saved: {path is not None}")
