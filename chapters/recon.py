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
# One network is to do two things at once: name a garment and read a digit, both in the same image. Every step of
# training asks both tasks how the shared weights should change, and *they do not agree*.
#
# **The chapter in five lines**
#
# 1. **The question.** In which layers do the tasks disagree, and what is the cheapest way out?
# 2. **The idea.** *Look first, then cut.* Train for a while and count, layer by layer, how often the tasks pull in
#    opposite directions. Give each task its own copy of the layers with the highest counts, and train again from the
#    start. This is Recon {cite}`shi2023recon,shi2025thesis`.
# 3. **This run.** Recon against the shared network: {glue:text}`recon-split` Against as many random layers:
#    {glue:text}`recon-choice`
# 4. **The long run.** Does Recon beat the shared network there? {glue:text}`recon-long` And as many random layers?
#    {glue:text}`recon-long-random`
# 5. **To take away.** *That* layers are split and *which* layers are split are two questions: as many layers chosen at
#    random answer the second. And count time beside size: an early layer is small to store and expensive to run.
#
# **After this chapter you can** measure in plain PyTorch where tasks conflict, split any layers of a network, compare
# multi-task networks fairly, and do all this on a network of your own in ten lines.
#
# **Before you start.** You should have trained one small network with PyTorch. No knowledge of multi-task learning is
# needed; the [notation page](../notation.md) has the symbols.
#
# **Time to run.** About 3 minutes on two CPU cores at the default size; the
# [execution page](../execution.md) shows the time of the run that you are reading. To run it again:
#
# ```bash
# make book                                         # this chapter, at the default size
# make notebooks                                    # chapters as notebooks, then for example:
# papermill notebooks/recon.ipynb out.ipynb -y '{seeds: [7]}' -p top_k 10
# ```
#
# The folded cell holds the parameters. Four matter most: `top_k`, how many layers are split; `severity`, how strong a
# conflict must be to count; `search_quarters`, how much of the training counts; and `seeds`, how often everything is
# repeated.

# %% tags=["parameters", "hide-input"]
profile = "cpu"  # name of this set of values, noted in the record
run_dir = ""  # folder for result.json and figures; "" writes nothing
device = "auto"  # auto, cpu, cuda or mps; the thesis: one RTX 3090
seeds = [0, 1, 2]  # one repetition each: weights, batches, images; the thesis: 3 runs
dataset = "multi_fashion_mnist"  # or multi_mnist, multi_fashion; the thesis: this one and four more
train_images = 3000  # training images, 0: all; the thesis: 120,000
test_images = 2000  # test images, 0: all; the thesis: 20,000
width = 16  # channels of the first stage; the thesis: 64
epochs = 5  # passes over the training images; authors' code: 120
batch_size = 48  # images per step; authors' code: 256
lr = 0.05  # first learning rate; authors' code: 0.1
severity = -0.1  # severity S: a cosine below it is counted; authors' code: -0.1
top_k = 25  # layers K that become task-specific; authors' code: 25 of 41
search_quarters = 4  # quarters of the training that count; the thesis: 1

# %% tags=["setup"]
from experiments.mtl.parameters import ReconParameters
from experiments.run.parameters import check_parameters

P = check_parameters(globals(), ReconParameters)

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from myst_nb import glue
from torch import nn
from torch.nn import functional as F

import data_prep as data
from experiments.mtl.experiment import MultiTaskExperiment
from experiments.run.plotting import PALETTE, save_figure, use_style
from experiments.run.results import RunRecord
from ktlib.device import choose_device
from ktlib.seeding import deterministic

use_style()
deterministic()
record = RunRecord.start("recon", P, data=data.checksums(P.dataset))
experiment = MultiTaskExperiment(P, choose_device(P.device))
tasks = list(experiment.tasks)
first = P.seeds[0]

# %% [markdown]
# ## The problem: two tasks pull at the same weights

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Six small grey images; each has one object towards the upper left corner and another towards the lower right one, and they overlap. The two answers stand above each.", "classes": "photo"}, "figure": {"name": "fig-recon-images", "caption": "Six training images with the answers of both tasks: that of the first in blue, that of the second in orange. First seed."}}
some = experiment.training_images(experiment.training_rows(first)[:6])
fig, axes = plt.subplots(1, 6, figsize=(5.4, 1.5))
for number, ax in enumerate(axes):
    ax.imshow(some.images[number].permute(1, 2, 0).squeeze().numpy(), cmap="gray")
    for line, (name, task) in enumerate(experiment.tasks.items()):
        answer = task.class_names[int(some.targets[name][number])]
        height, style = 1.24 - 0.2 * line, {"ha": "center", "fontsize": 8.5}
        ax.text(0.5, height, answer, color=PALETTE[line], transform=ax.transAxes, **style)
    ax.set_axis_off()
save_figure(fig, P.run_dir, "images")

# %% [markdown]
# Each image has a garment of Fashion-MNIST {cite}`xiao2017fashion` in one corner and a digit of MNIST
# {cite}`lecun1998mnist` in the other {cite}`lin2019paretomtl`. Each is a task of ten classes, and what is signal for one
# is clutter for the other.
#
# In **multi-task learning** {cite}`caruana1997multitask` one network serves all $T$ tasks. It has a **trunk**
# $\theta_{\mathrm{sh}}$ that they share, here a small ResNet18 {cite}`he2016resnet`, and a **head** $\theta_i$ for each.
# The plain way to train, **joint training**, minimises the sum of their losses:
#
# ```{math}
# :label: eq-recon-joint
# \min_{\theta_{\mathrm{sh}},\theta_1,\dots,\theta_T}\ \sum_{i=1}^T L_i(\theta_{\mathrm{sh}},\theta_i).
# ```
#
# Sharing saves memory and time, and what one task learns may help another. It may also hurt. Here are two made-up tasks
# that share two weights:

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Two panels with arrows from one point, in blue for task 1, in orange for task 2 and in black for their sum. Orange circles are contours of the loss of task 2. In the left panel the black arrow ends inside the dashed circle through the start, in the right panel outside of it.", "classes": "chart"}, "figure": {"name": "fig-recon-angle", "caption": "The step that each task asks for, and the sum of both. Circles: contours of the loss of task 2, lowest at the cross. On the dashed one it is as high as at the start. Left, the tasks agree. Right, they conflict, and the sum raises the loss of task 2. Two quadratic losses, not a measurement."}}
fig, axes = plt.subplots(1, 2, figsize=(5.4, 2.8), sharex=True, sharey=True)
grid = np.stack(np.meshgrid(np.linspace(-2.5, 2.6, 80), np.linspace(-0.9, 3.3, 80)))
for ax, lowest in zip(axes, ([[2.6, 0.2], [0.6, 1.5]], [[3.4, 0.2], [-1.0, 0.8]]), strict=True):
    steps = 0.5 * np.array(lowest)  # minus half the gradient of each loss, from the origin
    steps = np.vstack([steps, steps.sum(axis=0)])
    heights = np.square(grid - np.array(lowest[1])[:, None, None]).sum(axis=0)
    start, end = np.square(lowest[1]).sum(), np.square(steps[2] - lowest[1]).sum()
    cosine = steps[0] @ steps[1] / np.linalg.norm(steps[0]) / np.linalg.norm(steps[1])
    ax.contour(*grid, heights, levels=6, colors=PALETTE[1], alpha=0.25, linewidths=1)
    ax.contour(*grid, heights, levels=[start], colors=PALETTE[1], linestyles="--")
    ax.plot(*lowest[1], "x", color=PALETTE[1], markersize=8)
    for step, color, word in zip(steps, (*PALETTE[:2], "black"), ("1", "2", "sum"), strict=True):
        ax.annotate("", step, (0, 0), arrowprops={"arrowstyle": "->", "color": color, "lw": 2})
        away = np.array([0.0, -0.32 if word == "1" else 0.22])
        ax.text(*(step + away), word, color=color, ha="center", va="center", weight="bold")
    change = "rises" if end > start else "falls"
    ax.set_title(f"cosine {cosine:+.2f}: loss 2 {change}", fontsize=11)
    ax.set(xticks=[], yticks=[], xlabel="weight 1", aspect="equal")
axes[0].set_ylabel("weight 2")
save_figure(fig, P.run_dir, "angle")

# %% [markdown]
# Let $g_i=\nabla_{\theta_{\mathrm{sh}}}L_i$ be the gradient of task $i$ on the trunk. Two tasks **conflict** if
#
# ```{math}
# :label: eq-recon-conflict
# \cos_{ij}=\frac{\langle g_i,g_j\rangle}{\lVert g_i\rVert\,\lVert g_j\rVert}<0 .
# ```
#
# A small step $\alpha$ along $g_1+g_2$ changes the loss of task 2 by about
# $-\alpha\,(\langle g_1,g_2\rangle+\lVert g_2\rVert^2)$. If the inner product is negative, that is less progress than alone;
# if $g_1$ is also long enough, it is a step back.
#
# ## Pilot study: how often do they conflict?
#
# The same cosine can be taken on each *layer* $k$, with the part $g_i^{(k)}$ of the gradient that belongs to it. A layer is
# whatever has weights of its own: a convolution, a batch norm, a linear map. In plain PyTorch:


# %%
def layer_cosines(losses, layers):
    """Layer -> cosine between the gradients of two tasks on it."""
    cosines = {}
    for name, weights in layers.items():
        gradients = []
        for loss in losses.values():
            parts = torch.autograd.grad(loss, weights, retain_graph=True)
            gradients.append(torch.cat([part.flatten() for part in parts]))
        one, other = gradients
        cosines[name] = F.cosine_similarity(one, other, dim=0).item()
    return cosines


# %% [markdown]
# This is clear and slow: a backward pass for each layer and task. `ConflictMeter` of `ktlib` makes one for each task, and
# hands the gradients on to the update. Does it compute the same? One batch, an untrained network, and double precision so
# that rounding is no excuse:

# %%
from ktlib.mtl import ConflictMeter

images, targets = experiment.batch(
    experiment.train_data, experiment.training_rows(first)[: P.batch_size]
)

# %%
network = experiment.new_network(first).to("cpu", torch.float64)
outputs = network(images.cpu().double())
losses = {task: F.cross_entropy(outputs[task], targets[task].cpu()) for task in tasks}
layers = network.shared_layers()
mine = layer_cosines(losses, layers)

# %%
meter = ConflictMeter(layers, task_pairs=True)
meter.observe(losses, task_parameters=network.own_parameters())
theirs = {row["layer"]: row["cosines"] for row in meter.pair_rows(0.0)}
theirs = {name: theirs.get(name, 0.0) for name in mine}  # a gradient of zeros has no cosine
torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9)
print("lowest:", {name: round(mine[name], 2) for name in sorted(mine, key=mine.get)[:3]})

# %% [markdown]
# The assertion holds, so it does. Now train one shared network per seed on the sum of the losses, with a meter that watches
# every step.

# %%
from functools import partial

from experiments.run.parallel import parallel_map

in_parallel = partial(parallel_map, device=experiment.device)


# %%
def train(case):
    """Joint training with these layers split, and the scores on test images."""
    layers, seed = case
    run = experiment.train("joint", seed, layers)
    return run, experiment.scores(run.network)


# %%
trained = in_parallel(train, [((), seed) for seed in P.seeds], "shared networks")
searched = {seed: trained[(), seed][0] for seed in P.seeds}


# %%
def share_below(run, severity):
    """Percent of the steps with a cosine below it, over all shared layers together."""
    counts = run.conflicts()
    return 100 * counts.shared_score(severity) / counts.observations


# %%
for name, severity in (("any", 0.0), ("below", P.severity)):
    shares = [share_below(run, severity) for run in searched.values()]
    glue(f"recon-{name}", float(np.mean(shares)), display=False)
glue("recon-severity", P.severity, display=False)
counts = searched[first].conflicts(P.search_quarters)
ranking = experiment.ranking(searched[first])

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Three histograms above each other of the cosine between the gradients of the two tasks: over the whole trunk, on the layer with most conflicts and on the layer with fewest. The part left of the severity is filled.", "classes": "chart"}, "figure": {"name": "fig-recon-cosines", "caption": "Cosine between the gradients of the two tasks, one value per step: over the whole trunk, on the layer with most conflicts, and on the layer with fewest. Filled: below the severity. Training images, first seed, this run."}}
WORDS = {r"layer(\d)\.0\.": r"stage \1, block 1, ", r"layer(\d)\.1\.": r"stage \1, block 2, ",
         r"downsample\.0": "shortcut conv", r"downsample\.1": "shortcut norm", "^bn1": "stem norm",
         "^conv1": "stem conv", "bn": "norm ", r"conv(\d)": r"conv \1", "fc": "linear"}  # fmt: skip
readable = pd.Series(list(layers), index=list(layers))
for old, new in WORDS.items():
    readable = readable.str.replace(old, new, regex=True)
ends = {"most": ranking[0], "fewest": ranking[-1]}
rows = {"whole trunk": None} | {f"{end}: {readable[name]}": name for end, name in ends.items()}
edges = np.array(counts.bins)[::5]
fig, axes = plt.subplots(len(rows), 1, figsize=(5.4, 4.2), sharex=True)
for ax, (word, layer) in zip(axes, rows.items(), strict=True):
    heights = np.add.reduceat(counts.histogram(layer), range(0, len(counts.bins) - 1, 5))
    heights = 100 * heights / max(1, heights.sum())
    below = edges[1:] <= P.severity + 1e-9
    ax.stairs(heights, edges, color=PALETTE[0], linewidth=1.5)
    ax.stairs(np.where(below, heights, 0), edges, fill=True, color=PALETTE[1], alpha=0.6)
    ax.axvline(0, color="black", linewidth=1)
    ax.set_title(word, loc="left", fontsize=10)
axes[1].set_ylabel("share of the steps (%)")
axes[-1].set(xlabel="cosine", xlim=(-1, 1), xticks=(-1, -0.5, 0, 0.5, 1))
save_figure(fig, P.run_dir, "cosines")

# %% [markdown]
# Over the whole trunk, the cosine is negative in {glue:text}`recon-any:.0f` % of the steps and below
# {glue:text}`recon-severity:g` in {glue:text}`recon-below:.0f` %. Two things follow.
#
# - **Close to zero, the sign is chance.** Gradients of very many weights that have nothing to do with each other are nearly
#   at right angles. So a conflict is counted only below a **severity** $S<0$.
# - **Layers differ.** An average over the trunk hides where the conflict is.
#
# A well-known answer is **gradient surgery**: make another update of the gradients. PCGrad {cite}`yu2020pcgrad`, for
# example, removes from each gradient the part that points against the other. That changes the update, and not the
# gradients: at the next step the tasks ask for opposite things again. What it brings is in
# {ref}`the evidence <sec-recon-methods>`. Recon changes the network instead.
#
# ## The method, written out
#
# ### Step one: count
#
# The **score** of layer $k$ counts the pairs of tasks in conflict, summed over the steps (thesis, 4.3):
#
# ```{math}
# :label: eq-recon-score
# s^{(k)}(S)=\sum_{\text{steps}}\ \bigl|\{\,i<j:\ \cos_{ij}^{(k)}<S\,\}\bigr| .
# ```
#
# The meters have counted already. The $K$ layers with the highest scores are those to split; each seed searches for
# itself. The thesis counts in the first quarter of the training. This training is so short that all of it counts
# (`search_quarters`): a ranking by a few dozen steps is mostly noise.

# %%
chosen = {seed: tuple(experiment.recon_layers(run)) for seed, run in searched.items()}
print(f"{P.top_k} of {len(layers)} layers; first seed:", ", ".join(chosen[first][:5]), "...")

# %%
scores = [
    {"seed": seed, "quarter": number, "layer": name, "score": score, "steps": meter.observations}
    for seed, run in searched.items()
    for number, meter in enumerate(run.meters, start=1)
    for name, score in meter.scores(P.severity).items()
]
record.table("layer_scores", scores)

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "A heat map with a row for each of the layers, from the input at the top to the output at the bottom, and a column for each quarter of the training and for each seed. Dots mark the layers that are split.", "classes": "photo"}, "figure": {"name": "fig-recon-search", "caption": "Share of the steps in which the tasks conflict on a layer, below the severity. Left: the four quarters of the training, first seed. Right: the part of the training that counts, for each seed; dots are the layers that become task-specific. From input (top) to output. Batch norms in orange. This run."}}
table = pd.DataFrame(scores)
panels = [(table[table["seed"] == first], "quarter")]
panels += [(table[table["quarter"] <= P.search_quarters], "seed")]
most = (100 * table["score"] / table["steps"]).max()
fig, axes = plt.subplots(1, 2, figsize=(5.4, 7.4), sharey=True, width_ratios=[4, 1 + len(P.seeds)])
for ax, (part, column) in zip(axes, panels, strict=True):
    sums = part.pivot_table(["score", "steps"], "layer", column, aggfunc="sum").loc[list(layers)]
    share = 100 * sums["score"] / sums["steps"]
    image = ax.imshow(share, aspect="auto", cmap="cividis", vmin=0, vmax=max(1, most))
    ax.set_xticks(range(share.shape[1]), share.columns)
    ax.set_xlabel(column)
    ax.grid(visible=False)
for place, seed in enumerate(sorted(P.seeds)):
    dots = [list(layers).index(name) for name in chosen[seed]]
    style = {"color": "white", "markeredgecolor": "black", "markersize": 4}
    axes[1].plot([place] * len(dots), dots, "o", **style)
axes[0].set_yticks(range(len(layers)), readable, fontsize=8)
for label in axes[0].get_yticklabels():
    label.set_color(PALETTE[1] if "norm" in label.get_text() else "black")
fig.colorbar(image, ax=axes, label="conflicts (% of the steps)", location="top", aspect=40)
save_figure(fig, P.run_dir, "search")

# %%
modules = dict(searched[first].network.trunk.named_modules())
norms = [isinstance(modules[name], nn.BatchNorm2d) for name in chosen[first]]
sizes = {name: sum(weight.numel() for weight in own) for name, own in layers.items()}
held = 100 * sum(sizes[name] for name in chosen[first]) / sum(sizes.values())
glue("recon-norms", f"{sum(norms)} of {len(norms)}", display=False)
glue("recon-held", float(held), display=False)

# %% [markdown]
# In the first seed {glue:text}`recon-norms` of the chosen layers are batch norms, and all chosen layers together hold
# {glue:text}`recon-held:.1f` % of the weights of the trunk. Compare the columns: do the same rows light up in every quarter
# and for every seed? Of two sets of 25 layers out of 41, more than half are common by chance
# ({ref}`exercise <ex-recon-chance>`).
#
# ### Step two: a copy for each task
#
# Every task gets a trunk. The chosen layers are copies, all others are the *same objects* in every trunk. For a network that is
# a sequence of layers:

# %%
import copy
from collections import OrderedDict


def split_by_hand(trunk, names, tasks):
    """Task -> its trunk: copies of the named layers, all others shared."""
    return {
        task: nn.Sequential(
            OrderedDict(
                (name, copy.deepcopy(layer) if name in names else layer)
                for name, layer in trunk.named_children()
            )
        )
        for task in tasks
    }


# %% [markdown]
# `split` of `ktlib` does this for any network, such as one with skip connections, and computes what lies in front of the first
# split layer once for all tasks. Outputs and gradients must be the same:

# %%
from ktlib.mtl import split

parts = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()]
trunk, batch = nn.Sequential(*parts).double(), torch.rand(8, 1, 6, 6).double()
by_hand, by_ktlib = split_by_hand(trunk, ["3"], tasks), split(trunk, ["3"], tasks)
outputs = {task: own(batch) for task, own in by_hand.items()}
torch.testing.assert_close(outputs, by_ktlib(batch), rtol=0, atol=1e-12)

# %%
for found in (outputs, by_ktlib(batch)):
    sum(place * out.square().sum() for place, out in enumerate(found.values(), 1)).backward()
for task in tasks:
    both = zip(by_hand[task].parameters(), by_ktlib.trunk_of(task).parameters(), strict=True)
    for my_weight, their_weight in both:
        torch.testing.assert_close(my_weight.grad, their_weight.grad, rtol=1e-9, atol=1e-12)

# %% [markdown]
# One detail is easy to miss. In training, a batch norm that *stays shared* behind the split normalises the features of each
# task separately. The published method keeps one set of running statistics for all of them, and when the network is tested,
# this mixture fits no task. Here, every task has running statistics of its own (`split(..., own_statistics=True)`); the
# weights stay shared. {ref}`The evidence <sec-recon-statistics>` measures what difference that makes.
#
# ### Step three: train again, from the start
#
# Three more trainings, from the same initial weights and on the same batches:
#
# - **Recon**: each task has its own copy of the chosen layers;
# - **random layers**: of as many layers, chosen without looking;
# - **single tasks**: a whole network for each task. It costs most, and is what sharing is measured against.

# %%
from experiments.mtl.controls import control_layers
from ktlib.seeding import generator


def random_layers(seed):
    """As many layers as Recon chose."""
    rng = generator(seed, "control", "random_layers")
    return tuple(control_layers("random_layers", layers, chosen[seed], rng))


# %%
def train_single(seed):
    """A network for each task alone, and their scores on test images."""
    runs = experiment.train_single(seed)
    return runs, experiment.single_scores(runs)


# %%
arms = {"shared": dict.fromkeys(P.seeds, ()), "recon": chosen}
arms["random_layers"] = {seed: random_layers(seed) for seed in P.seeds}
cases = [(own, seed) for arm in arms.values() for seed, own in arm.items()]
trained |= in_parallel(train, [case for case in cases if case not in trained], "split networks")
alone = in_parallel(train_single, P.seeds, "single tasks")

# %%
tested = {(arm, seed): trained[own[seed], seed][1] for arm, own in arms.items() for seed in own}
tested |= {("single", seed): found for seed, (_, found) in alone.items()}

# %%
results = [
    {"layers": arm, "seed": seed, "task": task, "accuracy": metrics["accuracy"]}
    for (arm, seed), found in tested.items()
    for task, metrics in found.items()
]
record.table("results", results)

# %% [markdown]
# The **relative improvement** over single tasks is, with the accuracy $M_i$ of a method and $S_i$ of a network for task $i$ alone,
#
# ```{math}
# :label: eq-recon-dm
# \Delta m=\frac1T\sum_{i=1}^T\frac{M_i-S_i}{S_i}.
# ```

# %%
accuracy = record.frame("results").pivot_table("accuracy", ["seed", "task"], "layers", sort=False)
single = accuracy["single"].where(accuracy["single"] > 0)
change = 100 * accuracy.sub(single, axis=0).div(single, axis=0)  # (M - S) / S, in percent
gain = change.groupby("seed").mean()  # over the tasks: the relative improvement
accuracy.round(1)

# %%
from ktlib.mtl import forward_flops, parameter_megabytes


def cost(*networks):
    """Size, and operations for one image, of the networks that serve all tasks."""
    operations = sum(forward_flops(network, images) for network in networks)
    size = sum(map(parameter_megabytes, networks))
    return {"size (MB)": size, "MFLOPs per image": operations / len(images) / 1e6}


# %%
costs = {arm: cost(trained[own[first], first][0].network) for arm, own in arms.items()}
costs["single"] = cost(*(run.network for run in alone[first][0].values()))
costs = pd.DataFrame(costs).T
costs.round(2)

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "One row per network: shared, random layers, Recon. Markers, a colour for each task and one for each seed, show the change of the accuracy against a network for this task alone; a bar marks the mean over both tasks.", "classes": "chart"}, "figure": {"name": "fig-recon-gain", "caption": "Change of the accuracy against a network for each task alone, in percent of it. One marker a seed and task; the bars are the means over both, the relative improvement. Below the names: size, and operations of a forward pass, as multiples of the shared network; first seed. Test images, this run."}}
words = {"shared": "shared", "random_layers": "random layers", "recon": "Recon"}
times = costs / costs.loc["shared"]
fig, ax = plt.subplots(figsize=(5.4, 3.4))
for place, arm in enumerate(words):
    for line, task in enumerate(tasks):
        values = change[arm].xs(task, level="task")
        label = {"item": "garment"}.get(task, task.replace("_", " ")) if not place else None
        height = [place + 0.24 * line - 0.12] * len(values)
        ax.plot(values, height, ("o", "s")[line], color=PALETTE[line], alpha=0.6, label=label)
    ax.plot(gain[arm].mean(), place, "|", color="black", markersize=22, markeredgewidth=2.5)
ax.axvline(0, color="black", linewidth=1)
pairs = times.loc[[*words]].itertuples(index=False, name=None)
factors = [f"{size:.2f} x size\n{work:.2f} x operations" for size, work in pairs]
names = [f"{word}\n{factor}" for word, factor in zip(words.values(), factors, strict=True)]
ax.set_yticks(range(len(words)), names)
ax.set(ylim=(len(words) - 0.5, -0.5), xlabel="change against single tasks (%)")
fig.legend(loc="outside upper right", ncols=2)
save_figure(fig, P.run_dir, "gain")

# %% [markdown]
# The fair comparison is *within* seeds. `told` takes the mean of the differences of $\Delta m$ with its 95 % interval,
# and chooses the words: the interval lies above zero, holds zero, or lies below.

# %%
from experiments.run.paired import PairedDifference


def told(one, other, words):
    """The words for better, unclear or worse, and the numbers they follow from."""
    found = PairedDifference.of(gain[one] - gain[other])
    return f"{words[(found.low > 0) - (found.high < 0)]}: {found}."


# %%
pays = {1: "Recon is ahead", 0: "Undecided", -1: "Recon is behind"}
choice = {1: "The choice pays", 0: "Undecided", -1: "Random layers do better"}
glue("recon-split", told("recon", "shared", pays), display=False)
glue("recon-choice", told("recon", "random_layers", choice), display=False)
glue("recon-single", told("recon", "single", pays), display=False)

# %%
for arm, own in arms.items():
    left = [share_below(trained[own[seed], seed][0], P.severity) for seed in P.seeds]
    glue(f"recon-left-{arm}", float(np.mean(left)), display=False)

# %% [markdown]
# In this run, in points of $\Delta m$:
#
# - Recon against the shared network. {glue:text}`recon-split`
# - Recon against as many random layers. {glue:text}`recon-choice`
# - Recon against a network for each task. {glue:text}`recon-single`
#
# The second line is the one to watch: only it says what the *search* was worth, at the same number of layers. Keep the sizes
# in view: small layers make a split network little larger than the shared one, and random layers are not small. The long run
# also has random layers with as many weights as Recon's. The operations tell something else: everything behind the first split
# layer runs once for each task, and an early one makes nearly two networks of it.
#
# Did the conflicts go away? On the layers that are still shared, the cosine lies below {glue:text}`recon-severity:g` in
# {glue:text}`recon-left-shared:.1f` % of the steps of the shared network, {glue:text}`recon-left-recon:.1f` % with Recon, and
# {glue:text}`recon-left-random_layers:.1f` % with random layers. A smaller number is no success in itself: with *all* layers
# split there is no conflict left, as nothing is shared.
#
# ## The long run
#
# A few seeds at one learning rate are a demonstration. The long run has more seeds, trains longer, and every method has the
# settings that a search chose for it. Its record is kept with the project; what follows is computed from it.

# %%
from experiments.mtl import figures
from experiments.mtl.claims import AS_PUBLISHED, CENTRAL, ON_RANDOM, claims
from experiments.mtl.derived import frames
from experiments.run.results import committed_record

# %%
full = committed_record("recon_evidence", "full")
print(f"The long run: {len(full.seeds)} seeds" if full else "There is no long record yet.")
tables = frames(full) if full else {}
found = {claim.claim: claim for claim in claims(full)} if full else {}

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "One row per choice of layers: all shared, Recon, random layers, random parameters. Points with intervals show the gain over single tasks, once with running statistics of each task and once with one set for all tasks.", "classes": "chart"}, "figure": {"name": "fig-recon-record", "caption": "Long run: relative improvement over a network for each task alone, for each choice of the layers that are split. Points are seeds; mean and 95 % interval over them. Networks with split layers are tested twice: with running statistics of each task, and with one set for all tasks, as published. The weights are the same."}}
if full:
    save_figure(figures.long_figure(tables), P.run_dir, "long")

# %% [markdown]
# Zero is a network for each task. First compare the top row with the others: that is what *splitting* is worth. Then compare Recon
# with the random choices, once in each colour: that is what the *choice* is worth, and how much of it is a matter of running
# statistics.
#
# ### When does it pay, and when not?

# %% tags=["hide-input", "table"]
from IPython.display import Markdown

YES_OR_NO = {"reproduced": "Yes", "not reproduced": "No, the opposite", "undecided": "Unclear"}


def answer(claim):
    """What the long run says to a claim: the word for its verdict, and the numbers."""
    if not full:
        return "The long run is still being computed; its result will stand here."
    said = found[claim]
    acted = f" There {said.mechanism}." if said.mechanism else ""
    return f"{YES_OR_NO.get(said.verdict, said.verdict.capitalize())}: {said.found}.{acted}"


glue("recon-long", answer(CENTRAL), display=False)
glue("recon-long-random", answer(ON_RANDOM), display=False)
questions = {
    "Do the tasks harm each other: is the shared network worse than single tasks?":
        "With joint training a network ends below single-task training",
    "Does Recon beat the shared network?": CENTRAL,
    "Are its layers better than as many random ones?": ON_RANDOM,
    "Are they, with one set of running statistics for all tasks, as published?":
        ON_RANDOM + AS_PUBLISHED,
    "Do random layers leave more conflicts?":
        "Random layers leave more severe conflicts than Recon's",
    "Does Recon help every method, gradient surgery too?":
        "Recon improves every method that the thesis trains with it",
}  # fmt: skip
Markdown("\n".join(f"- **{question}** {answer(claim)}" for question, claim in questions.items()))

# %% [markdown]
# Each answer follows from the record by a fixed rule. *Not tested* means that the mechanism did not act, such as a search that
# counted no conflict, or that there is no interval. The rules, all other methods and every claim of the thesis are in
# {ref}`the evidence <chap-recon-evidence>`.
#
# ## On a network of your own
#
# The tool knows nothing of this chapter's network. Any module will do, and any losses. Here is a tiny model with two heads:

# %%
torch.manual_seed(first)
hidden = [nn.Linear(20, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU()]
trunk, loss = nn.Sequential(*hidden), nn.CrossEntropyLoss()
heads = nn.ModuleDict({task: nn.Linear(32, 3) for task in ("left", "right")})
optimizer = torch.optim.SGD([*trunk.parameters(), *heads.parameters()], lr=0.1)

# %%
batches = []
for _ in range(100):  # each task has to find the largest of three columns
    rows = torch.randn(64, 20)
    batches.append((rows, {"left": rows[:, :3].argmax(1), "right": rows[:, 2:5].argmax(1)}))

# %% [markdown]
# These lines are the whole of Recon. What is split is a copy from before the training, as the new network is trained from
# the start:

# %%
from ktlib.mtl import aggregator, apply_gradients

untrained, meter = copy.deepcopy(trunk), ConflictMeter(trunk)
for images, labels in batches:
    optimizer.zero_grad()
    features = trunk(images)
    losses = {task: loss(heads[task](features), labels[task]) for task in labels}
    own = {task: heads[task].parameters() for task in losses}
    gradients = meter.observe(losses, task_parameters=own)
    apply_gradients(trunk, gradients, aggregator("joint"))
    optimizer.step()
network = split(untrained, meter.ranking(severity=-0.1)[:1], list(heads), example=images)

# %%
print("split:", *network.layers, "- scores:", meter.scores(-0.1))
{task: tuple(features.shape) for task, features in network(images).items()}

# %% [markdown]
# Put the heads on `network(images)[task]`, and train as before. `aggregator("pcgrad")`, or any other that `aggregators()` names, is
# gradient surgery in the same loop.
#
# ## Where it stops: what is proved, and what is not
#
# ```{prf:theorem} One step of Recon, thesis, Theorem 4.1
# :label: thm-recon
# Let $\sum_iw_i=1$, let $P$ be the set of split layers whose copies start equal, and let $\cos_{ij}^{(k)}\lVert g_i^{(k)}\rVert<\lVert g_j^{(k)}\rVert$
# for all tasks $i\ne j$ and all $k\in P$. Then for a small enough step the summed loss after a step of the split network is smaller than after
# a step of the shared one.
# ```
#
# In words: for one small step, copies beat sharing.
#
# - **Not proved: that the layers with most conflicts are the right ones.** {prf:ref}`thm-recon` holds for *any* set that satisfies
#   its condition. Conflicting layers always do; many layers without conflict do as well. With the *sum* of the losses, as
#   everybody trains in practice, there is a version that does single out conflicts: {ref}`proof-recon` proves both and measures them.
# - **Not proved: anything about many steps, or about test images.** More free weights make one step at least as good; the rest is experiment.
# - **The count depends on its threshold, and on the batch.** Smaller batches have noisier gradients and cosines nearer to zero.
# - **One data set, one small network,** and a training that is short beside the thesis's. The baseline is plain joint training with a
#   learning rate of its own, which is hard to beat {cite}`kurin2022defense,xin2022current`.
# - **The released code is not the printed text.** It loses skip connections for all tasks but the first where a split begins inside a block without a projection
#   ({ref}`measured <sec-recon-skip>`). This book follows the text.
#
# ## Exercises
#
# ```{exercise}
# :label: ex-recon-surgery
# *On paper.* Two tasks have the gradients $g_1=(2,0)$ and $g_2=(-1,1)$. What is the update of joint training, and what does PCGrad
# make of them: each gradient loses its part along the other one, and the two results are added? MGDA takes the shortest vector
# $w_1g_1+w_2g_2$ with $w_1,w_2\ge0$ and $w_1+w_2=1$. Find $w_1$. Check with `aggregator`.
# ```
#
# ```{solution-start} ex-recon-surgery
# :class: dropdown
# ```
#
# The inner product is $-2$: they conflict. The sum is $(1,1)$. PCGrad makes $g_1+\frac22g_2=(1,1)$ of the first and
# $g_2+\frac24g_1=(0,1)$ of the second, together $(1,2)$: at less than 90° to both gradients.
# For MGDA, $\lVert w_1g_1+(1-w_1)g_2\rVert^2$ is lowest at
# $w_1=(\lVert g_2\rVert^2-\langle g_1,g_2\rangle)/\lVert g_1-g_2\rVert^2=\frac4{10}$. The code multiplies the weights of MGDA by the number of
# tasks, as all methods here are on the scale of the sum.

# %%
pair = torch.tensor([[2.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
for name in ("joint", "pcgrad", "mgda"):
    print(f"{name:>6}: update {[round(x, 3) for x in aggregator(name)(pair).tolist()]}")

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-recon-cost
# *On paper.* A trunk has three $3\times3$ convolutions without bias, from 1 to 8, from 8 to 16 and from 16 to 16 channels, which keep the
# size of the image, $8\times8$. There are three tasks. How many weights does the network have, and how many operations (a
# multiplication and an addition count as two) does an image need, if the second convolution is split? If the third one is?
# ```
#
# ```{solution-start} ex-recon-cost
# :class: dropdown
# ```
#
# The convolutions have $72$, $1152$ and $2304$ weights, together $3528$. A split layer adds two times its size: $5832$ weights with the second
# one split, $8136$ with the third. Each weight is used at 64 places, $2\cdot64$ operations. What lies in front of the split
# layer runs once, the split layer *and everything behind it* three times: $128\,(72+3\cdot3456)=1\,336\,320$ for the second and
# $128\,(1224+3\cdot2304)=1\,041\,408$ for the third. The earlier layer is the cheaper one to store and the more expensive one to run.

# %%
channels = ((1, 8), (8, 16), (16, 16))
three = nn.Sequential(*(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in channels))
for name in ("1", "2"):
    network, blank = split(three, [name], ["a", "b", "c"]), torch.zeros(1, 1, 8, 8)
    count = sum(weight.numel() for weight in network.parameters())
    print(f"split {name}: {count} weights, {forward_flops(network, blank):,} operations")

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-recon-chance
# *On paper.* Of $n=41$ layers two searches choose 25 each, independently and at random. How many do they share on average? And what is
# the share of the 25?
# ```
#
# ````{solution} ex-recon-chance
# :class: dropdown
# Each of the 25 layers of the first search is in the second one with probability $25/41$: $25\cdot25/41\approx15.2$ layers, or 61 %. The
# overlap of two seeds has to be read against this number; `top_overlap` of `ktlib.mtl` computes it.
# ````
#
# ```{exercise}
# :label: ex-recon-severity
# *Change a parameter.* With `-p severity 0.0` every negative cosine counts. What becomes of the scores, and of the ranking? Predict it.
# The meter counts several severities in one pass, so no new training is needed to see.
# ```
#
# ```{solution-start} ex-recon-severity
# :class: dropdown
# ```

# %%
from experiments.mtl.experiment import conflict_ranking
from ktlib.mtl import ranking_distance, top_overlap

for severity in (P.severity, 0.0):
    share = pd.Series(counts.scores(severity)) / pd.Series(counts.pairs)
    print(f"S = {severity:5}: a layer counts {share.min():.0%} to {share.max():.0%} of the steps")

# %%
strict, loose = (conflict_ranking(counts, severity) for severity in (P.severity, 0.0))
print(f"{ranking_distance(strict, loose):.1f} places apart on average, ", end="")
print(f"{top_overlap(strict, loose, P.top_k):.0%} of the first {P.top_k} in common")

# %% [markdown]
# All scores move towards one half, as a cosine that is close to zero is negative by chance half of the time. What separates two layers is more
# often chance. If $S$ is too far below zero, few conflicts are left to count, and chance has its say again.
#
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-recon-all
# *Change a parameter.* Let `top_k` grow, with `-p top_k 40` at the end. What happens to the size, to the operations, to the conflicts on shared layers, and to
# the accuracy? Which of the four is a reason to do it?
# ```
#
# ```{solution-start} ex-recon-all
# :class: dropdown
# ```

# %%
images, _ = experiment.batch(experiment.train_data, experiment.training_rows(first)[:4])
rows = []
for count in (0, P.top_k, len(ranking)):
    trunk = experiment.new_trunk().to(images.device)
    network = split(trunk, ranking[:count], tasks, example=images)
    rows.append({"K": count} | cost(network) | {"shared layers": len(network.shared_layers())})
pd.DataFrame(rows).style.hide(axis="index").format(precision=2)

# %% [markdown]
# With all layers split every task has a network of its own: the accuracy of single tasks, and their cost. The conflicts fall to none, as every split
# brings about. What counts is accuracy at a given cost, and against as many random layers.
#
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-recon-norms
# *Change a parameter.* With `-p batch_norm False -p top_k 10` batch norms do not count as layers. Which layers are chosen now, and how much larger
# is the network than with ten batch norms?
# ```
#
# ````{solution} ex-recon-norms
# :class: dropdown
# The convolutions with the highest scores: the black names in {numref}`fig-recon-search`. A convolution of the last stage holds more weights than all batch norms
# together, so read the table of sizes below {eq}`eq-recon-dm` before you like the accuracy.
# ````
#
# ```{exercise}
# :label: ex-recon-angles
# *Write code.* Test `ConflictMeter` where you know the answer: a trunk of two layers and three tasks whose gradients have the directions 0°, 60° and −60° on
# the first layer, and 0°, 100° and 200° on the second, all of length 1. Which scores do you expect at $S=0$, $-0.4$ and $-0.6$, on each layer and on both
# together? Hint: the gradient of $\langle w,x\rangle$ with respect to $w$ is $x$.
# ```
#
# ```{solution-start} ex-recon-angles
# :class: dropdown
# ```

# %%
angles = {"first": (0, 60, -60), "second": (0, 100, 200)}
both = nn.ModuleDict({name: nn.Linear(2, 1, bias=False) for name in angles})
turn = {name: torch.deg2rad(torch.tensor(angles[name]).float()) for name in angles}
given = {name: torch.stack([a.cos(), a.sin()], dim=1) for name, a in turn.items()}
losses = {f"task {i}": sum(both[n](x[i]).sum() for n, x in given.items()) for i in range(3)}

# %%
meter = ConflictMeter(both, severities=(0.0, -0.4, -0.6))
meter.observe(losses)
for severity in meter.severities:
    print(severity, meter.scores(severity), "together", meter.shared_score(severity))

# %% [markdown]
# On the first layer the cosines are 0.5, 0.5 and −0.5, on the second −0.17, −0.94 and −0.17. On both together the lengths are $\sqrt2$ and the cosines are
# the means: 0.16, −0.22 and −0.34. Below $-0.4$ there is no pair *together*, although there is one on each layer: a gradient over the whole trunk averages over
# its layers, which is why Recon looks at each of them.
#
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-recon-early
# *Write code.* For which layers is it cheap to split one? Split each eighth layer alone, and list what it adds to the size and the factor by which
# the operations grow. What does that say about a search that finds mostly early batch norms?
# ```
#
# ```{solution-start} ex-recon-early
# :class: dropdown
# ```

# %%
trunk = experiment.new_trunk().to(images.device)
whole, rows = cost(trunk), []
for name in list(layers)[::8]:
    own = cost(split(trunk, [name], tasks, example=images))
    times = own["MFLOPs per image"] / whole["MFLOPs per image"]
    added = own["size (MB)"] - whole["size (MB)"]
    rows.append({"layer": name, "MB added": added, "times the operations": times})
pd.DataFrame(rows).style.hide(axis="index").format(precision=3)

# %% [markdown]
# Early layers have few weights, and almost the whole network lies behind them: splitting one adds next to nothing to the size and nearly a network to the
# operations. Late layers are the other way round. The thesis reports the size alone, and the size hides that.
#
# ```{solution-end}
# ```
#
# ## Summary
#
# - Tasks conflict where their gradients have a negative inner product. Gradient surgery changes the update, Recon the network.
# - The search is a count of cosines per layer, the split a copy of some layers for each task: a dozen lines each.
# - What the split is worth and what the choice is worth are two comparisons. Both, in this run and in the long one, stand above with
#   their intervals.
# - Few weights are added, and many operations: an early split makes the rest of the network run once for each task.
#
# ## Further reading
#
# {ref}`The evidence <chap-recon-evidence>` has all methods, every setting, and every claim; {ref}`proof-recon` is the proof. The paper
# {cite}`shi2023recon`, the thesis {cite}`shi2025thesis`, a survey of multi-task learning for dense prediction
# {cite}`vandenhende2021survey`, and on which tasks should be trained together at all {cite}`standley2020tasks,fifty2021tag`.

# %%
record.table("costs", costs.rename_axis("layers").reset_index().to_dict("records"))
path = record.save(P.run_dir)
print(f"Record with {len(record.tables)} tables; saved: {path is not None}")
