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
#     uses: [cpeft, ktlib/fcl, ktlib/mtl, ktlib/ila, models/images, models/resnet, models/vit, models/weights]
#     data: [pairs]
#     data_parameter: dataset
# ---

# %% [markdown]
# (chap-cpeft)=
# # One pre-trained model, many tasks: InfLoRA and L2C
#
# **The question.** A model was trained on many images once. Then tasks arrive one after the other, each with new classes, and the images of the last
# task are gone when the next one comes. Small adapters (LoRA) are tuned in the place of the model itself. *Which parameters may change, and how far*, so that the
# model learns the new classes and keeps the old ones?
#
# The three parts of this book meet here. F2M keeps changes small, in a flat region. Recon gives tasks their own copies where they conflict. ILA asks which layers need an
# update at all. This chapter looks at two systems that were built on such ideas: **InfLoRA** {cite}`liang2024inflora` lets one model
# change only in directions that the old tasks do not use, and **L2C** {cite}`zhang2025l2c` gives each task an expert and learns whom to ask.
#
# After this chapter you can
#
# - measure what a sequence of tasks leaves behind: forgetting, transfer, and images sent to the wrong task,
# - choose the directions of a low-rank update so that it cannot disturb old tasks, and say what that costs,
# - build an ensemble of experts with a selector, and move it between isolation and cooperation,
# - ask a pre-trained model of your own where its tasks get into each other's way.
#
# **Before you start.** You should have met LoRA ({ref}`chap-ila` explains it) and the singular value decomposition. The [notation page](../notation.md) has
# the symbols, and {ref}`proof-cpeft` the theory.
#
# **Time to run.** About 5 minutes on two CPU cores at the default size; the [execution page](../execution.md) shows the time of the run that
# you are reading. To run it again: `make book`, or as a notebook
#
# ```bash
# make notebooks
# papermill notebooks/continual_peft.ipynb out.ipynb -y '{seeds: [7], tasks: 10, tops: [1, 10]}'
# ```

# %% tags=["parameters"]
profile = "cpu"  # name of this set of values, noted in the record
run_dir = ""  # folder for result.json and figures; "" writes nothing
device = "auto"  # auto, cpu, cuda or mps
precision = "auto"  # auto, float32 or bfloat16: of the pre-training
seeds = [0, 1, 2]  # one repetition each: order of the classes, images, adapters; InfLoRA: 5
dataset = "pairs"  # pairs, digits, cifar100, imagenet_r or domainnet; InfLoRA: the last three
model = "small"  # small (pre-trained below) or vit_b16; InfLoRA and L2C: ViT-B/16
weights = ""  # pre-trained weights of vit_b16; InfLoRA: ImageNet-21k
base_classes = 60  # classes of the pre-training; 0 with weights
base_images = 60  # images per base class; 0: all
tasks = 5  # tasks that the other classes are divided into; InfLoRA: 5, 10 and 20
task_images = 40  # training images per class of a task; CIFAR-100: 500
test_images = 20  # test images per class; CIFAR-100: 100
class_seed = 1997  # seed of the choice of base classes
patch_size = 9  # side of a patch in pixels; ViT-B/16: 16
width = 96  # features of a token; ViT-B/16: 768
blocks = 4  # blocks; ViT-B/16: 12
heads = 4  # attention heads; ViT-B/16: 12
pretraining_epochs = 12  # passes over the base classes
pretraining_lr = 0.001  # highest learning rate of the pre-training, AdamW
sam_radius = 0.05  # step of SAM for the flat pre-training; 0: none
layers = "key_value"  # key_value, qkv or feed_forward; InfLoRA: key_value, L2C: qkv
rank = 8  # rank of LoRA; InfLoRA: 10
epochs = 6  # passes over each task; InfLoRA: 20 or 50
batch_size = 64  # images per step; InfLoRA: 128
methods = ["sequential", "inflora", "l2c", "oracle", "ncm"]  # methods that are compared
sequential_lr = 0.01  # highest learning rate of sequential LoRA, Adam
inflora_lr = 0.01  # that of InfLoRA; InfLoRA: 0.0005
expert_lr = 0.01  # that of experts: L2C's, and those of the oracle
joint_lr = 0.01  # that of joint training
selector_lr = 0.00001  # that of L2C's selector; the search: best where it hardly moves
first_threshold = 0.95  # share of the energy that InfLoRA protects at first; InfLoRA: 0.95
last_threshold = 1.0  # the same after the last task; InfLoRA: 1
tops = [1, 2, 3, 5]  # numbers K of experts that answer together; L2C: 1 and 5
temperatures = [0.1, 0.3, 1.0, 3.0, 10.0]  # of the softmax over tasks; L2C: not stated
consistency = 1.0  # weight of the consistency term; L2C: not stated
ablated = False  # whether L2C is run without each reconstruction, too
thresholds = []  # further first thresholds of InfLoRA to run
noise_bound = 0.02  # half-width of the box of weight noise
noise_draws = 10  # random points of the box
ranking_steps = 20  # steps of ILA's second stage

# %% tags=["setup"]
from experiments.cpeft.parameters import ContinualPeftParameters
from experiments.run.parameters import check_parameters

P = check_parameters(globals(), ContinualPeftParameters)

# %% [markdown]
# ## The problem
#
# Let $W\in\mathbb R^{d_{\mathrm{out}}\times d_{\mathrm{in}}}$ be the weight of a linear layer of a pre-trained model. **LoRA** {cite}`hu2022lora` leaves it alone and learns
# an update of low rank,
#
# ```{math}
# :label: eq-cpeft-lora
# W+BA,\qquad A\in\mathbb R^{r\times d_{\mathrm{in}}},\quad B\in\mathbb R^{d_{\mathrm{out}}\times r},\quad B=0\text{ at the start.}
# ```
#
# In **class-incremental learning** task $t=1,\dots,T$ brings images of classes that no other task has. Each task gets a linear head for its classes; at test
# time the heads are put side by side, and nobody says which task an image belongs to.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from data_prep import checksums
from experiments.run.plotting import band, save_figure, style_for, use_style
from experiments.run.results import RunRecord
from ktlib.device import choose_device
from ktlib.seeding import deterministic

use_style()
deterministic()
record = RunRecord.start("continual_peft", P, data=checksums(P.dataset))

# %% [markdown]
# `ContinualExperiment` holds what must be the same for all methods: the pre-trained model, the tasks, the images that are tested on. A seed puts the
# classes into another order and draws other images; the model is the same, as it would be if it had been downloaded.

# %%
from experiments.cpeft.experiment import ContinualExperiment

experiment = ContinualExperiment(P, choose_device(P.device))
for task in experiment.tasks(P.seeds[0]):
    print(f"task {task.number}: classes {task.classes.tolist()}, {len(task.train)} images")

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "One row of small grey images for each of the first three tasks; every image shows a garment and a digit side by side.", "classes": "photo"}, "figure": {"name": "fig-cpeft-images", "caption": "Training images of the first three tasks, one of each class; first seed."}}
shown_tasks = experiment.tasks(P.seeds[0])[:3]
columns = min(8, len(shown_tasks[0].classes))
fig, axes = plt.subplots(
    len(shown_tasks), columns, figsize=(7.2, 1.0 * len(shown_tasks)), squeeze=False
)
for line, task in zip(axes, shown_tasks, strict=True):
    for ax, label in zip(line, task.classes[:columns], strict=True):
        first = task.train[experiment.train.labels[task.train] == label][0]
        ax.imshow(
            experiment.train.images[first].permute(1, 2, 0).squeeze().numpy(),
            cmap="gray",
        )
        ax.set_axis_off()
save_figure(fig, P.run_dir, "images")

# %% [markdown]
# ### A pre-trained model
#
# ViT-B/16 and its weights are a matter of one parameter. The default needs no download: a small vision transformer {cite}`dosovitskiy2021vit` is trained on the base classes,
# which no task has, and kept on disk under a name that is a hash of all that it follows from. A second one is trained by SAM {cite}`foret2021sam`, which looks for
# *flat* minima; it is needed at the end of the chapter.

# %%
from experiments.run.parallel import parallel_map

radii = [0.0, P.sam_radius] if P.sam_radius and P.model == "small" else [0.0]
models = parallel_map(experiment.pretrained, radii, "pre-training", device=experiment.device)
print(f"{sum(p.numel() for p in models[0.0].parameters()):,} parameters")

# %% [markdown]
# ## Pilot study: what happens without a method?
#
# **Question.** One LoRA goes on learning from task to task. How much is left of the first task at the end?
#
# **Prediction.** Much less than at its start. An adapter has few parameters, but nothing stops them from leaving the place where the first task needs them.

# %%
pilot = experiment.run("sequential", P.seeds[0], models[0.0])

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Two heat maps with numbers: accuracy on each task after each task. In the left one, among all classes, numbers fall strongly down each column. In the right one, among the classes of the task, they fall less.", "classes": "chart"}, "figure": {"name": "fig-cpeft-pilot", "caption": "Sequential LoRA: accuracy (%) on each task (column) after each task (row). Left: among all classes so far. Right: among the classes of the task only. First seed, live run."}}
from experiments.cpeft.report import mean_matrix

fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.2), sharey=True)
titles = {"accuracy": "among all classes", "accuracy_within": "among the task's classes"}
for ax, (key, title) in zip(axes, titles.items(), strict=True):
    matrix = mean_matrix(pilot.rows, "sequential", key)
    ax.imshow(matrix, vmin=0, vmax=100, cmap="viridis")
    for (i, j), value in np.ndenumerate(matrix.to_numpy()):
        if np.isfinite(value):
            colour = "black" if value > 60 else "white"
            ax.text(j, i, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=8)
    ax.set_xticks(range(len(matrix.columns)), matrix.columns)
    ax.set_yticks(range(len(matrix)), matrix.index)
    ax.set(title=title, xlabel="on task", ylabel="after task" if ax is axes[0] else "")
    ax.grid(False)
save_figure(fig, P.run_dir, "pilot")

# %% [markdown]
# Two things are lost. Down the columns of the right panel: features of old classes get worse. And more in the left panel: the heads were never trained against each other, so
# the newest one tends to shout loudest. A method has to deal with both.
#
# ## InfLoRA: change only what the old tasks do not use
#
# The idea takes two facts about a linear layer with inputs $x$; {ref}`proof-cpeft` proves them.
#
# 1. With $A$ *fixed* and only $B$ trained, the weight moves inside the row space of $A$: tuning $B$ *is* tuning $W$ there.
# 2. If the rows of $A$ are orthogonal to an input $x$, the update $BA$ does not change the output for $x$, whatever $B$ becomes.
#
# So choose the rows of $A$ *before* the training: inside the span of the new task's inputs, where gradients live, and orthogonal to the inputs of the old ones.

# %%
from ktlib.seeding import generator

stream = generator(0, "idea")
spread = torch.randn(2, 60, 2, generator=stream)
old = spread[0] * torch.tensor([1.0, 0.07]) @ torch.tensor([[0.8, 0.6], [-0.6, 0.8]])
new = spread[1] * torch.tensor([1.0, 0.2]) @ torch.tensor([[0.3, 0.95], [-0.95, 0.3]])

# %%
from ktlib.cpeft import DualGPM, InputMoment
from ktlib.cpeft.inflora import design_down

memory = DualGPM(2)
memory.update(InputMoment.of(old), threshold=0.95)
row = design_down(InputMoment.of(new), memory, rank=1)[0]
main = torch.linalg.eigh(InputMoment.of(new).matrix).eigenvectors[:, -1]

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "A plane with two clouds of points, each along a line through the origin. An arrow shows the main direction of the new cloud, a second arrow the part of it that is at a right angle to the old cloud.", "classes": "chart"}, "figure": {"name": "fig-cpeft-idea", "caption": "The row of A in two dimensions. Old inputs (dots) lie near one line. The main direction of the new inputs (crosses) is dashed; what is left of it at a right angle to the old line is the row that InfLoRA chooses. Drawn numbers, computed by the functions of this chapter."}}
fig, ax = plt.subplots(figsize=(4.4, 4.0))
ax.plot(*old.T, "o", markersize=3, label="old inputs")
ax.plot(*new.T, "x", markersize=4, label="new inputs")
for direction, line in ((main * main[1].sign(), "--"), (row / row.norm() * row[1].sign(), "-")):
    ax.annotate("", 1.8 * direction, (0, 0), arrowprops={"arrowstyle": "->", "linestyle": line})
ax.set(xlim=(-2.4, 2.4), ylim=(-2.4, 2.4), aspect="equal", xlabel="$x_1$", ylabel="$x_2$")
ax.legend(loc="lower left")
save_figure(fig, P.run_dir, "idea")

# %% [markdown]
# In symbols: let $H=\mathbb E[xx^\top]$ be the uncentred second moment of the layer's inputs in the new task, and let the columns of $M$ be an orthonormal basis of what is kept of the
# old inputs. The rows of $A$ are the first $r$ left singular vectors of
#
# ```{math}
# :label: eq-cpeft-design
# H-MM^\top H .
# ```
#
# After the task, $M$ grows: directions are added until a share $\epsilon_t$ of the energy $\operatorname{tr}H$ of the task's inputs lies in its span. InfLoRA raises the share from task to task,
# from `first_threshold` towards `last_threshold`. Where more than half of all directions are kept, the free ones are stored in their place: **DualGPM** {cite}`liang2023dualgpm`, after gradient projection
# memory {cite}`saha2021gpm`.
#
# These are all the steps of one task, as `ktlib` takes them:

# %%
import inspect
import textwrap

from ktlib.cpeft import InfLora

source = textwrap.dedent(inspect.getsource(InfLora.learn))
print("\n".join(line for part in source.split('"""')[::2] for line in part.splitlines() if line))

# %% [markdown]
# ## L2C: an expert for each task, and a selector
#
# InfLoRA has one model and keeps tasks apart inside it. The opposite design keeps them apart outside: each task gets adapters of its own, which nobody changes later. Then nothing
# is ever forgotten, but somebody must say *whom to ask*. With a selector $g_k(x)=P(k\mid x)$ and experts $f_k(x)=P(y\mid x)$,
#
# ```{math}
# :label: eq-cpeft-l2c
# \hat y(x)=\sum_{k\in\mathcal K(x)}g_k(x)\,f_k(x),\qquad \mathcal K(x)=\text{the }K\text{ most probable tasks.}
# ```
#
# ```{admonition} Stated by the sources, and reconstructed here
# :class: important
# Of L2C the abstract, a readme and one figure are public. **Stated there:** selector and experts are the same pre-trained model with adapters of their own; the largest logit among
# a task's classes, and a softmax over tasks, give $g_k$; the sum above; the selector is trained first, as a class-incremental learner, the experts second; $K=1$ during training, larger at the end.
#
# **Our reconstruction**, where the sources name a purpose and no procedure: a new expert starts from a mix of the old ones, weighted by $g$ (*forward transfer*); the heads of selector and older experts are
# aligned on Gaussian pseudo-features of classes that came later or before, with no image kept (*backward transfer*, after SLCA {cite}`zhang2023slca` and HiDe-Prompt {cite}`wang2023hide`); a consistency term between
# the joint answer and that of the new expert (*cooperation*); all numbers. What follows judges our reading, not the authors' code.
# ```
#
# ## All methods on the same tasks
#
# Beside the two systems and **sequential** LoRA stand three that mark the range: **ncm** trains nothing and takes the nearest class mean in the frozen features; **oracle** has an expert for each
# task, which is only of use if somebody tells the task; **joint** keeps all images and trains anew after each task; it is part of the long run.


# %%
def run(case):
    """One method through all tasks of one seed; of two of them it is noted how layers move."""
    method, seed = case
    note = experiment.watch(seed) if method in ("sequential", "inflora") else None
    return experiment.run(method, seed, models[0.0], note=note)


# %%
cases = [(method, seed) for seed in P.seeds for method in P.methods]
runs = parallel_map(run, cases, "methods", device=experiment.device)

# %%
from experiments.cpeft.experiment import all_rows
from experiments.cpeft.report import summary_rows, summary_table

accuracies = all_rows(list(runs.values()))
measures = summary_rows(accuracies)
summary_table(measures)

# %%
record.table("task_accuracy", accuracies)
record.table("summary", measures)

# %% [markdown]
# *Final* is the mean accuracy on all tasks after the last one, *average* its mean over all steps. *Forgetting* is what a task has lost since its best; *backward transfer* what
# changed since it was learned. *Forward transfer* compares a task, right after it was learned and with the task given (*task-IL accuracy*), with an expert trained on it alone. The *routing error* is the share of images
# that were given a class of another task.

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Mean accuracy on all tasks so far against the number of tasks learned, a line with a band for each method; all lines fall.", "classes": "chart"}, "figure": {"name": "fig-cpeft-methods", "caption": "Accuracy on all tasks so far, among all classes so far. Lines: mean over seeds, bands: one standard deviation; live run."}}
from experiments.cpeft.report import accuracy_over_time

over_time = accuracy_over_time(accuracies)
fig, ax = plt.subplots(figsize=(6.4, 3.8))
for method, line in over_time.groupby("method", sort=False):
    band(ax, line["after"].tolist(), line["mean"].tolist(), line["std"].tolist(), method)
ax.set(xlabel="tasks learned", ylabel="accuracy (%)", xticks=sorted(set(over_time["after"])))
ax.legend(ncols=2)
save_figure(fig, P.run_dir, "methods")

# %%
from experiments.cpeft.report import method_difference, without_verdict

for metric in ("forgetting", "final_accuracy"):
    change = method_difference(measures, "inflora", "sequential", metric)
    print(f"inflora less sequential, {metric}: {without_verdict(change)}")

# %% [markdown]
# (sec-cpeft-drift)=
# ## Where does the model move?
#
# **Question.** Take the inputs that each adapted layer had for images of the first task, when that task had just been learned. How far have the layer's outputs for them moved at the
# end?
#
# For an update $D$ the mean square of the movement is $\mathbb E\lVert Dx\rVert^2=\operatorname{tr}(DHD^\top)$, so the stored moment $H$ is enough to compute it. And if the rows of $D$ are orthogonal to
# $M$, it cannot exceed
#
# ```{math}
# :label: eq-cpeft-bound
# \mathbb E\lVert Dx\rVert^2\le\lVert D\rVert_2^2\;\mathbb E\lVert(I-MM^\top)x\rVert^2,
# ```
#
# the energy that the memory did not keep, times the largest singular value of the update. For an update that is not orthogonal to $M$, the part inside is added.

# %%
from ktlib.cpeft.drift import drift_rows

drift = []
for method in ("sequential", "inflora"):
    for seed in P.seeds:
        first, last = runs[method, seed].noted[0], runs[method, seed].noted[-1]
        memories = runs["inflora", seed].noted[0]["memories"]
        found = drift_rows(first["weights"], last["weights"], first["inputs"], memories)
        drift += [{"method": method, "seed": seed, **row} for row in found]
record.table("drift", drift)

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "For each adapted layer three marks on a logarithmic axis: relative movement of old outputs under sequential LoRA, under InfLoRA, and InfLoRA's bound, which lies above InfLoRA's mark everywhere.", "classes": "chart"}, "figure": {"name": "fig-cpeft-drift", "caption": "Movement of the outputs of each adapted layer for inputs of the first task, from the end of that task to the end of the last one, relative to the outputs; mean over seeds. Bars: the bound for InfLoRA. Live run."}}
from experiments.cpeft.report import short_layer

moved = pd.DataFrame(drift)
moved["share of bound"] = moved["bound"] / moved["output"]
means = moved.groupby(["method", "layer"], sort=False)[["relative", "share of bound"]].mean()
names = [short_layer(name) for name in means.loc["inflora"].index]
fig, ax = plt.subplots(figsize=(7.2, 3.4))
for method in ("sequential", "inflora"):
    style = style_for(method) | {"linestyle": ""}
    ax.plot(names, means.loc[method, "relative"], label=method, **style)
ax.plot(names, means.loc["inflora", "share of bound"], "_", color="black", markersize=14,
        label="bound for inflora")  # fmt: skip
ax.set(yscale="log", ylabel="relative movement", xlabel="adapted layer (block.projection)")
ax.tick_params(axis="x", rotation=60, labelsize=8)
ax.legend()
save_figure(fig, P.run_dir, "drift")

# %% [markdown]
# The bound is one for inputs that stay as they are. In the network, the inputs of a later layer move too, as the layers below it do; {ref}`proof-cpeft` adds that up.
#
# What protection costs is room: the directions that are kept for old tasks are closed to new ones.

# %%
history = [
    {"seed": seed, **row} for seed in P.seeds for row in runs["inflora", seed].learner.history
]
record.table("occupancy", history)

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Heat map: share of the input directions of each adapted layer that the memory holds, after each task; it grows from left to right.", "classes": "chart"}, "figure": {"name": "fig-cpeft-occupancy", "caption": "Share of each layer's input space that InfLoRA's memory holds after each task (%), mean over seeds; live run."}}
from experiments.cpeft.report import occupancy_table

occupied = 100 * occupancy_table(history)
fig, ax = plt.subplots(figsize=(5.4, 0.32 * len(occupied) + 1.2))
ax.imshow(occupied, vmin=0, vmax=100, cmap="viridis", aspect="auto")
for (i, j), value in np.ndenumerate(occupied.to_numpy()):
    colour = "black" if value > 60 else "white"
    ax.text(j, i, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=8)
ax.set_xticks(range(len(occupied.columns)), occupied.columns)
ax.set_yticks(range(len(occupied)), occupied.index)
ax.set(xlabel="after task", ylabel="adapted layer")
ax.grid(False)
save_figure(fig, P.run_dir, "occupancy")

# %% [markdown]
# Keys and values of one block read the same inputs, so their memories are the same. The trade is set by the thresholds; each further value of the parameter `thresholds` is one more run.

# %%


def protect(case):
    """InfLoRA with another first threshold."""
    first, seed = case
    last = max(first, P.last_threshold)
    options = {"first_threshold": first, "last_threshold": last}
    return experiment.run("inflora", seed, models[0.0], **options)


found = parallel_map(
    protect,
    [(first, seed) for first in P.thresholds for seed in P.seeds],
    "thresholds",
    device=experiment.device,
)
protected = [
    {**row, "method": f"first threshold {first:g}"}
    for (first, _), one in found.items()
    for row in one.rows
]
record.table("thresholds", protected)
summary_table(summary_rows(protected)) if protected else "not part of this run"

# %% [markdown]
# (sec-cpeft-cooperation)=
# ## Isolation or cooperation?
#
# In the ensemble {eq}`eq-cpeft-l2c` two numbers say how much the experts work together. With $K=1$, or with a temperature near 0, the selector's first choice answers alone. With all experts and a
# high temperature everybody has the same vote. Let $m$ be the share of images that the selector sends to a wrong expert. For isolation
#
# ```{math}
# :label: eq-cpeft-tradeoff
# a=(1-m)\,a_{\mathrm{own}}+m\,a_{\mathrm{wrong}}
# ```
#
# holds exactly, with the accuracies of the chosen expert on images that are its own and on those that are not. Cooperation helps where $m$ is large and others know something of the class; it hurts where the selector
# is right and the others outvote its choice. `ExpertOutputs` evaluates selector and experts once and stores their outputs, so that the whole plane costs one pass.

# %%
outputs = {seed: experiment.expert_outputs(runs["l2c", seed]) for seed in P.seeds}
plane = [
    {"seed": seed, **row}
    for seed, one in outputs.items()
    for row in one.grid(P.tops, P.temperatures)
]

# %%
record.table("cooperation", plane)
pd.DataFrame(plane).pivot_table("accuracy", "top", "temperature").round(1)

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Accuracy of the ensemble against the temperature, one line for each number of experts; the line for one expert is flat, the others leave it as the temperature rises.", "classes": "chart"}, "figure": {"name": "fig-cpeft-cooperation", "caption": "Accuracy of L2C against the temperature of the selector's softmax, for K experts; mean over seeds. Dashed: the limit of one expert; dotted: the limit of all experts with equal votes; dash-dotted: told the task. Live run."}}
table = pd.DataFrame(plane)
fig, ax = plt.subplots(figsize=(6.4, 3.8))
for top, line in table.groupby("top"):
    mean = line.groupby("temperature")["accuracy"].mean()
    ax.plot(mean.index, mean, marker="o", label=f"K = {top}")
limits = {
    "one expert": np.mean([one.accuracy(1, 1.0) for one in outputs.values()]),
    "all, equal votes": np.mean([one.accuracy(None, float("inf")) for one in outputs.values()]),
    "task given": np.mean([one.task_il_accuracy for one in outputs.values()]),
}
for (name, value), line in zip(limits.items(), ("--", ":", "-."), strict=True):
    ax.axhline(value, color="black", linestyle=line, linewidth=1, label=name)
ax.set(xscale="log", xlabel="temperature", ylabel="accuracy (%)")
ax.legend(ncols=2, fontsize=8)
save_figure(fig, P.run_dir, "cooperation")

# %%
from experiments.cpeft.toy_model import isolation_identity

sent = []
for seed, one in outputs.items():
    row = isolation_identity(one)[0]
    best = max(one.grid(P.tops, P.temperatures), key=lambda point: point["accuracy"])
    sent.append({"seed": seed, "told": one.task_il_accuracy, "isolation": row["left"],
                 "by the identity": row["right"], "misallocated": row["misallocated"],
                 "best": best["accuracy"], "K": best["top"], "temperature": best["temperature"]})  # fmt: skip
record.table("isolation", sent)
pd.DataFrame(sent).set_index("seed").round(2)

# %% [markdown]
# *Best* is the best point of the plane on the test images: it says what there is to gain by the choice of $K$ and temperature, not what a user would have got.

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Heat map of shares: rows are the tasks that images belong to, columns the experts that the selector sends them to; most of the weight is on the diagonal.", "classes": "chart"}, "figure": {"name": "fig-cpeft-confusion", "caption": "Whom the selector asks: share (%) of the test images of each task (row) that go to each expert (column), sum over seeds; live run."}}
confusion = sum(one.confusion() for one in outputs.values()).double()
confusion = 100 * confusion / confusion.sum(dim=1, keepdim=True)
fig, ax = plt.subplots(figsize=(4.4, 3.8))
ax.imshow(confusion.numpy(), vmin=0, vmax=100, cmap="viridis")
for (i, j), value in np.ndenumerate(confusion.numpy()):
    colour = "black" if value > 60 else "white"
    ax.text(j, i, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=8)
numbers = range(1, len(confusion) + 1)
ax.set_xticks(range(len(confusion)), numbers)
ax.set_yticks(range(len(confusion)), numbers)
ax.set(xlabel="expert asked", ylabel="task of the image")
ax.grid(False)
save_figure(fig, P.run_dir, "confusion")

# %% [markdown]
# (sec-cpeft-ablation)=
# ### What do the reconstructions do?
#
# Each of the parts that we had to make up can be left out.

# %%
parts = {
    "without mixed start": {"start_from_old": False},
    "without alignment": {"aligned": False},
    "without consistency": {"consistency": 0.0},
    "experts know their own classes only": {"expert_classes": "own", "consistency": 0.0},
}


def without(case):
    """L2C without one part."""
    name, seed = case
    return experiment.run("l2c", seed, models[0.0], **parts[name])


cases = [(name, seed) for name in parts for seed in P.seeds] if P.ablated else []
left_out = parallel_map(without, cases, "L2C without parts", device=experiment.device)
ablation = [row for row in accuracies if row["method"] == "l2c"] if P.ablated else []
ablation += [
    {**row, "method": f"l2c {name}"} for (name, _), one in left_out.items() for row in one.rows
]
record.table("ablation", ablation)
summary_table(summary_rows(ablation)) if ablation else "not part of this run"

# %% [markdown]
# (sec-cpeft-flat)=
# ## Three questions that join the parts of this book
#
# ### Does a flat pre-training reduce forgetting?
#
# F2M says: be in a flat place before the tasks come, and moving will cost less. **Prediction.** The model that was pre-trained by SAM loses less when its weights are moved at random, and sequential LoRA
# that starts from it forgets less.
#
# First: is it flatter? A linear classifier is put on the features of each model, and the loss on the base classes is measured in a box of weight noise.

# %%
flatness = []
for radius, network in models.items() if len(models) > 1 else ():
    found = experiment.base_noise_sensitivity(network)
    flatness.append(
        {
            "pre-training": "flat" if radius else "plain",
            "loss": found.loss,
            "rise": found.mean,
            "standard error": found.standard_error,
            "highest rise": found.highest,
            "size of weights": found.weight_rms,
        }
    )

# %%
record.table("flatness", flatness)
pd.DataFrame(flatness).round(4) if flatness else "not part of this run"

# %%


def start_flat(case):
    """A method from the flat model."""
    method, seed = case
    return experiment.run(method, seed, models[P.sam_radius])


cases = [(method, seed) for method in ("sequential", "ncm") for seed in P.seeds]
cases = cases if len(models) > 1 else []
flat = parallel_map(start_flat, cases, "flat start", device=experiment.device)
both = [row for row in accuracies if row["method"] in ("sequential", "ncm")] if cases else []
both += [{**row, "method": f"{row['method']} flat"} for run in flat.values() for row in run.rows]
started = summary_rows(both)
record.table("flat_start", started)
summary_table(started) if started else "not part of this run"

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Two panels with one line per seed from a plain to a flat pre-training: forgetting, and final accuracy, of sequential LoRA.", "classes": "chart"}, "figure": {"name": "fig-cpeft-flat", "caption": "Sequential LoRA from the plain and from the flat pre-trained model: one line per seed; live run."}}
fig, axes = plt.subplots(1, 2, figsize=(6.4, 3.0))
table = pd.DataFrame(started, columns=["method", "seed", "metric", "value"])
for ax, metric in zip(axes, ("forgetting", "final_accuracy"), strict=True):
    wide = table[table["metric"] == metric].pivot_table("value", "seed", "method")
    for seed, line in wide.iterrows():
        ax.plot(
            ["plain", "flat"], line[["sequential", "sequential flat"]], "o-", label=f"seed {seed}"
        )
    ax.set(title=metric.replace("_", " "), ylabel="points" if metric == "forgetting" else "%")
    ax.margins(x=0.2)
axes[1].legend(handles=axes[1].get_legend_handles_labels()[0], fontsize=8)
save_figure(fig, P.run_dir, "flat")

# %%
if started:
    for metric in ("forgetting", "final_accuracy"):
        change = method_difference(started, "sequential flat", "sequential", metric)
        print(f"flat less plain start, sequential LoRA, {metric}: {without_verdict(change)}")

# %% [markdown]
# (sec-cpeft-conflict)=
# ### Are the layers in which tasks conflict those that run out of room?
#
# Recon counts how often the gradients of two tasks point against each other in a layer. InfLoRA's memory says how much of a layer's input space is taken. **Prediction.** Both grow where tasks need the same
# directions for different ends. But conflict is about *gradients* and occupancy about *inputs*: a layer can be full of common inputs on which all tasks agree.

# %%
from experiments.cpeft.joint_analyses import (
    GradientBatches,
    shared_input_groups,
    task_conflicts,
)

ends = [row for row in history if row["task"] == P.tasks]
filled = {seed: {row["layer"]: row["occupied"] for row in ends if row["seed"] == seed}
          for seed in P.seeds}  # fmt: skip


def count_conflicts(seed):
    """Cosines between the gradients of all tasks, at the pre-trained weights."""
    pool = experiment.tasks(seed), experiment.images, experiment.labels
    sampling = GradientBatches(batches=10, batch_size=32, seed=seed)
    return task_conflicts(models[0.0], list(filled[seed]), *pool, sampling)


counted = parallel_map(count_conflicts, P.seeds, "conflicts", device=experiment.device)

# %%
severity = -0.1
conflicts = [
    {"seed": seed, **row, "occupied": filled[seed][row["layer"]]}
    for seed, one in counted.items()
    for row in one.rows(severity)
]
record.table("conflicts", conflicts)

# %%
from experiments.cpeft.joint_analyses import correlate_conflict_with_occupancy

few = experiment.images[torch.arange(4)]
groups = shared_input_groups(models[0.0], list(filled[P.seeds[0]]), few)
association = []
for seed in P.seeds if len(groups) >= 3 else ():
    scores = counted[seed].scores(severity)
    one = correlate_conflict_with_occupancy(scores, filled[seed], groups, seed=seed)
    row = {"seed": seed, "rank correlation": one.correlation, "p": one.p_value}
    association += [row | {"groups": one.groups}] if np.isfinite(one.correlation) else []

# %%
record.table("conflict_occupancy", association)
pd.DataFrame(association) if association else "fewer than three groups that differ"

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Scatter plot with a dot per layer: share of conflicting gradients against the share of the input space that is occupied.", "classes": "chart"}, "figure": {"name": "fig-cpeft-conflict", "caption": "Share of pairs of tasks whose gradients have a cosine below -0.1, against InfLoRA's occupancy after the last task. One dot per adapted layer and seed; live run."}}
table = pd.DataFrame(conflicts)
table["kind"] = [short_layer(name).partition(".")[2] for name in table["layer"]]
fig, ax = plt.subplots(figsize=(5.2, 3.4))
for kind, part in table.groupby("kind"):
    ax.plot(
        100 * part["occupied"],
        100 * part["score"],
        label=kind,
        **style_for(kind) | {"linestyle": ""},
    )
ax.set(xlabel="occupied (%)", ylabel="conflicting pairs (%)")
ax.legend()
save_figure(fig, P.run_dir, "conflict")

# %% [markdown]
# Layers with the same inputs count once: with few blocks there are few groups, and a p-value cannot be small. With four groups it is never below 1/12.
#
# (sec-cpeft-layers)=
# ### Do later tasks need other layers?
#
# ILA learns which updates matter. Its scores of the layers of each expert say which of its updates are needed. Two experts of different tasks differ in the data, but also in all that chance decides in a training, and
# {ref}`sec-ila-noise` found that alone to be enough. So four kinds of pairs are compared: experts of *two tasks*, from the same first adapters or from others; experts of *one task*, trained twice from
# other first adapters; and *one expert*, ranked twice with other batches.
#
# **Prediction.** If importance belongs to the data, rankings of two tasks agree less than those of one task trained twice. If it belongs to the model, both agree. If it belongs to the training run, neither does.


# %%
def train_again(seed):
    """The experts of the same tasks, from other adapters and with other batches."""
    return experiment.run("oracle", seed, models[0.0], adapter_seed=seed + 1000)


seeds = P.seeds if "oracle" in P.methods else []
again = parallel_map(train_again, seeds, "experts again", device=experiment.device)


# %%
def rank_expert(case):
    """ILA's ranking of the layers of one expert, with a seed for its batches."""
    seed, number, training, batches = case
    expert = again[seed] if training else runs["oracle", seed]
    return experiment.expert_ranking(expert, number, seed=batches)


twice = (0, 0), (1, 0), (0, 1)
cases = [(seed, task + 1, *which) for seed in seeds for task in range(P.tasks) for which in twice]
rankings = parallel_map(rank_expert, cases, "rankings", device=experiment.device)

# %%
importance = [
    {"seed": seed, "task": task, "training": first, "batches": second, "layer": layer, "score": s}
    for (seed, task, first, second), one in rankings.items()
    for layer, s in one.scores.items()
]
record.table("layer_scores", importance)

# %%
from experiments.cpeft.report import AGREEMENT_KINDS, expert_agreement

agreement = expert_agreement(rankings, top_fraction=0.5)
record.table("jaccard", agreement)

# %%
shown = ["value", "chance", "rank_correlation"]
means = pd.DataFrame(agreement, columns=["kind", *shown]).groupby("kind", sort=False)
means.mean().round(2) if agreement else "needs the oracle"

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Heat map: learned score of each adapted layer for each task.", "classes": "chart"}, "figure": {"name": "fig-cpeft-layers", "caption": "ILA's scores of the layers of each task's expert; first seed, live run. The update of a layer with a higher score is needed more."}}
columns = ["seed", "task", "training", "batches", "layer", "score"]
table = pd.DataFrame(importance, columns=columns)
wide = table.query("seed == @P.seeds[0] and training == 0 and batches == 0").pivot_table(
    "score", "layer", "task", sort=False
)
fig, ax = plt.subplots(figsize=(5.0, 0.3 * max(4, len(wide)) + 1.2))
if len(wide):
    drawn = ax.imshow(wide, cmap="viridis", aspect="auto")
    fig.colorbar(drawn, label="score")
    ax.set_xticks(range(len(wide.columns)), wide.columns)
    ax.set_yticks(range(len(wide)), [short_layer(name) for name in wide.index])
ax.set(xlabel="task", ylabel="adapted layer")
ax.grid(False)
save_figure(fig, P.run_dir, "layers")

# %% [markdown]
# ## The long run, from the committed record
#
# The `full` profile has more seeds, more tasks, further thresholds, and L2C without each of its parts. Its record is part of the project; these tables are computed from it, not
# typed.

# %%
from experiments.run.results import committed_record, record_label

full = committed_record("continual_peft", "full")
print(record_label(full, "continual_peft", "full"))
long = full.tables if full else {}
summary_table(long["summary"]) if full else "no record yet"

# %%
summary_table(summary_rows(long["thresholds"])) if full else "no record yet"

# %%
summary_table(summary_rows(long["ablation"])) if full else "no record yet"

# %%
long_plane = pd.DataFrame(long.get("cooperation", plane))
long_plane.pivot_table("accuracy", "top", "temperature").round(1)

# %% tags=["table"]
answers_of_long_run = {}
if full:
    for metric in ("forgetting", "final_accuracy", "final_accuracy_within"):
        change = method_difference(long["flat_start"], "sequential flat", "sequential", metric)
        answers_of_long_run[f"flat less plain start: {metric}"] = without_verdict(change)
    for row in long["conflict_occupancy"]:
        name = f"conflict and occupancy: rank correlation, seed {row['seed']}"
        answers_of_long_run[name] = f"{row['rank correlation']:.2f} ({row['groups']} groups)"
    pairs = pd.DataFrame(long["jaccard"]).groupby("kind", sort=False)["rank_correlation"]
    for kind, value in pairs.mean().items():
        answers_of_long_run[f"{kind}: rank correlation of their layers"] = f"{value:.2f}"
pd.Series(answers_of_long_run, name="long run", dtype=object).to_frame().style

# %% [markdown]
# (sec-cpeft-record)=
# ### What the long run says
#
# Numbers in brackets are 95 % intervals of differences within seeds.
#
# - **InfLoRA does what it was made for.** It forgets 57 points less than sequential LoRA (52 to 62), and the outputs of its layers for images of the first task move less than a tenth as far. Told the task, it is right on 95 % of the images, sequential LoRA on 62 %.
# - **What is left is the heads.** Among all classes InfLoRA comes to 45 %. The oracle's experts, which nobody changes, come to 52 % if the task is not given: heads that were never compared do not speak the same language.
# - **Room was no problem.** After ten tasks the memories hold between 47 and 73 % of the directions, every update had its rank of 8, and each new task was learned to a task-IL accuracy of 92 % or more. A first threshold of 0.5 costs
#   8 points, 0.8 costs 2; between 0.95 and 0.99 no difference is seen.
# - **Nothing that trains beats training nothing.** Nearest class means of frozen features end at 78 %: 5 points above L2C (4 to 6), 33 above InfLoRA; against joint training, which keeps all images, no difference is seen (-1 point, -3 to +1). The model was
#   pre-trained on images of the same kind, so there is little to adapt, and its learning rate was chosen by nearest class means, of the base classes. A comparison without this row would have praised all others.
# - **Of our reconstruction of L2C, one part is needed and two do harm.** Without the alignment of the heads it loses 9 points (6 to 11). Without the start from a mix of old experts it *gains* 2 (1 to 3), and with experts that know the classes
#   of their own task only 4 (3 to 5). The consistency term changes nothing. So the experts' cooperation costs more than it brings here; of the authors' system this says nothing.
# - **Isolation wins.** All experts with temperature 1 are 0.4 points worse than the selected one alone (0.1 to 0.7); votes that are nearly equal, at temperature 10, cost 11 points. The selector is wrong on 19 to 22 % of the
#   images. Nowhere in the plane is there more than 0.2 points to gain.
# - **A flat start: flatter it is, and what it saves lies in the features.** The rise of the loss in the box of noise is less than half of the plain model's, at a higher loss. Forgetting among all classes shows no difference (-2 points, -5 to +1), but in task-IL accuracy sequential LoRA ends 10 points
#   higher (6 to 14). So the features hold longer, and the heads hide it. There is one model of each kind: five seeds of the tasks are not five pre-trainings.
# - **Conflict and occupancy: the opposite of the prediction.** The rank correlation is -1 in every seed. But there are four groups of layers, one a block, and five seeds of one model; with four groups no p-value is below 0.08. The first block has most conflicts and most
#   room, the last one least of both. All that this shows is that both follow depth, in opposite directions.
# - **Which layers matter belongs to the training run first of all.** One expert that is ranked twice agrees with itself (rank correlation 0.86), so the rankings are not noise. But experts of one task, trained twice, agree hardly more (0.16) than experts of two tasks (0.05): the
#   difference is -0.11 (-0.26 to +0.03), so a small part may still belong to the data. A comparison of two tasks with one expert ranked twice, without the middle line, would have found that tasks need other layers. {ref}`sec-ila-noise` saw the same in a language model.
#
# %% [markdown]
# ### How the settings were chosen
#
# A fifth of the training images of every class was held out, the test images took no part, and the seeds are two that the chapter does not use: `python -m experiments.searches.continual_peft`, at the size of
# the live run. The table shows accuracies on the held-out images: of nearest class means on base classes for `pretraining_lr` (one seed), of the expert of the given task for `expert_lr`,
# and the final one among all classes for the others. One setting was searched after the other, each with the best values before it. Where the end of a grid was best, it was widened.

# %%
from experiments.run.tables import mean_and_spread

search = committed_record("continual_peft", "search")
tried = search.frame("search") if search else pd.DataFrame(columns=["name", "value", "accuracy"])
tried = mean_and_spread(tried, ["name", "value"], "accuracy").sort_values("value")
tried["value: accuracy"] = [
    f"{value:g}: {mean:.1f}" for value, mean in zip(tried["value"], tried["mean"], strict=True)
]
tried.groupby("name", sort=False)["value: accuracy"].agg(" | ".join).to_frame().style

# %% [markdown]
# The selector does best where it hardly moves: at 0.000001 and at 0.00001 it answers the same. What it learns then sits in its heads, which are aligned on the statistics of the features. SLCA {cite}`zhang2023slca` found
# with large models that the backbone should move slowly; here it is best to stand still. Between the weights of the consistency term there is less than a point.

# %% [markdown]
# (sec-cpeft-claims)=
# ## Claims of the sources, and what became of them
#
# This chapter goes beyond the thesis; the claims are those of the two systems' own papers and of this book's question. A claim that something is larger, or smaller, is *reproduced* if the
# 95 % interval of the difference within seeds lies on the claimed side of zero, *not reproduced* if it lies on the other side, and *undecided* if it contains zero. With one seed there is no
# interval, and nothing was tested.

# %%
from experiments.run.claims import (
    Claim,
    claim_rows,
    claims_table,
    not_testable,
    verdict_of_difference,
)

setup = (
    f"{P.dataset}, {P.tasks} tasks, {'small ViT' if P.model == 'small' else P.model}, rank "
    f"{P.rank}, {len(P.seeds)} seeds (sources: ViT-B/16, ImageNet-R and others, 5 to 20 tasks)"
)
claims = []


def claim_difference(text, place, printed, difference, side, anchor):
    """A claim that one thing is larger ("above") or smaller ("below") than another."""
    verdict = verdict_of_difference(difference.low, difference.high, side)
    found = without_verdict(difference)
    claims.append(Claim(text, place, printed, found, setup, verdict, anchor))


# %%
change = method_difference(measures, "inflora", "sequential", "forgetting")
text = "InfLoRA forgets less than sequential LoRA."
claim_difference(text, "InfLoRA, abstract", "no number", change, "below", "fig-cpeft-methods")
change = method_difference(measures, "inflora", "sequential", "final_accuracy")
text = "InfLoRA ends with a higher accuracy than sequential LoRA."
claim_difference(
    text, "InfLoRA, section 4", "higher throughout", change, "above", "fig-cpeft-methods"
)
change = method_difference(measures, "l2c", "inflora", "final_accuracy")
text = "L2C, as reconstructed here, ends with a higher accuracy than InfLoRA."
claim_difference(text, "L2C, abstract", "no number", change, "above", "fig-cpeft-methods")

# %%
from experiments.run.paired import PairedDifference

several = pd.Series({seed: one.accuracy(None, 1.0) for seed, one in outputs.items()})
alone = pd.Series({seed: one.accuracy(1, 1.0) for seed, one in outputs.items()})
change = PairedDifference.of(several - alone)
text = "Experts that cooperate (all, temperature 1) are better than the selected one alone."
claim_difference(text, "L2C, abstract", "no number", change, "above", "sec-cpeft-cooperation")

# %%
if started:
    change = method_difference(started, "sequential flat", "sequential", "forgetting")
    text = "A flat pre-training makes sequential LoRA forget less."
    claim_difference(text, "this book's question", "-", change, "below", "sec-cpeft-flat")
if agreement:
    means = pd.DataFrame(agreement).pivot_table("rank_correlation", "seed", "kind")
    change = PairedDifference.of(100 * (means[AGREEMENT_KINDS[1]] - means[AGREEMENT_KINDS[2]]))
    text = "Rankings of two tasks agree less than of one task, trained twice (100 x correlation)."
    claim_difference(text, "this book's question", "-", change, "below", "sec-cpeft-layers")

# %%
missing = not_testable("no weights of ViT-B/16 can be fetched here; any are taken by name")
text = "On CIFAR-100 in 10 tasks InfLoRA reaches 86.51 % with ViT-B/16."
place = "InfLoRA, section 4"
claims.append(Claim(text, place, "86.51 +- 0.73 %", anchor="sec-cpeft-claims", **missing))
record.table("claims", claim_rows(claims))
claims_table(claims).style.hide(axis="index")

# %% [markdown]
# ## Where it stops
#
# - **A small model on small images.** It was pre-trained on images of the same kind as the tasks. With a model that knows the world, frozen features are better and there is less to adapt.
# - **Our L2C is not theirs.** What the sources do not state was made up, and is marked so.
# - **A memory is not free.** InfLoRA keeps a basis for each adapted layer, L2C an adapter and a head for each task, and Gaussian statistics of each class: no images, but numbers that follow from them.
# - **Few seeds.** With this many intervals of 95 %, one in twenty is expected to leave out zero by chance alone.
#
# ## Exercises
#
# ```{exercise}
# :label: ex-cpeft-room
# *On paper.* A layer has 96 inputs. After each task 20 more directions are kept. For how many tasks can an update of rank 8 be designed, and what could one do then?
# ```
#
# ````{solution} ex-cpeft-room
# :class: dropdown
# After $k$ tasks $96-20k$ directions are free. The update of task $k+1$ needs 8: $96-20k\ge8$ gives $k\le4$, so five tasks. Then: a smaller rank, a lower threshold, or a wider layer.
# ````
#
# ```{exercise}
# :label: ex-cpeft-scale
# *On paper.* $A$ is replaced by $2A$. What does that change about what InfLoRA *can* learn, and about what it learns in ten steps?
# ```
#
# ````{solution} ex-cpeft-scale
# :class: dropdown
# Nothing about what it can learn: the row space is the same. A step of gradient descent on $B$ moves $W$ by $-\eta\,G A^\top A$, four times as far. With Adam, whose steps do not see the size of the
# gradient, by twice as far.
# ````
#
# ```{exercise}
# :label: ex-cpeft-mixture
# *On paper.* The selector sends 30 % of the images to a wrong expert. The chosen expert is right on 90 % of its own images and on 10 % of the others. How accurate is isolation? How much could a perfect selector add?
# ```
#
# ````{solution} ex-cpeft-mixture
# :class: dropdown
# By {eq}`eq-cpeft-tradeoff`: $0.7\cdot0.9+0.3\cdot0.1=0.66$. With a perfect selector it would be the chosen expert's accuracy on images of its own task. If that stays at $0.9$, it adds 24 points.
# ````
#
# ```{exercise}
# :label: ex-cpeft-threshold
# *Change a parameter.* Run with `-p first_threshold 0.5 -p last_threshold 0.5`, then with `0.99`. Which task profits, the first or the last?
# ```
#
# ````{solution} ex-cpeft-threshold
# :class: dropdown
# Compare the last rows of the summary, *forgetting* against *forward transfer*, and {numref}`fig-cpeft-occupancy`. A low threshold leaves later tasks more room and protects the first one less; near 1 it is the other way round, until no layer
# can move.
# ````
#
# ```{exercise}
# :label: ex-cpeft-tasks
# *Change a parameter.* Run with `-p tasks 10 -y '{tops: [1, 5, 10]}'`. How does the routing error grow with the number of tasks?
# ```
#
# ````{solution} ex-cpeft-tasks
# :class: dropdown
# See the column *routing error* of the table of all methods. There are more wrong tasks to choose from, and fewer classes in each.
# ````
#
# ```{exercise}
# :label: ex-cpeft-logits
# *Write code.* Among all classes the newest head shouts loudest. Take the sequential model at the end of the pilot study and measure it: which share of the images of task 1 is given a class of each task?
# ```
#
# ```{solution-start} ex-cpeft-logits
# :class: dropdown
# ```

# %%
from ktlib.cpeft import predict

images, labels = experiment.evaluation_data(P.seeds[0])
given = experiment.tasks(P.seeds[0])
of_first = torch.isin(labels.cpu(), given[0].classes).nonzero()[:, 0]
said = predict(pilot.learner, images[of_first]).cpu()
for task in given:
    share = torch.isin(said, task.classes).double().mean()
    print(f"given a class of task {task.number}: {100 * share:.0f} %")

# %% [markdown]
# ```{solution-end}
# ```
#
# ## Summary
#
# - Two things are lost over a sequence of tasks: old features move, and heads that were never compared speak with different loudness.
# - To fix the directions of an update before the training is to choose what it cannot disturb; the price is room.
# - What was discarded bounds what moves, layer by layer.
# - Experts that nobody changes forget nothing; then the selector is what is learned, and what fails.
# - Isolation and cooperation are two ends of one plane, and where the best point lies is a matter of the selector.
# - A comparison needs the method that trains nothing: here none that trains beats it.
# - To say that two tasks need different layers, compare with one task that is trained twice.
#
# ## Further reading
#
# InfLoRA {cite}`liang2024inflora` and its code; gradient projection memory {cite}`saha2021gpm`; L2C's public page {cite}`zhang2025l2c`; statistics in the place of images in SLCA {cite}`zhang2023slca` and HiDe-Prompt {cite}`wang2023hide`.

# %%
path = record.save(P.run_dir)
print(f"Record with {len(record.tables)} tables; saved: {path is not None}")
