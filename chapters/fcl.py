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
#     uses: [fcl, models/images, models/resnet, models/weights]
#     data: [pairs]
#     data_parameter: dataset
# ---

# %% [markdown]
# (chap-fcl)=
# # Learning new classes from five images, without forgetting the old ones
#
# A network has learned sixty classes from many images. Then new classes arrive, five at a time, with
# *five images each*, and the old images are gone.
#
# **The chapter in five lines**
#
# 1. **The question.** How far may the weights move, so that the network learns the new classes and keeps the old ones?
# 2. **The idea.** First train where small changes of the weights do no harm: in a *flat* valley of the loss. Then
#    allow later sessions small changes and no others: each weight stays in a *box*. This is F2M {cite}`shi2021f2m,shi2025thesis`.
# 3. **This run.** F2M with its box against F2M without: {glue:text}`fcl-box`
# 4. **The long run.** Does the box pay there? {glue:text}`fcl-long`
# 5. **To take away.** A box works only if the steps are long enough to reach its walls: count the weights that it
#    held before you praise it. And no comparison is complete without the network that does nothing at all.
#
# **After this chapter you can** show forgetting, write both steps of F2M in plain PyTorch, measure how flat a
# minimum is, and tell what the noise did from what the box did.
#
# **Before you start.** You should have trained one small network with PyTorch. No knowledge of continual learning is
# needed; the [notation page](../notation.md) has the symbols.
#
# **Time to run.** About 3 minutes on two CPU cores at the default size; the
# [execution page](../execution.md) shows the time of the run that you are reading. To run it again:
#
# ```bash
# make book                                         # this chapter, at the default size
# make notebooks                                    # chapters as notebooks, then for example:
# papermill notebooks/fcl.ipynb out.ipynb -y '{seeds: [7]}' -p box 0.01
# ```
#
# The folded cell holds the parameters. Five matter most: `session_lr`, how long the steps of later sessions are; `box`,
# how far a weight may go; `noise_bound`, how strong the noise of the base session is; `class_split`, how new the new
# classes are; and `seeds`, how often everything is repeated.

# %% tags=["parameters", "hide-input"]
profile = "cpu"  # name of this set of values, noted in the record
run_dir = ""  # folder for result.json and figures; "" writes nothing
device = "auto"  # auto, cpu, cuda or mps; the thesis: one RTX 3090
seeds = [0, 1, 2]  # one repetition each: weights, batches, noise, images; the thesis: 10 runs
dataset = "pairs"  # pairs, cifar100, mini_imagenet or cub200; the thesis: the last three
class_split = "unseen_parts"  # unseen_parts, random or topic; the thesis: random and topic
shots = 5  # training images per new class; the thesis: 5
base_images = 60  # training images per base class, 0: all; the thesis: 500 (CUB: 30)
test_images = 30  # test images per class, 0: all; the thesis: 100 (CUB: 58)
epochs = 12  # epochs of the base session; not stated in the thesis
noise_bound = 0.01  # half-width b of the noise, in units of the weights; the thesis: 0.01
noise_draws = 2  # noise draws M per step; the thesis: 2 to 4
prototype_weight = 0.1  # weight lambda of prototype fixing; not stated in the thesis
box = 0.001  # half-width of the box, in units of the weights; the thesis: the b of the noise
session_lr = 0.05  # learning rate of the few-shot sessions; the thesis: 0.02
flatness_draws = 100  # random points of the box per measurement; the thesis: 1000

# %% tags=["setup"]
from experiments.fcl.parameters import FclParameters
from experiments.run.parameters import check_parameters

P = check_parameters(globals(), FclParameters)

import matplotlib.pyplot as plt
import pandas as pd
import torch
from myst_nb import glue

import data_prep as data
from experiments.fcl.experiment import FewShotExperiment
from experiments.run.plotting import PALETTE, save_figure, style_for, use_style
from experiments.run.results import RunRecord
from ktlib.device import choose_device
from ktlib.seeding import deterministic

use_style()
deterministic()
record = RunRecord.start("fcl", P, data=data.checksums(P.dataset))
experiment = FewShotExperiment(P, choose_device(P.device))
sessions = experiment.sessions(P.seeds[0])

# %% [markdown]
# ## The problem: classes keep coming
#
# Learning happens in **sessions**. The *base session* has many classes and many images. Every later session brings five
# new classes with five images each. After each session the network is tested on **all** classes seen so far, without
# being told which session an image comes from.

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Two rows of small grey images in groups: six of the base session, then two of each of the next sessions. Each image shows a garment or shoe and a digit, named above it.", "classes": "photo"}, "figure": {"name": "fig-fcl-sessions", "caption": "Sessions arrive from left to right: one image of six base classes, and of two new classes in each of the next sessions. First seed. Parts in bold orange appear in no base class."}}
names, labels = experiment.train.class_names, experiment.train.labels
base_parts = {part for c in sessions[0].classes for part in names[int(c)].rsplit(" ", 1)}
columns = [(session, 2 * c) for session, many in ((sessions[0], 3),) for c in range(many)]
columns += [(session, 0) for session in sessions[1:4]]

fig, axes = plt.subplots(2, len(columns), figsize=(5.4, 2.8), squeeze=False)
for place, (session, first_class) in enumerate(columns):
    for row, c in enumerate(session.classes[first_class : first_class + 2].tolist()):
        position = next(i for i in session.train.tolist() if int(labels[i]) == c)
        ax, words = axes[row, place], names[c].rsplit(" ", 1)
        ax.imshow(experiment.train.images[position].permute(1, 2, 0).squeeze().numpy(), cmap="gray")
        for line, word in enumerate(words):
            new = word not in base_parts
            style = {"color": PALETTE[1], "weight": "bold"} if new else {"color": "black"}
            height = 1.03 + 0.18 * (len(words) - 1 - line)
            ax.text(0.5, height, word, transform=ax.transAxes, ha="center", fontsize=8.5, **style)
    if place in (1, *range(3, len(columns))):
        title = f"session {session.number}" + (", the base session" if place == 1 else "")
        axes[0, place].set_title(title, fontsize=10, pad=26)
for ax in axes.flat:
    ax.set_axis_off()
save_figure(fig, P.run_dir, "sessions")

# %% [markdown]
# Each image puts a garment or shoe from Fashion-MNIST {cite}`xiao2017fashion` and a handwritten digit from MNIST
# {cite}`lecun1998mnist` on one canvas. A class is a pair, such as "Sneaker 7". The base classes show eight of the ten
# garments and eight of the ten digits, and **every new class has a garment or a digit that no base class has**. That
# matters: a network that knew all the parts could tell the new classes apart without learning anything. The
# [evidence](chap-fcl-evidence) tries both kinds.
#
# ## Pilot study: stand still, or forget
#
# Before any method, look at the problem itself. A small ResNet18 {cite}`he2016resnet` turns an image into a vector, its
# *embedding*; a linear classifier sits on top. Both are trained on the base session as usual.

# %%
from functools import partial

from experiments.run.parallel import parallel_map

first = P.seeds[0]
in_parallel = partial(parallel_map, device=experiment.device)
plain = in_parallel(experiment.train_plain, P.seeds, "plain training")

# %% [markdown]
# The linear classifier has no row for a new class. So from now on an image belongs to the class with the nearest
# **prototype**: the mean embedding of the training images of that class. Should the network itself go on learning? The
# two extremes:
#
# - **frozen**: no weight changes after the base session. The network forgets nothing and learns nothing.
# - **fine-tuning**: the last four convolutions go on learning from the new images, six gradient steps a session.
#
# `run_arms` takes such an arm through all sessions. It also notes which share of the weights a box *held*, that is, moved
# back inside at least once. A run whose loss becomes NaN ends early.

# %%
arms = {"ncm": ("ncm", plain), "finetune": ("finetune", plain)}
results = []


def run_arm(case):
    """Accuracies after each session of one arm with one seed, in percent."""
    name, seed = case
    method, networks = arms[name]
    learner, found, _ = experiment.run_method(method, networks[seed], seed, {})
    region = getattr(learner, "region", None)
    held = 100 * region.share_clamped() if region else None
    known = {"method": name, "seed": seed}
    return [known | row | {"held": held} for row in found.rows]


# %%
def run_arms(names):
    """Add the rows of some arms, for all seeds, to `results`."""
    cases = [(name, seed) for name in names for seed in P.seeds]
    for rows in in_parallel(run_arm, cases, "sessions").values():
        results.extend(rows)


run_arms(["ncm", "finetune"])

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Two panels, base classes and new classes: accuracy after each session of the frozen network and of fine-tuning, a faint line for each seed and a bold one for the mean.", "classes": "chart"}, "figure": {"name": "fig-fcl-forgetting", "caption": "Accuracy on base classes (left) and on new classes (right) after each session. Bold: mean over seeds. Faint: single seeds. Test images, this run."}}
both = pd.DataFrame(results)
fig, axes = plt.subplots(1, 2, figsize=(5.4, 2.9), sharey=True)
for ax, group in zip(axes, ("base", "new"), strict=True):
    wide = both.astype({f"{group}_accuracy": float}).pivot_table(
        index="session", columns=["method", "seed"], values=f"{group}_accuracy"
    )
    means = {name: wide[name].mean(axis=1) for name in ("ncm", "finetune") if name in wide}
    upper = max(means, key=lambda name: means[name].iloc[-1])
    for name, mean in means.items():
        color = style_for(name)["color"]
        ax.plot(wide[name], color=color, alpha=0.3, linewidth=1)
        ax.plot(mean, color=color, linewidth=2.5)
        word = {"ncm": "frozen", "finetune": "fine-tuning"}[name]
        away = (0, 9) if name == upper or mean.iloc[-1] < 15 else (-4, -20)
        ax.annotate(word, (mean.index[-1], mean.iloc[-1]), away, color=color,
                    textcoords="offset points", ha="right")  # fmt: skip
    ax.set(title=f"{group} classes", xlabel="session", ylim=(0, 100))
axes[0].set_ylabel("accuracy (%)")
save_figure(fig, P.run_dir, "forgetting")

# %% [markdown]
# When learning something new makes the base accuracy collapse, that is *catastrophic forgetting* {cite}`mccloskey1989`. Not all of
# the fall is forgetting: the more classes there are to choose from, the harder the test, for the frozen network as
# well. On the right, the distance between the curves is the difference that learning makes.
#
# ## The idea: a place where small changes do no harm
#
# Can a network learn a little without forgetting? Look at one single weight and a made-up loss with two valleys.

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "A curve with a narrow valley on the left and a wide one on the right. A shaded strip of the same width around each minimum is labelled sharp and flat. A dashed, smoothed curve is lowest in the wide valley.", "classes": "chart"}, "figure": {"name": "fig-fcl-box", "caption": "Two minima with a box of the same half-width around each. The dashed line is the mean loss over the box around each point. The curves are a formula, not a measurement."}}
w = torch.linspace(-2, 2.6, 800)


def toy(weight):
    """A narrow valley at -1 and a wide one, a little less deep, at 1."""
    narrow, wide = torch.exp(-((weight + 1) ** 2) / 0.03), torch.exp(-((weight - 1) ** 2) / 0.6)
    return 1 - 1.05 * narrow - wide


half = 0.35
smooth = torch.stack([toy(w + shift) for shift in torch.linspace(-half, half, 101)]).mean(dim=0)

fig, ax = plt.subplots(figsize=(5.4, 2.8))
ax.plot(w, toy(w), label="loss")
ax.plot(w, smooth, linestyle="--", label="mean over the box")
for centre, word in ((-1, "sharp"), (1, "flat")):
    ax.axvspan(centre - half, centre + half, alpha=0.12, color="black")
    ax.text(centre, 1.08, word, ha="center")
ax.set(xlabel="weight", ylabel="loss", ylim=(-0.15, 1.55))
ax.legend(loc="upper center", ncols=2)
save_figure(fig, P.run_dir, "box")

# %% [markdown]
# In the sharp valley a small step already costs a lot: later sessions must not move, or they forget. In the flat one they
# may move anywhere in the box, and the old loss hardly changes. To *find* the flat valley, minimise the dashed line
# instead of the solid one. That is easy: add random noise to the weights while training.
#
# ```{prf:definition} $b$-flat local minimum, thesis, Definition 3.1, in words
# :label: def-flat
# $\theta^\star$ is a $b$-flat local minimum of a loss if inside the box $[\theta^\star-b,\theta^\star+b]$ the
# loss differs from its value at $\theta^\star$ by no more than a small $e$ and its gradients are
# small, and outside of it the loss is higher.
# ```
#
# ## The method, written out
#
# ### Step one, in the base session: train under noise
#
# For each batch draw noise $\epsilon_1,\dots,\epsilon_M$ with entries between $-b$ and $b$, add it to the last
# convolutions $\phi$, and minimise the mean over the draws of
#
# ```{math}
# :label: eq-base-loss
# L_{\text{base}}(\phi+\epsilon_j)=\text{cross-entropy}(\phi+\epsilon_j)
# +\lambda\,\frac1{|C|}\sum_{c\in C}\lVert p_c-p_c^{\star}\rVert^2 .
# ```
#
# The second term is *prototype fixing*. When the base images are gone, base prototypes cannot be computed again, so they
# must stay right as the weights move. $p_c$ and $p_c^\star$ are the prototypes of the classes $C$ in the batch without and
# with noise. These are equations (3.5) and (3.6) of the thesis. In plain PyTorch:

# %%
from torch.func import functional_call
from torch.nn import functional as F


def prototypes_of(embeddings, labels):
    """The mean embedding of each class, in sorted order."""
    means = [embeddings[labels == c].mean(dim=0) for c in labels.unique()]
    return torch.stack(means)


def noisy_step(network, classifier, tuned, images, labels, rng):
    """Leave in `.grad` what one step of the base session needs."""
    b, total, still = P.noise_bound, 0, prototypes_of(network(images), labels)
    for _ in range(P.noise_draws):
        noisy = {}
        for name, weight in tuned.items():
            noise = torch.empty(weight.shape).uniform_(-b, b, generator=rng)
            noisy[name] = weight + noise.to(weight)
        embeddings = functional_call(network, noisy, images)
        moved = prototypes_of(embeddings, labels)
        shift = (still - moved).square().sum(dim=1).mean()
        loss = F.cross_entropy(classifier(embeddings), labels)
        total = total + (loss + P.prototype_weight * shift) / P.noise_draws
    total.backward()


# %% [markdown]
# `functional_call` runs the network with other weights and leaves its own alone. So each gradient is taken at
# $\phi+\epsilon_j$ and applied at $\phi$. Does `ktlib` compute the same? Here are two equal networks, the same batch and
# the same noise, in double precision so that rounding is no excuse:

# %%
from ktlib.fcl import f2m_loss
from ktlib.seeding import generator


def fresh():
    """An untrained network and classifier, the same at every call."""
    split, classifier = experiment.new_network(first)
    split.network.to("cpu", torch.float64)
    return split, classifier.to("cpu", torch.float64)


images, targets = (part[::20][:64].cpu() for part in experiment.base_data(first))
batch = images.double(), targets
(mine, my_head), (theirs, their_head) = fresh(), fresh()
noisy_step(mine.network, my_head, mine.tuned, *batch, generator(first, "check"))
f2m_loss(
    theirs, their_head, *batch, generator=generator(first, "check"), bound=P.noise_bound,
    draws=P.noise_draws, prototype_weight=P.prototype_weight,
).total.backward()  # fmt: skip
pairs = zip(mine.network.parameters(), theirs.network.parameters(), strict=True)
for my_weight, their_weight in pairs:
    torch.testing.assert_close(my_weight.grad, their_weight.grad, rtol=1e-9, atol=1e-12)

# %% [markdown]
# The cell ends without an error, so it does. `f2m_loss` is merely faster: everything in front of the noisy layers runs
# once a batch and not once a draw.
#
# ### Step two, in every later session: learn inside the box
#
# With the embedding $f(x;\phi)$ of an image, the loss of a later session is a softmax over distances to the prototypes of
# all classes seen, equation (3.7):
#
# ```{math}
# :label: eq-few-shot
# L(x,y)=-\log\frac{\exp(-\lVert f(x;\phi)-p_y\rVert)}{\sum_c\exp(-\lVert f(x;\phi)-p_c\rVert)} .
# ```
#
# The prototypes of base classes are the saved ones. After the gradient step, each weight that has left the box
# $[\phi^\star-b,\,\phi^\star+b]$ is put back on its wall. The centre $\phi^\star$ is where the base session ended, in
# all sessions: a box that moved along with the weights would hold nothing. (The thesis gives noise and box the same $b$;
# here each has its own.)


# %%
def few_shot_step(network, tuned, centre, images, labels, base_prototypes):
    """One step on the images of new classes, then back into the box."""
    embeddings = network(images)
    prototypes = torch.cat([base_prototypes, prototypes_of(embeddings, labels)])
    targets = len(base_prototypes) + labels.unique(return_inverse=True)[1]
    loss = F.cross_entropy(-torch.cdist(embeddings, prototypes), targets)
    gradients = torch.autograd.grad(loss, list(tuned.values()))
    with torch.no_grad():
        for (name, weight), gradient in zip(tuned.items(), gradients, strict=True):
            weight.sub_(P.session_lr * gradient)
            weight.clamp_(centre[name] - P.box, centre[name] + P.box)


# %% [markdown]
# Again, compare it with `ktlib`, on the network trained above and the images of the first new classes:

# %%
import copy

from ktlib.fcl import FlatRegion, embed, learn_session

trained, new = plain[first][0], sessions[1].train
base_images, base_labels = experiment.base_data(first)
base = prototypes_of(embed(trained.network, base_images), base_labels).cpu().double()
images, targets = experiment.images[new].cpu().double(), experiment.labels[new].cpu()
mine, theirs = copy.deepcopy(trained), copy.deepcopy(trained)
for split in (mine, theirs):
    split.network.to("cpu", torch.float64).eval()

region = FlatRegion(theirs.tuned, P.box)
few_shot_step(mine.network, mine.tuned, region.center, images, targets, base)
learn_session(theirs, region, images, targets, base, sessions[0].classes, epochs=1, lr=P.session_lr)
for name, weight in mine.tuned.items():
    torch.testing.assert_close(weight, theirs.tuned[name], rtol=0, atol=1e-12)

# %% [markdown]
# From here on `ktlib` does it: six such steps a session, on the new images and on the five kept of each earlier new
# class. One detail is left, *prototype normalisation*: before the nearest prototype is looked for, all are scaled to one
# length, as means of five images differ in length from means of many. That is the whole method.
#
# ## Is the minimum flat?
#
# Now train under noise, for the same seeds. It starts from the same weights and sees the same batches as plain
# training; only the loss differs.

# %%
flat = in_parallel(experiment.train_f2m, P.seeds, "F2M training")

# %% [markdown]
# To measure how flat a minimum is, draw many points of the box at random and look at the loss at each. The **flatness
# indicator** of the thesis is the mean squared change,
#
# ```{math}
# :label: eq-flatness
# I=\frac1n\sum_{i=1}^{n}\big(L_i-L^\star\big)^2 ,
# ```
#
# where $L^\star$ is the loss at the minimum. Small is flat. Both networks of a seed get the same points and images.


# %%
def measure(seed):
    """Flatness of both networks of one seed, in the box of the noise."""
    together = experiment.flatness_together(
        {"ncm": plain[seed], "f2m": flat[seed]}, seed, ["test"],
        bound=P.noise_bound, draws=P.flatness_draws, images=P.flatness_images,
    )  # fmt: skip
    numbers = ("indicator", "variance", "loss_at_minimum")
    return [
        {"method": method, "seed": seed, "split": part,
         "bound": P.noise_bound, "draws": P.flatness_draws}
        | {name: getattr(found, name) for name in numbers}
        for (method, part), found in together.items()
    ]  # fmt: skip


measured = in_parallel(measure, P.seeds, "flatness")
record.table("flatness", [row for rows in measured.values() for row in rows])
indicator = record.frame("flatness").pivot_table("indicator", "seed", "method")
ratio = indicator["ncm"] / indicator["f2m"]
agree = "flatter" if ratio.min() > 1 else "sharper" if ratio.max() < 1 else "not flatter"
glue("fcl-flat", f"{agree} in every seed", display=False)
glue("fcl-ratio", f"{ratio.min():.2f} to {ratio.max():.2f}", display=False)

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Flatness indicator on a logarithmic axis: a point a seed for plain training on the left and for training under noise on the right, joined by lines.", "classes": "chart"}, "figure": {"name": "fig-fcl-flatness", "caption": "Flatness indicator on test images in the box of the noise; lower is flatter. A line joins the two trainings of one seed. This run."}}
fig, ax = plt.subplots(figsize=(4.2, 2.6))
ax.plot([0, 1], indicator[["ncm", "f2m"]].T, color="0.6", linewidth=1)
for place, method in enumerate(("ncm", "f2m")):
    ax.plot([place] * len(indicator), indicator[method], "o", color=style_for(method)["color"])
ax.set_xticks([0, 1], ["plain training", "training under noise"])
ax.set(yscale="log", xlim=(-0.5, 1.5), ylabel="flatness indicator")
if indicator.to_numpy().min() > 0:
    ax.set_ylim(indicator.to_numpy().min() / 3, 3 * indicator.to_numpy().max())
save_figure(fig, P.run_dir, "flatness")

# %% [markdown]
# In this run the minimum found under noise is {glue:text}`fcl-flat`: the indicator of plain training is
# {glue:text}`fcl-ratio` times as large. A ratio of 1 would mean that the noise did nothing. The
# [evidence](chap-fcl-evidence) tests claims about the noise only from 1.5 on; {ref}`an exercise <ex-fcl-wide>` tries
# more noise.
#
# ## The sessions: what the noise did, and what the box did
#
# Three more arms, at the same learning rate. The last two each leave out one half of the method.
#
# - **F2M**: trained under noise, and every session stays in the box;
# - **noise, no box**: the same network without the box;
# - **box, no noise**: the plain network in the same box.

# %%
arms["f2m"] = ("f2m", flat)
arms["f2m unclamped"] = ("finetune", flat)
arms["finetune in box"] = ("f2m", plain)
run_arms(["f2m", "f2m unclamped", "finetune in box"])
record.table("session_accuracy", results)

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "One row per arm, accuracy to the right: circles for all classes, squares for base classes, triangles for new classes, one marker a seed, and a bar at each mean.", "classes": "chart"}, "figure": {"name": "fig-fcl-arms", "caption": "Accuracy after the last session, a marker a seed; the bars are means. Test images, this run."}}
words = {"ncm": "frozen", "finetune": "fine-tuning", "f2m": "F2M: noise and box",
         "f2m unclamped": "noise, no box", "finetune in box": "box, no noise"}  # fmt: skip
last = pd.DataFrame(results).query("session == session.max()")
fig, ax = plt.subplots(figsize=(5.4, 3.1))
groups = (("base", "base_accuracy", "s"), ("new", "new_accuracy", "^"), ("all", "accuracy", "o"))
for number, (group, column, marker) in enumerate(groups):
    for place, name in enumerate(words):
        values = last.loc[last["method"] == name, column].astype(float)
        height, label = place + 0.22 * (number - 1), f"{group} classes" if not place else None
        color = PALETTE[(1, 2, 0)[number]]
        ax.plot(values, [height] * len(values), marker, color=color, alpha=0.45, label=label)
        ax.plot(values.mean(), height, "|", color=color, markersize=13, markeredgewidth=2.5)
ax.set_yticks(range(len(words)), words.values())
ax.set(ylim=(len(words) - 0.5, -0.5), xlim=(-2, 100), xlabel="accuracy (%)")
fig.legend(loc="outside upper right", ncols=3)
save_figure(fig, P.run_dir, "arms")

# %% [markdown]
# The fair comparison is *within* seeds: the same images, the same initial weights. `difference` takes the mean of the
# differences and its 95 % interval. `told` chooses the words: the interval lies above zero, holds zero, or lies below.

# %%
from experiments.run.paired import PairedDifference


def told(one, other, words, value="accuracy"):
    """The words for better, unclear or worse, and the numbers they follow from."""
    rows = pd.DataFrame(results).query("session == session.max()")
    gain = PairedDifference.between(rows, "method", one, other, value)
    return f"{words[(gain.low > 0) - (gain.high < 0)]}: {gain}."


# %%
pays = {1: "The box pays", 0: "Undecided", -1: "The box costs accuracy"}
noise = {key: words.replace("box", "noise") for key, words in pays.items()}
still = {1: "F2M is ahead", 0: "Undecided", -1: "F2M is behind"}
held = pd.DataFrame(results).query("method == 'f2m'")["held"].mean()
glue("fcl-held", float(held), display=False)
glue("fcl-box", told("f2m", "f2m unclamped", pays), display=False)
glue("fcl-noise", told("f2m", "finetune in box", noise), display=False)
glue("fcl-still-all", told("f2m", "ncm", still), display=False)
for group in ("base", "new"):
    words = told("f2m", "ncm", still, f"{group}_accuracy")
    glue(f"fcl-still-{group}", words, display=False)

# %% [markdown]
# After the last session of this run, on all classes unless it says otherwise:
#
# - F2M against the same network without the box. {glue:text}`fcl-box`
# - F2M against the plain network in the same box. {glue:text}`fcl-noise`
# - F2M against the frozen network. {glue:text}`fcl-still-all`
# - The same on base classes. {glue:text}`fcl-still-base`
# - The same on new classes. {glue:text}`fcl-still-new`
#
# Did the box do anything at all? It held {glue:text}`fcl-held:.1f` % of the tuned weights. If that were zero, the run with the
# box would *be* the run without, and its accuracy would say nothing about boxes.
#
# The last three lines belong together. New classes are paid for with old ones, and most test images are of old classes. So
# two networks can be equally good on all classes and very different in what they know.
#
# ## The long run
#
# A few seeds at one learning rate are a demonstration. The long run has more seeds, more test images, and several learning
# rates, boxes and strengths of noise. Its record is kept with the project; what follows is computed from it.

# %%
from experiments.fcl import figures
from experiments.fcl.claims import NOISY_BOX, UNSEEN, claims
from experiments.run.results import committed_record

full = committed_record("fcl_evidence", "full")
print(f"The long run: {len(full.seeds)} seeds" if full else "There is no long record yet.")
found = {claim.claim: claim for claim in claims(full)} if full else {}

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Three heat maps, one for each strength of the noise: accuracy above the frozen network for each learning rate and each half-width of the box, written as numbers.", "classes": "photo"}, "figure": {"name": "fig-fcl-long", "caption": "Long run, new classes with unseen parts: accuracy on all classes after the last session, in points above the frozen plain network, for each learning rate (rows) and half-width of the box (columns). Below it, the share of the weights that the box held. Mean over seeds."}}
if full:
    save_figure(figures.plane_figure(full.frame("plane"), "unseen_parts"), P.run_dir, "long")

# %% [markdown]
# *Down* a column of the picture the steps get longer. *To the right* the box gets wider, up to no box at all. From one
# *panel* to the next the noise gets stronger. Look for the cells where the share of weights held is zero: there the box
# cannot matter.
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


glue("fcl-long", answer(NOISY_BOX), display=False)
questions = {
    "New parts: does F2M beat the frozen network?": f"{UNSEEN} F2M beats the frozen network",
    "Only known parts: does it?": "F2M beats the frozen network",
    "New parts: does the narrow box pay, at the learning rate of the thesis?": NOISY_BOX,
    "New parts: does the noise pay, inside the narrow box?":
        f"{UNSEEN} training under noise pays inside the narrow box",
    "New parts, many images of each: does the narrow box cost accuracy on new classes?":
        "With many images a narrow box costs accuracy on new classes (unseen parts)",
}  # fmt: skip
Markdown("\n".join(f"- **{question}** {answer(claim)}" for question, claim in questions.items()))

# %% [markdown]
# Each answer follows from the record by a fixed rule. *Not tested* means that the mechanism did not act, such as a box
# that held nothing or noise that made nothing flatter, or that there is no interval. The rules, all other methods and
# every claim of the thesis are in [the evidence](chap-fcl-evidence).
#
# ## Where it stops: what is proved, and what is not
#
# ```{prf:theorem} Convergence, thesis, Theorem 3.1
# :label: thm-f2m
# Let $R(\theta)=\mathbb E_{z,\epsilon}\,L(z;\phi+\epsilon,\psi)$ be bounded below, twice differentiable and
# $L$-smooth, let $\lVert\nabla R\rVert^2$ be smooth as well, let the stochastic gradient be unbiased with a variance of at most
# $m_1+m_2\lVert\nabla R\rVert^2$, and let $\sum_k\alpha_k=\infty$ and $\sum_k\alpha_k^2<\infty$. Then
# $\lim_{k\to\infty}\mathbb E\lVert\nabla R(\theta_k)\rVert^2=0$.
# ```
#
# In words: training under noise ends where the *averaged* loss $R$ has no slope.
#
# - **Not proved: that the point is flat.** {prf:ref}`thm-f2m` does not say that it is a minimum, nor that it is $b$-flat
#   in the sense of {prf:ref}`def-flat`. Flatness has to be measured, as above.
# - **Not proved: anything about later sessions.** That a network learns well inside a box is an idea, tested by experiment.
# - **Not covered: the steps used in practice**, whose learning rates do not have these two sums. The printed proof has
#   gaps as well; {ref}`proof-fcl` goes through it line by line and repairs it.
# - **One data set, one small network.** The images are real but simple. Weights of another size need another box.
#
# ## Exercises
#
# ```{exercise}
# :label: ex-fcl-wall
# *On paper.* A weight has the gradient $0.002$ in every step. There are seven sessions of six steps, and the box has the half-width
# $0.001$. From which learning rate on does the weight reach the wall? Is that above or below the 0.02 of the thesis?
# ```
#
# ````{solution} ex-fcl-wall
# :class: dropdown
# After 42 steps the weight has moved by $42\cdot0.002\,\alpha=0.084\,\alpha$. It reaches the wall if
# $\alpha\ge0.001/0.084\approx0.012$, which is below 0.02. In a box of half-width $0.01$ it would take ten times that rate, which is
# above. The box and the learning rate are one choice, not two.
# ````
#
# ```{exercise}
# :label: ex-fcl-norm
# *On paper.* Prototypes $p_1=(3,0)$ and $p_2=(0.6,0.8)$, embedding $f=(1.2,0.5)$. Which class is nearest without and
# with prototype normalisation? Check with `nearest_class_mean` and `normalise_prototypes` of `ktlib.fcl`.
# ```
#
# ````{solution} ex-fcl-norm
# :class: dropdown
# The squared distances are $1.8^2+0.5^2=3.49$ and $0.6^2+0.3^2=0.45$: class 2. Normalised, $p_1$ is $(1,0)$ and
# $p_2$ stays as it is; now they are $0.2^2+0.5^2=0.29$ and $0.45$: class 1. A long prototype is far from everything.
# ````
#
# ```{exercise}
# :label: ex-fcl-variance
# *On paper.* Uniform noise from $[-b,b]$ has the variance $b^2/3$. What is it for five equally likely levels from $-b$ to
# $b$? Which of the two is the stronger noise? Check with `noise_variance` of `ktlib.fcl`.
# ```
#
# ````{solution} ex-fcl-variance
# :class: dropdown
# The levels are $-b,-b/2,0,b/2,b$, and the mean of their squares is $\frac15(1+\frac14+0+\frac14+1)\,b^2=b^2/2$. Five levels are the stronger noise.
# ````
#
# ```{exercise}
# :label: ex-fcl-bound
# *Change a parameter.* With `-p noise_bound 0.0` there is no noise. Which two rows of {numref}`fig-fcl-arms` should now agree? Do
# they, in every digit? If not, what else has to be switched off?
# ```
#
# ````{solution} ex-fcl-bound
# :class: dropdown
# *F2M* and *box, no noise*; they agree *nearly*. All draws are the same point and no prototype shifts, but batch norm counts every
# pass: its running statistics are updated once for each draw, and once more for the prototypes without noise. With
# `-p noise_draws 1 -p prototype_weight 0.0` as well there is one pass, and the rows agree in every digit.
# ````
#
# ```{exercise}
# :label: ex-fcl-wide
# *Change a parameter.* Run with `-p noise_bound 0.04`. How many times flatter is the minimum now, in this wider box? And what does
# the noise do for the accuracy?
# ```
#
# ````{solution} ex-fcl-wide
# :class: dropdown
# The ratio below {numref}`fig-fcl-flatness` tells how much the noise did, and the second bullet below {numref}`fig-fcl-arms` what it bought. Look
# at session 1 as well: a network that must be right at every point of a wide box may be less right at its centre. Flatter
# does not mean more accurate.
# ````
#
# ```{exercise}
# :label: ex-fcl-random
# *Change a parameter.* With `-p class_split random` a new class is a new *combination* of a garment and a digit that base classes have
# shown. Which arm should come out ahead? Predict, then run.
# ```
#
# ````{solution} ex-fcl-random
# :class: dropdown
# The frozen network already has features for every part, so learning has little to add and much to spoil: it should be hard to beat. What
# becomes of that with more images per class, the [evidence](chap-fcl-evidence) shows.
# ````
#
# ```{exercise}
# :label: ex-fcl-own
# *Write code.* Measure the flatness of a network that was never trained. Is a small indicator a sign of a good network?
# ```
#
# ```{solution-start} ex-fcl-own
# :class: dropdown
# ```

# %%
untrained = experiment.new_network(first)
sample = {"draws": 20, "images": P.flatness_images}
own = experiment.flatness(untrained, first, "test", bound=P.noise_bound, **sample)
print(f"loss {own.loss_at_minimum:.2f}, indicator {own.indicator:.1e}")

# %% [markdown]
# Compare both numbers with those of the trained networks. A loss can be high and flat: flatness counts only together with
# the loss.
#
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-fcl-origin
# *Write code.* Who pays for the last session: the base classes, or the new classes of earlier sessions? Print the accuracy of F2M after
# each session, for the classes of each earlier one.
# ```
#
# ```{solution-start} ex-fcl-origin
# :class: dropdown
# ```

# %%
_, run, _ = experiment.run_method("f2m", flat[first], first, {})
matrix = pd.DataFrame(run.by_origin).pivot_table("accuracy", "origin", "session")
matrix.round(0).astype(object).fillna("")

# %% [markdown]
# Read along a row: what became of the classes of one session as others were added. The same table of the frozen network
# tells how much of a fall is not forgetting.
#
# ```{solution-end}
# ```
#
# ## Summary
#
# - A frozen network learns nothing new; fine-tuning with long steps can forget what is old.
# - F2M is two short pieces of code: train under weight noise, then clamp every later step to a box.
# - Test the halves apart: the same network without the box, and the plain network in the box. What each is worth, in this
#   run and in the long one, stands above with its interval.
# - A box or a noise that did nothing gets no praise and no blame. The frozen network belongs in every comparison.
#
# ## Further reading
#
# [The evidence](chap-fcl-evidence) has all methods, every setting, and every claim; {ref}`proof-fcl` is the proof. The paper
# {cite}`shi2021f2m`, the thesis {cite}`shi2025thesis`, why flat minima were looked for first
# {cite}`hochreiter1997flat`, another way to find them {cite}`foret2021sam`, and how to draw what is around them {cite}`li2018landscape`.

# %%
path = record.save(P.run_dir)
print(f"Record with {len(record.tables)} tables; saved: {path is not None}")
