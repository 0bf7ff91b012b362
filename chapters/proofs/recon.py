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
#     uses: [mtl, ktlib/fcl, models/resnet, models/weights]
#     data: [pairs]
# ---

# %% [markdown]
# (proof-recon)=
# # Does splitting conflict layers lower the loss? The proof, line by line
#
# **The question.** Recon {cite}`shi2023recon`, the method of {ref}`chap-recon`, finds the layers in which the gradients of several
# tasks point against each other, and gives each task a copy of its own of these layers. A theorem says that after one step of
# gradient descent the network with the copies has a lower loss than the shared one. What exactly is proved, from which
# assumptions, and is it a reason to split *conflict* layers rather than others?
#
# The theorem is true, and this page proves it in full. Each step is checked by algebra or by numbers, and a box, called an *erratum*, says where
# the page departs from the thesis {cite}`shi2025thesis` and why. The last part of the question has a surprising answer.
#
# **After this chapter you can**
#
# - name for each assumption of the theorem a case where it holds and one where it fails,
# - predict from the task gradients by how much a split changes the loss after a small step, and check that on a real network,
# - say why the condition of the theorem is about the lengths of gradients as much as about conflict,
# - say which version of the theorem does single out conflict layers, and what one step does *not* tell.
#
# **Before you start.** You should know gradients, inner products and the first-order Taylor expansion. The page can be read
# without the chapter on the method; the [notation page](../../notation.md) has the symbols.
#
# **Time to run.** About 1 minute on two CPU cores; the [execution page](../../execution.md) has the
# time of the run that you are reading. To run it again: `make book`.

# %% tags=["parameters"]
profile = "cpu"  # name of this set of values, noted in the record
run_dir = ""  # folder for result.json and figures; "" writes nothing
device = "auto"  # auto, cpu, cuda or mps: trains the network; steps are measured in float64
precision = "float32"  # auto, float32 or bfloat16; the training is float32
seeds = [0, 1, 2]  # one repetition each: weights, images, batches; the thesis runs no experiment
images = 2000  # training images of the network
width = 8  # channels of the first ResNet18 stage; the thesis: 64
stem_stride = 3  # stride of the first convolution; the thesis: 2
epochs = 4  # epochs of joint training before the measurement
batch_size = 64  # images per batch of the training; not stated in the thesis
lr = 0.05  # first learning rate of the training; not stated in the thesis
measured_images = 64  # images behind every measured loss and gradient
layers_per_set = 10  # layers K that become task-specific; authors' code: 25
step_sizes = [0.1, 0.01, 0.001, 0.0001, 0.00001, 0.000001]  # rates alpha of the measured step
trials = 20000  # random sets of gradients
repetitions = 200  # simulated pairs of linear tasks per seed
steps = 300  # steps of gradient descent on the linear tasks

# %% tags=["setup"]
from experiments.mtl.proof import ReconProofParameters
from experiments.run.parameters import check_parameters

P = check_parameters(globals(), ReconProofParameters)

# %%
import matplotlib.pyplot as plt
import pandas as pd
import sympy as sp
import torch
from myst_nb import glue

import data_prep as data
from experiments.run.plotting import save_figure, use_style
from experiments.run.results import RunRecord
from ktlib.device import choose_device
from ktlib.seeding import deterministic, generator

use_style()
deterministic()
device = choose_device(P.device)
record = RunRecord.start("proofs/recon", P, data=data.checksums("pairs"))

# %% [markdown]
# ## What is claimed
#
# There are $T\ge2$ tasks with losses $L_1,\dots,L_T$. The parameters of the shared network at some moment are $\theta$. They
# consist of the layers $k=1,\dots,n$ of a common trunk, and of a head for each task. Recon chooses a set $P$ of layers of the trunk and gives
# each task a copy of them. So there are three parts, and the gradient $g_i=\nabla L_i(\theta)$ of task $i$ has three parts as well:
#
# - $g_i^{(k)}$ for $k\in P$, the layers that are split,
# - $g_i^{\mathrm{fix}}$, all layers of the trunk that stay shared,
# - $g_i^{\mathrm{ts}}$, the head of task $i$, which belongs to one task in both networks.
#
# Two networks make one step of gradient descent with rate $\alpha$ from the same point. With weights $w_j$, the **shared** step ends at
# $\theta^{\mathrm{sh}}$ and the **split** step at $\theta^{\mathrm{sp}}$:
#
# ```{math}
# :label: eq-recon-proof-steps
# \begin{aligned}
# \text{both networks, layers that stay shared:}&\quad -\alpha\sum_jw_j\,g_j^{\mathrm{fix}},\\
# \text{both networks, head of task }i\text{:}&\quad -\alpha\,g_i^{\mathrm{ts}},\\
# \text{shared network, layer }k\in P\text{:}&\quad -\alpha\sum_jw_j\,g_j^{(k)},\\
# \text{split network, copy of task }i\text{ of layer }k\in P\text{:}&\quad -\alpha\,g_i^{(k)} .
# \end{aligned}
# ```
#
# The summed loss of a network is $\sum_iL_i$, each loss taken at the parameters that task $i$ uses. The angle between two gradients in layer $k$ has the cosine
#
# $$\cos_{ij}^{(k)}=\frac{\langle g_i^{(k)},g_j^{(k)}\rangle}{\lVert g_i^{(k)}\rVert\lVert g_j^{(k)}\rVert} ,$$
#
# and two tasks **conflict** in layer $k$ where it is negative (4.2).
#
# ```{prf:theorem} One step of Recon
# :label: thm-proof-recon
# Let $P$ be any non-empty set of layers. Under {prf:ref}`ass-recon-smooth` to {prf:ref}`ass-recon-norms` there is an $\alpha_0>0$ such that for all
# $0<\alpha<\alpha_0$
#
# $$\sum_iL_i(\theta^{\mathrm{sp}})<\sum_iL_i(\theta^{\mathrm{sh}}) .$$
# ```
#
# It is Theorem 4.1 of the thesis, where $P$ is the set of conflict layers. That $P$ may be *any* set is no addition of this page: the proof uses
# nothing else. Here come the four assumptions, with a case where each holds and one where it fails, and the meaning of $\alpha_0$.
#
# They are tried out on tasks with prescribed gradients, $L_i(v)=\langle g_i,v\rangle+\frac c2\lVert v\rVert^2$ at $v=0$, the **bench** of this page.
# `measured_slopes` makes both steps and returns the difference *split minus shared* of the summed losses, divided by $\alpha$. Below zero, the
# split network is ahead.

# %%
from experiments.mtl.proof import SharedPoint, condition_holds, cosines, point_with_gradients, slope

half = torch.tensor([0.5, 0.5], dtype=torch.float64)
ones = torch.ones(2, dtype=torch.float64)


def bench(*gradients, curvature=1.0):
    """Tasks with these gradients in their only common layer."""
    return point_with_gradients(
        {"layer": torch.tensor(gradients, dtype=torch.float64)}, curvature=curvature
    )


def measured(point, alpha, weights=half):
    return point.measured_slopes(alpha, weights, {"P": ["layer"]})["P"]


# %% [markdown]
# ## The assumptions
#
# ```{prf:assumption} Differentiable losses
# :label: ass-recon-smooth
# Every $L_i$ is differentiable at the point $\theta$.
# ```
#
# Only at this one point: no smoothness around it is needed. *Holds* almost everywhere for networks with ReLU, whose kinks fill no
# volume. *Fails* in a kink. Take one weight at $0$, $L_1=2r(w)+w$ and $L_2=-w/2$. With $r(w)=|w|$ the "gradient" that
# PyTorch reports at $0$ is $1$; it conflicts with that of $L_2$, so everything else is as the theorem wants it. Yet the split network is *worse*,
# however small the step. With the smooth $r(w)=w^2$ the gradients are the same, and the theorem is right.

# %%
for name, r in {"|w|": torch.abs, "w^2": torch.square}.items():
    kinked = SharedPoint(
        [lambda v, r=r: (2 * r(v["w"]) + v["w"]).sum(), lambda v: -v["w"].sum() / 2],
        {"w": torch.zeros(1, dtype=torch.float64)},
        {"layer": ["w"]},
    )
    predicted = kinked.predicted_slope(half, ["layer"])
    print(f"{name:>4}: predicted {predicted:.3f}, measured {measured(kinked, 1e-6):.3f}")

# %% [markdown]
# ```{prf:assumption} Equal start
# :label: ass-recon-copies
# The copies of a split layer are equal to the shared layer before the step.
# ```
#
# *Holds* for copies that are made from the shared network in the middle of its training. *Fails* where each copy is drawn anew. For $L_1=\frac12(w-1)^2$ and
# $L_2=\frac12(w+1)^2$ with the shared weight $0$, copies drawn from the standard normal distribution often have a *higher* loss before any
# step, and a small step cannot repair that:

# %%
drawn = torch.randn((2, 100_000), generator=generator(P.seeds[0], "copies"))
drawn_loss = ((drawn[0] - 1) ** 2 + (drawn[1] + 1) ** 2) / 2
print(f"shared 1.00, copies {drawn_loss.mean():.2f} on average, above 1 in", end=" ")
print(f"{(drawn_loss > 1).float().mean():.0%} of the draws")

# %% [markdown]
# This matters, since Recon trains the modified network *from scratch*, and the released code draws the copies independently. Then
# the theorem describes no moment of that training. With equal copies it describes the first step only: after it they differ.
#
# ```{prf:assumption} Weights and steps
# :label: ass-recon-weights
# $w_j\ge0$, $\ \sum_jw_j=1$, and both networks step as in {eq}`eq-recon-proof-steps`.
# ```
#
# *Holds* for the mean of the gradients, $w_j=1/T$. *Fails* for the usual sum of losses, $w_j=1$. For two equal gradients the mean version says that
# splitting changes nothing to first order, and the sum version that splitting loses: the shared layer makes a step twice as long.

# %%
for name, weights in {"mean": half, "sum": ones}.items():
    print(f"{name:>4}: {measured(bench((1.0, 0.0), (1.0, 0.0)), 1e-6, weights):+.3f}")

# %% [markdown]
# The paper {cite}`shi2023recon` asks only for the sum; that no weight is negative is added here, since step 3 uses it. It is needed: two
# gradients at right angles satisfy the next assumption, and still the split network is worse with these weights.

# %%
negative = torch.tensor([1.5, -0.5], dtype=torch.float64)
print(f"{measured(bench((1.0, 0.0), (0.0, 0.5)), 1e-6, negative):+.3f}")

# %% [markdown]
# ```{prf:assumption} Condition (4.6)
# :label: ass-recon-norms
# For all ordered pairs $i\ne j$ of tasks and all layers $k\in P$:
#
# $$\cos_{ij}^{(k)}\lVert g_i^{(k)}\rVert<\lVert g_j^{(k)}\rVert .$$
# ```
#
# Multiplied by $\lVert g_j^{(k)}\rVert$ it reads $\langle g_i^{(k)},g_j^{(k)}\rangle<\lVert g_j^{(k)}\rVert^2$. That form is used below; it also says that no gradient is zero, without
# which there is no angle. *Holds* for conflicting gradients, whose left side is negative, and for others that are not too unequal. *Fails* where
# one gradient is aligned with another one and much shorter. In the table $g_1=(1,0)$, and the slope is the predicted difference per unit of $\alpha$, once with
# equal weights and once with $w_1=0.9$:

# %%
unequal = torch.tensor([0.9, 0.1], dtype=torch.float64)
cases = {
    "conflict": (-0.6, 0.8),
    "orthogonal": (0.0, 1.0),
    "aligned": (0.7, 0.7),
    "short": (0.4, 0.1),
}
rows = []
for name, second in cases.items():
    (gramian,) = bench((1.0, 0.0), second).gramians().values()
    row = {"second gradient": name, "cosine": float(cosines(gramian)[0, 1])}
    row |= {"(4.6)": bool(condition_holds(gramian)), "equal": float(slope(gramian, half))}
    rows.append(row | {"0.9 and 0.1": float(slope(gramian, unequal))})
pd.DataFrame(rows).style.hide(axis="index").format(precision=3)

# %% [markdown]
# Where the condition fails, in the last row, the conclusion fails with unequal weights: the slope is positive. With equal weights it holds all the same; erratum E2 says why.
#
# For two entries the condition can be drawn. Keep $g_1=(1,0)$ and let $g_2$ be any point of the plane:

# %%
side = torch.linspace(-1.25, 1.75, 301, dtype=torch.float64)
second = torch.cartesian_prod(side, side)
both = torch.stack([torch.tensor([1.0, 0.0]).double().expand_as(second), second], dim=1)
plane = condition_holds(both @ both.mT).double().reshape(301, 301).T  # rows: second entry

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "A plane with an arrow from the origin to the right, the first gradient. Grey are a disc that has the arrow as its diameter and all points to the right of the arrow's tip; everywhere else the condition holds. The left half of the plane, where the tasks conflict, is only a part of that. Three of the four marked points lie outside of the grey region.", "classes": "chart"}, "figure": {"name": "fig-recon-proof-plane", "caption": "Where the second gradient may lie, if the first one is the arrow: the condition (4.6) fails in the grey region and holds elsewhere, on both sides of the dotted line. Left of that line the tasks are in conflict. Crosses: the cases of the table. Computed from the condition, not from a run."}}
fig, ax = plt.subplots(figsize=(5.4, 4.2))
ax.contourf(side, side, plane, levels=[-0.5, 0.5, 1.5], colors=["0.8", "white"])
ax.axvline(0, color="black", linestyle=":", linewidth=1)
ax.annotate("", (1, 0), (0, 0), arrowprops={"arrowstyle": "-|>", "color": "C0", "linewidth": 2})
ax.text(0.5, -0.14, "$g_1$", color="C0", ha="center")
for name, (across, up) in cases.items():
    ax.plot(across, up, "x", color="C1", markersize=8, markeredgewidth=2)
    ax.text(across, up + 0.09, name, ha="center")
ax.text(-0.62, -1.1, "conflict", ha="center")
ax.text(0.5, -1.1, "aligned", ha="center")
ax.text(1.38, -1.1, "(4.6) fails", ha="center")
ax.set(xlabel="first entry of $g_2$", ylabel="second entry", aspect="equal")
ax.grid(visible=False)
save_figure(fig, P.run_dir, "plane")

# %% [markdown]
# The whole left half of {numref}`fig-recon-proof-plane`, conflict, satisfies the condition. So does a large part of the right half. It fails in the disc,
# where $g_2$ is aligned and the shorter one, and beyond the tip of the arrow, where $g_1$ is.
#
# **And a small rate.** The theorem promises some $\alpha_0$ and gives no number for it. On the bench with curvature $c$ and equal weights the difference is
# $-\alpha D\,(1-\frac{c\alpha}2)$, so that $\alpha_0=2/c$: the rate beyond which gradient descent itself diverges. Here $c=1$, and $D$ is 1.6:

# %%
conflict = bench((1.0, 0.0), (-0.6, 0.8))
for alpha in (0.001, 1.0, 1.999, 2.001, 3.0):
    print(f"alpha {alpha:5.3f}: difference {alpha * measured(conflict, alpha):+.4f}")

# %% [markdown]
# ## Step 1: both steps to first order
#
# ```{prf:lemma} One step, one task
# :label: lem-recon-taylor
# Write $\bar g=\sum_jw_jg_j$. Under {prf:ref}`ass-recon-smooth` to {prf:ref}`ass-recon-weights`, as $\alpha\to0$,
#
# $$\begin{aligned}
# L_i(\theta^{\mathrm{sh}})&=L_i(\theta)-\alpha\Big[\langle g_i^{\mathrm{fix}},\bar g^{\mathrm{fix}}\rangle+\lVert g_i^{\mathrm{ts}}\rVert^2+\sum_{k\in P}\langle g_i^{(k)},\bar g^{(k)}\rangle\Big]+o(\alpha),\\
# L_i(\theta^{\mathrm{sp}})&=L_i(\theta)-\alpha\Big[\langle g_i^{\mathrm{fix}},\bar g^{\mathrm{fix}}\rangle+\lVert g_i^{\mathrm{ts}}\rVert^2+\sum_{k\in P}\lVert g_i^{(k)}\rVert^2\Big]+o(\alpha).
# \end{aligned}$$
# ```
#
# ```{prf:proof}
# A function that is differentiable at $\theta$ satisfies
#
# $$L_i(\theta-\alpha d)=L_i(\theta)-\alpha\langle g_i,d\rangle+o(\alpha)$$
#
# for any fixed direction $d$ (**{prf:ref}`ass-recon-smooth`**). In the
# split network task $i$ uses its own copies, which are at $\theta$ before the step (**{prf:ref}`ass-recon-copies`**); so the same $L_i(\theta)$ and the same $g_i$ stand in both lines.
# Now put in the directions $d$ of {eq}`eq-recon-proof-steps` (**{prf:ref}`ass-recon-weights`**), part by part.
# ```
#
# The derivative along a direction, by algebra, for a general function of two parameters:

# %%
x, y, alpha_, a, b = sp.symbols("x y alpha a b", real=True)
L = sp.Function("L")
along = L(x - alpha_ * a, y - alpha_ * b).diff(alpha_).subs(alpha_, 0).doit()
sp.simplify(along + a * L(x, y).diff(x) + b * L(x, y).diff(y))

# %% [markdown]
# ````{admonition} Erratum E1: three slips of notation
# :class: warning
# - (4.10) prints $g_i^{\mathrm{ts}}$ in a place where $g_i^{\mathrm{fix}}$ belongs: the term of the layers that stay shared. *Repair:* the first term in both lines of {prf:ref}`lem-recon-taylor`.
# - (4.15) sums over $i$ where it must be $j$: the weight that stands before $g_j$ in the shared step is $w_j$. *Repair:* {eq}`eq-recon-proof-double`.
# - (4.6) is used with the roles of $i$ and $j$ exchanged. That is allowed, because it is assumed for all ordered pairs. *Repair:* say so, as in step 3.
#
# Besides, two theorems carry the number 4.1. None of this changes the conclusion.
# ````
#
# A check of the lemma and of the first slip, on three tasks with a shared layer, a split one, and a head each. All three parts have the same size here, so that also the
# misprinted inner product can be computed. Measured is the derivative of each loss at $\alpha=0$, as the mean of a step forward and a step back.

# %%
stream = generator(P.seeds[0], "three tasks")
thirds = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
points = torch.randn((3, 3, 4), generator=stream, dtype=torch.float64)  # task, part, entry


# %%
def waves(values, i):
    """A smooth loss of a shared layer, a split one, and the head of task i."""
    parts = torch.stack([values["fix"], values["cf"], values[f"ts{i}"]])
    return torch.cosh(parts - points[i]).log().sum() + torch.sin(parts.sum())


# %%
names = ["fix", "cf", "ts0", "ts1", "ts2"]
three = SharedPoint(
    losses=[lambda v, i=i: waves(v, i) for i in range(3)],
    parameters={n: torch.randn(4, generator=stream, dtype=torch.float64) for n in names},
    layers={"fix": ["fix"], "cf": ["cf"]},
    task_specific=names[2:],
)
mean = {n: sum(w * g[n] for w, g in zip(thirds, three.gradients, strict=True)) for n in names}

# %%
rows = []
ahead, back = (three.losses_after(s, thirds, ["cf"]) for s in (1e-4, -1e-4))
for i, g in enumerate(three.gradients):
    own = g[f"ts{i}"]
    rest = -(own @ own + g["cf"] @ g["cf"])
    row = {"task": i + 1, "measured": float((ahead - back)[i] / 2e-4)}
    row |= {"lemma": float(rest - g["fix"] @ mean["fix"])}
    rows.append(row | {"with the slip": float(rest - own @ mean["fix"])})
pd.DataFrame(rows).style.hide(axis="index").format(precision=6)

# %% [markdown]
# ## Step 2: the difference
#
# In the difference of the two lines of {prf:ref}`lem-recon-taylor` the shared layers and the heads cancel: both networks move them in the same way. What is left is
#
# ```{math}
# :label: eq-recon-proof-difference
# \sum_iL_i(\theta^{\mathrm{sp}})-\sum_iL_i(\theta^{\mathrm{sh}})=-\alpha\sum_{k\in P}D_k+o(\alpha),\qquad D_k=\sum_i\Big\langle g_i^{(k)},\,g_i^{(k)}-\sum_jw_jg_j^{(k)}\Big\rangle .
# ```
#
# Nothing has been said about the sum of the weights so far; $-D_k$ is what `slope` computes. Now **{prf:ref}`ass-recon-weights`** comes in: since $\sum_jw_j=1$, the square can be brought under the sum
# over $j$, $\lVert g_i\rVert^2=\sum_jw_j\lVert g_i\rVert^2$. So
#
# ```{math}
# :label: eq-recon-proof-double
# \begin{aligned}
# D_k&=\sum_i\sum_jw_j\Big(\lVert g_i^{(k)}\rVert^2-\langle g_i^{(k)},g_j^{(k)}\rangle\Big)\\
# &=\sum_i\sum_jw_j\,\lVert g_i^{(k)}\rVert\Big(\lVert g_i^{(k)}\rVert-\cos_{ij}^{(k)}\lVert g_j^{(k)}\rVert\Big).
# \end{aligned}
# ```
#
# By algebra, for three tasks with gradients of two entries and free weights: the two forms differ by a multiple of $1-\sum_jw_j$, and reading $w_i$ in place of $w_j$ gives another number.

# %%
G = sp.Matrix(3, 2, sp.symbols("g1:4(1:3)", real=True))
w = sp.symbols("w1:4", positive=True)
inner = G * G.T  # entry i, j: <g_i, g_j>
pairs = [(i, j) for i in range(3) for j in range(3)]

# %%
D = sum(inner[i, i] for i in range(3)) - sum(w[j] * inner[i, j] for i, j in pairs)
double = sum(w[j] * (inner[i, i] - inner[i, j]) for i, j in pairs)
slip = sum(w[i] * (inner[i, i] - inner[i, j]) for i, j in pairs)

# %%
rest = sp.factor(sp.expand(D - double))
print("D - double sum =", rest)
values = dict(zip([*w, *G], [0.5, 0.3, 0.2, 1, 0, 0.5, 0.5, -0.2, 1], strict=True))
for name, form in {"D": D, "with w_j": double, "with w_i": slip}.items():
    print(f"example, {name}: {form.subs(values):.3f}")

# %% [markdown]
# ## Step 3: the sign
#
# ```{prf:proof}
# Take a layer $k\in P$ and a pair $i\ne j$. **{prf:ref}`ass-recon-norms`** holds for all ordered pairs, so also for $(j,i)$, with the roles exchanged: $\langle g_j,g_i\rangle<\lVert g_i\rVert^2$. The inner product is
# symmetric. Hence each term of {eq}`eq-recon-proof-double` with $i\ne j$ has a bracket above zero, and the terms with $i=j$ are zero. By
# **{prf:ref}`ass-recon-weights`** no weight is negative and some $w_j$ is positive; with an $i\ne j$ this gives at least one positive term. So $D_k>0$ for every
# $k\in P$, and $D=\sum_{k\in P}D_k>0$.
#
# By {eq}`eq-recon-proof-difference` the difference divided by $\alpha$ tends to $-D<0$ as $\alpha\to0$, so it is negative for all $\alpha$ below some $\alpha_0>0$. This is {prf:ref}`thm-proof-recon`.
# ```
#
# The exchange matters where the condition holds for one order only. For $g_1=(1,0)$ and $g_2=(0.4,0.1)$ the pair $(2,1)$ satisfies it and the pair $(1,2)$ does not. The bracket that is positive is that of
# the *other* order:

# %%
(gramian,) = bench((1.0, 0.0), (0.4, 0.1)).gramians().values()
for i, j in ((0, 1), (1, 0)):
    condition, bracket = gramian[j, j] - gramian[i, j], gramian[i, i] - gramian[i, j]
    print(f"i, j = {i + 1}, {j + 1}: condition {condition:+.2f}, bracket {bracket:+.2f}")

# %% [markdown]
# The brackets say more than the theorem does. Each task has its own sum over $j$ in them:
#
# ```{prf:corollary} Every task gains
# :label: cor-recon-each
# If no single weight is 1, then under the assumptions of {prf:ref}`thm-proof-recon` and for small $\alpha$ not only the sum falls, but
# $L_i(\theta^{\mathrm{sp}})<L_i(\theta^{\mathrm{sh}})$ for *every* task $i$.
# ```
#
# ```{prf:proof}
# By {prf:ref}`lem-recon-taylor` the difference for task $i$ is
#
# $$-\alpha\sum_{k\in P}\sum_jw_j\big(\lVert g_i^{(k)}\rVert^2-\langle g_i^{(k)},g_j^{(k)}\rangle\big)+o(\alpha) .$$
#
# The bracket is zero for $j=i$ and above zero for all others, and one of the others has a
# positive weight.
# ```
#
# Now many random sets of three gradients of different lengths, with random and with equal weights. How often is $D\le0$, so that the theorem's conclusion fails? And how often is
# there a task that does not gain? `task_slopes` computes the differences of the single tasks.

# %%
stream = generator(P.seeds[0], "trials")
g = torch.randn((P.trials, 3, 4), generator=stream, dtype=torch.float64)
g = g + 1.5 * torch.randn(
    (P.trials, 1, 4), generator=stream, dtype=torch.float64
)  # aligned more often

# %%
g = g * 10 ** (torch.rand((P.trials, 3, 1), generator=stream, dtype=torch.float64) - 0.5)
products = g @ g.mT
random_weights = torch.rand((P.trials, 3), generator=stream, dtype=torch.float64)
random_weights = random_weights / random_weights.sum(dim=1, keepdim=True)

holds = condition_holds(products)

# %%
from experiments.mtl.proof import task_slopes

rows = []
for name, chosen in {"random": random_weights, "equal": torch.full((3,), 1 / 3).double()}.items():
    each = task_slopes(products, chosen)
    cases = {"D <= 0": slope(products, chosen) >= 0, "a task loses": (each >= 0).any(dim=1)}
    for kind, among in {"holds": holds, "fails": ~holds}.items():
        row = {"weights": name, "(4.6)": kind, "sets": int(among.sum())}
        rows.append(row | {n: float(case[among].double().mean()) for n, case in cases.items()})

# %%
record.table("random_gradients", rows)
pd.DataFrame(rows).style.hide(axis="index").format("{:.2%}", subset=["D <= 0", "a task loses"])

# %% [markdown]
# Under the condition both columns are zero, as proved. Without it, $D\le0$ occurs with random weights and never with equal ones; a single task loses far more often, with equal weights too.
# So this is what (4.6) is worth in joint training with the mean: not that the *sum* falls, but that *no task* pays for it.
#
# ## The theorem on a real network
#
# {eq}`eq-recon-proof-difference` is a prediction that can be tested: the difference divided by $\alpha$ must tend to $-\sum_{k\in P}D_k$. The network is a ResNet18 with two
# heads on the images of {ref}`chap-fcl`, which show an article of clothing and a digit each: task 1 names the article, task 2 the digit. It is trained jointly for a few epochs; then the
# gradients and losses are taken on a fixed set of images of the training split, drawn anew.

# %%
from torch import nn
from tqdm import tqdm

from experiments.models.resnet import resnet18_features
from experiments.mtl.proof import network_point
from ktlib.fcl import BaseTraining, train_base

train, test = data.load("pairs", "train"), data.load("pairs", "test")
pixels = train.images[::50].float() / 255
mean_pixel, std_pixel = float(pixels.mean()), float(pixels.std())


def draw(source, count, seed, purpose):
    """Random images, and their labels for both tasks, shape (images, 2)."""
    chosen = torch.randperm(len(source), generator=generator(seed, purpose))[:count]
    inputs = data.normalised(source.images[chosen], mean_pixel, std_pixel)
    classes = source.labels[chosen]  # 10 * article + digit
    return inputs.to(device), torch.stack([classes // 10, classes % 10], dim=1).to(device)


# %%
def train_network(seed):
    """A trunk and two heads, after joint training with the sum of the losses."""
    torch.manual_seed(seed)
    trunk = resnet18_features(1, P.width, P.stem_stride).to(device)
    heads = nn.ModuleList(nn.Linear(trunk.feature_dim, 10) for _ in range(2)).to(device)

    def loss(inputs, labels):
        features = trunk(inputs)
        scores = [head(features) for head in heads]
        return sum(nn.functional.cross_entropy(s, labels[:, i]) for i, s in enumerate(scores))

    settings = BaseTraining(epochs=P.epochs, batch_size=P.batch_size, lr=P.lr, padding=0)
    stream = generator(seed, "batches")
    train_base(
        trunk, heads, *draw(train, P.images, seed, "images"), loss, settings, generator=stream
    )
    return trunk, heads


# %% [markdown]
# Two things make the test sharp. First, everything is computed in float64: for $\alpha=10^{-6}$ the two losses differ by some millionths, and float32 has no more than seven digits. Second, batch
# norm is in `eval` mode. Its running mean and variance are no parameters, and no gradient reaches them; in training mode every forward pass would move them, and the loss of an image would
# depend on the other images. `network_point` takes care of both, on a copy. A *layer* is a module that has parameters itself, batch norms included; here there are
# {glue:text}`recon-proof-count`.

# %%
measuring = "cpu" if device.type == "mps" else device  # float64
networks, networks_on_test = {}, {}
for seed in tqdm(P.seeds, desc="training", leave=False):
    trunk, heads = (module.to(measuring) for module in train_network(seed))
    for source, found in ((train, networks), (test, networks_on_test)):
        inputs, labels = draw(source, P.measured_images, seed, "measured")
        found[seed] = network_point(trunk, heads, inputs.to(measuring), labels.T.to(measuring))

# %% [markdown]
# $P$ is chosen in four ways: the $K$ layers with the lowest cosine of the two gradients, $K$ random ones, the $K$ with the highest cosine, and all layers.

# %%
chosen, layer_rows = {}, []
for seed, point in networks.items():
    gramians = point.gramians()
    cosine = {layer: float(cosines(gramian)[0, 1]) for layer, gramian in gramians.items()}
    ranked = sorted(cosine, key=cosine.get)
    drawn_order = torch.randperm(len(ranked), generator=generator(seed, "random layers")).tolist()
    K = P.layers_per_set
    some = [ranked[i] for i in drawn_order[:K]]
    chosen[seed] = {"conflict": ranked[:K], "random": some, "aligned": ranked[-K:], "all": ranked}
    for layer, gramian in gramians.items():
        norms = gramian.diagonal().sqrt()
        ratio = float(norms.min() / norms.max())
        held = bool(condition_holds(gramian))
        row = {"seed": seed, "layer": layer, "cosine": cosine[layer], "ratio": ratio, "holds": held}
        layer_rows.append(row | {"product": float(gramian[0, 1])})

# %%
layers = pd.DataFrame(layer_rows)
record.table("layers", layer_rows)
glue("recon-proof-count", len(ranked), display=False)
cosine_of = layers.set_index(["seed", "layer"])["cosine"]
pd.DataFrame(
    {s: {n: cosine_of[s].loc[P_].mean() for n, P_ in sets.items()} for s, sets in chosen.items()}
).rename_axis("mean cosine").rename_axis("seed", axis="columns").round(3)

# %% [markdown]
# Both steps are then made for falling $\alpha$: once with equal weights of sum 1, the theorem's version, and once with $w_1=w_2=1$, the sum of losses, which erratum E3 will need.

# %%
versions = {"mean": half.to(measuring), "sum": ones.to(measuring)}
slope_rows = []
for seed, point in tqdm(networks.items(), desc="steps", total=len(networks), leave=False):
    for version, weights in versions.items():
        predictions = {n: point.predicted_slope(weights, p) for n, p in chosen[seed].items()}
        for alpha in P.step_sizes:
            found = point.measured_slopes(alpha, weights, chosen[seed])
            slope_rows += [
                {"seed": seed, "version": version, "set": name, "alpha": alpha,
                 "measured": found[name], "predicted": predictions[name]}
                for name in found
            ]  # fmt: skip

# %%
slopes = pd.DataFrame(slope_rows)
record.table("slopes", slope_rows)
smallest = slopes[slopes["alpha"] == min(P.step_sizes)]
smallest.pivot_table(
    index=["version", "set"], columns="seed", values=["predicted", "measured"]
).round(4)

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Two charts of the difference of the losses divided by the rate, against the rate on a logarithmic axis. In both, the points of four sets of layers run into horizontal dotted lines, the predictions, as the rate falls. On the left all lines end below zero. On the right the one of aligned layers ends above zero and the one of conflict layers below.", "classes": "chart"}, "figure": {"name": "fig-recon-proof-slopes", "caption": "Loss of the split network minus loss of the shared one, divided by the rate $\\alpha$, for four choices of the split layers; dotted: the prediction from the gradients. Left: equal weights of sum 1, as in the theorem. Right: sum of losses. Two-task ResNet18 on the pairs data, mean over seeds. The values of the set of all layers are divided by 5."}}
fig, axes = plt.subplots(1, 2, figsize=(6.4, 3.6))
looks = {
    "conflict": ("o-", "C1"),
    "random": ("s--", "C3"),
    "aligned": ("^-.", "C0"),
    "all": ("D:", "k"),
}
average = slopes.groupby(["version", "set", "alpha"])[["measured", "predicted"]].mean()
titles = {"mean": "equal weights, sum 1", "sum": "sum of losses"}
for ax, (version, title) in zip(axes, titles.items(), strict=True):
    for name, (line, color) in looks.items():
        curve = average.loc[version, name] / (5 if name == "all" else 1)
        label = "all / 5" if name == "all" else name
        ax.plot(curve.index, curve["measured"], line, color=color, label=label)
        ax.axhline(curve["predicted"].iloc[0], color=color, linestyle=":", linewidth=1)
    ax.axhline(0, color="gray", linewidth=0.8)
    ax.set(xscale="log", xlabel=r"rate $\alpha$", title=title)
axes[0].set_ylabel(r"difference of losses / $\alpha$")
axes[0].legend(loc="best")
save_figure(fig, P.run_dir, "slopes")

# %%
slopes["error"] = (slopes["measured"] - slopes["predicted"]).abs()
errors = slopes.groupby("alpha")["error"].max().sort_index(ascending=False)
record.table("slope_errors", errors.reset_index().to_dict("records"))

# %%
record.metric("slope_error_at_smallest_step", float(errors.iloc[-1]))
largest_step = slopes[(slopes["alpha"] == max(P.step_sizes)) & (slopes["version"] == "mean")]
other_sign = float((largest_step["measured"] >= 0).mean())
record.metric("mean_version_fails_at_largest_step", other_sign)
glue("recon-proof-fails", 100 * other_sign, display=False)
glue("recon-proof-largest", max(P.step_sizes), display=False)

# %%
glue("recon-proof-error", float(errors.iloc[-1]), display=False)
glue("recon-proof-alpha", min(P.step_sizes), display=False)
errors.to_frame("largest error of the slope")

# %% [markdown]
# The error of the prediction falls with $\alpha$, to {glue:text}`recon-proof-error:.0e` at $\alpha=$ {glue:text}`recon-proof-alpha:.0e`. On smooth losses it would fall exactly like $\alpha$; a network with ReLU
# is smooth in pieces, and a step that crosses kinks makes the decay uneven. {numref}`fig-recon-proof-slopes` shows two more things: on the left **every** set has a
# negative slope, the aligned one included. On the right it does not.
#
# "Small" is to be taken seriously: at $\alpha=$ {glue:text}`recon-proof-largest:g` the conclusion of {prf:ref}`thm-proof-recon` is false for {glue:text}`recon-proof-fails:.0f` % of the sets and seeds, although its slope is negative for all of them.
# Networks of this kind are trained with such rates; the authors' code starts at 0.1.
#
# ## The condition is about lengths as much as about conflict
#
# For two tasks, {prf:ref}`ass-recon-norms` in both orders says: the cosine is below the ratio of the shorter to the longer gradient. A negative cosine always is. But so are most cosines of gradients in a space of many dimensions,
# which are near zero, while the lengths of the two gradients in a layer are often similar.

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "A cloud of points, one per layer: the ratio of the gradient lengths against their cosine. A diagonal line separates the region where the condition holds, on its left. Nearly all points lie on the left of it, with cosines of both signs.", "classes": "chart"}, "figure": {"name": "fig-recon-proof-condition", "caption": "The layers of the two-task ResNet18, all seeds: cosine of the two task gradients and ratio of their lengths, shorter to longer. The condition (4.6) holds left of the line; the layers left of zero are in conflict."}}
fig, ax = plt.subplots()
for conflicts, marker, label in ((True, "o", "in conflict"), (False, "^", "aligned")):
    part = layers[(layers["cosine"] < 0) == conflicts]
    ax.plot(
        part["cosine"],
        part["ratio"],
        marker,
        color="C1" if conflicts else "C0",
        label=label,
        alpha=0.7,
    )
ax.plot([0, 1], [0, 1], color="black")
ax.axvline(0, color="gray", linewidth=0.8)
ax.fill_betweenx([0, 1], [0, 1], [1, 1], color="black", alpha=0.08)
ax.text(0.72, 0.3, "(4.6)\nfails", ha="center")
ax.set(xlabel="cosine", ylabel="ratio of lengths", xlim=(-1, 1), ylim=(0, 1.02))
ax.legend(loc="lower left")
save_figure(fig, P.run_dir, "condition")

# %%
aligned = layers["cosine"] >= 0
shares = {"all": layers["holds"].mean(), "aligned": layers[aligned]["holds"].mean()}
for name, share in (shares | {"conflict": 1 - aligned.mean()}).items():
    if pd.notna(share):  # with tiny batches there may be no aligned layer
        record.metric(f"share_{name}", float(share))
    glue(f"recon-proof-{name}", 100 * float(share), display=False)

# %% [markdown]
# In this network {glue:text}`recon-proof-conflict:.0f` % of the layers are in conflict. The condition holds for {glue:text}`recon-proof-all:.0f` % of all layers, and for {glue:text}`recon-proof-aligned:.0f` % of the aligned ones.
#
# ````{admonition} Erratum E2: the theorem does not say that conflict layers are the right ones
# :class: warning
# The proof uses of $P$ only that its layers satisfy (4.6). So *any* such set $P$ will do, aligned layers included, and
# as each layer adds its own $D_k>0$ to {eq}`eq-recon-proof-difference`, the theorem likes best the *largest* one. With equal weights the sum of the losses needs no condition at all ({prf:ref}`prp-recon-equal`). The other direction has a
# gap too: with three or more tasks a layer in which *some* pairs conflict need not satisfy (4.6) for the others. *Repair:* state the theorem for any $P$. The evidence for choosing by conflict is
# the comparison with random, first and last layers, in {ref}`chap-recon` and {ref}`chap-recon-evidence`, not the theorem.
# ````
#
# ```{prf:proposition} Equal weights need no condition
# :label: prp-recon-equal
# For $w_j=1/T$, without {prf:ref}`ass-recon-norms`, $D_k=\sum_i\lVert g_i^{(k)}-\bar g^{(k)}\rVert^2\ge0$, where $\bar g$ is the mean of the task gradients. It is zero only if all tasks have the same gradient in layer $k$.
# ```
#
# ```{prf:proof}
# The differences $g_i-\bar g$ have sum zero, so $\sum_i\langle\bar g,g_i-\bar g\rangle=0$. Subtract this from $D_k=\sum_i\langle g_i,g_i-\bar g\rangle$, which is the form in {eq}`eq-recon-proof-difference`.
# ```
#
# So with equal weights, which the thesis uses for joint training, $D_k$ measures how much the tasks *differ* in a layer; conflict is one way to differ. By algebra, and for the
# gap with three tasks: the first two conflict, the third is aligned with the first and long (cosines of the pairs 12, 23 and 13).

# %%
equal = {w[j]: sp.Rational(1, 3) for j in range(3)}
average = sp.ones(1, 3) * G / 3
spread = sum(((G[i, :] - average) * (G[i, :] - average).T)[0] for i in range(3))
print("D - spread =", sp.simplify(sp.expand(D.subs(equal) - spread)))

# %%
(gramian,) = bench((1.0, 0.0), (-0.6, 0.8), (3.0, 0.0)).gramians().values()
print(cosines(gramian)[[0, 1, 0], [1, 2, 2]].numpy().round(1))
print("condition holds:", bool(condition_holds(gramian)))

# %% [markdown]
# ## The sum of losses does single out conflict
#
# Practice, and the released code, minimise $\sum_iL_i$: the shared layers move along the *sum* of the gradients. This is the step {eq}`eq-recon-proof-steps` with $w_j=1$.
#
# ````{admonition} Erratum E3: the theorem for the step that is taken
# :class: warning
# With $w_j=1$ the weights have the sum $T$, so {prf:ref}`ass-recon-weights` fails and {eq}`eq-recon-proof-double` with it. Apart from that, the version with $\sum_jw_j=1$ is not gradient descent on *one* loss: its
# copies move along the gradient of $\sum_iL_i$, its shared layers along that of $\sum_iw_iL_i$. With equal weights these move $T$ times less far than on the sum. This is why splitting always won. *Repair:* {prf:ref}`thm-proof-recon-sum`.
# ````
#
# ```{prf:theorem} One step of Recon on the sum of losses
# :label: thm-proof-recon-sum
# Under {prf:ref}`ass-recon-smooth` and {prf:ref}`ass-recon-copies`, with the steps {eq}`eq-recon-proof-steps` and $w_j=1$ for all $j$,
#
# $$\sum_iL_i(\theta^{\mathrm{sp}})-\sum_iL_i(\theta^{\mathrm{sh}})=+\alpha\sum_{k\in P}\sum_{i\ne j}\langle g_i^{(k)},g_j^{(k)}\rangle+o(\alpha) .$$
#
# So for small $\alpha$ the split network has the lower loss if the sum of the inner products over all pairs in $P$ is negative, and the higher one if it is positive.
# ```
#
# ```{prf:proof}
# {prf:ref}`lem-recon-taylor` and {eq}`eq-recon-proof-difference` do not use the sum of the weights. Put $w_j=1$ there:
#
# $$D_k=\sum_i\lVert g_i\rVert^2-\sum_i\sum_j\langle g_i,g_j\rangle=-\sum_{i\ne j}\langle g_i,g_j\rangle .$$
# ```
#
# No condition is left, and the sign now depends on the layer: sharing wins a step where the tasks agree, and loses it where they conflict. In {numref}`fig-recon-proof-plane` it is the dotted line that
# decides, not the grey region. For two tasks the best $P$ for a small step is *exactly* the set of the conflict layers. By algebra:

# %%
total = {w[j]: 1 for j in range(3)}
off_diagonal = sum(inner[i, j] for i, j in pairs if i != j)
sp.expand(D.subs(total) + off_diagonal)

# %% [markdown]
# The network has been measured with both versions already:

# %%
summary = smallest.groupby(["version", "set"])["measured"].agg(["mean", "min", "max"])
record.table("slopes_at_smallest_step", summary.reset_index().to_dict("records"))
for (version, name), row in summary.iterrows():
    glue(f"recon-proof-{version}-{name}", float(row["mean"]), display=False)
glue("recon-proof-seeds", len(P.seeds), display=False)
in_conflict = layers[layers["product"] < 0].groupby("seed")["product"].sum()
glue("recon-proof-best", 2 * float(in_conflict.sum()) / len(P.seeds), display=False)
summary.style.format("{:+.4f}")

# %% [markdown]
# Means over {glue:text}`recon-proof-seeds` seeds, with the extremes. In the mean version all are negative: conflict layers {glue:text}`recon-proof-mean-conflict:+.3f`, aligned ones {glue:text}`recon-proof-mean-aligned:+.3f`. In the sum version, conflict layers have
# {glue:text}`recon-proof-sum-conflict:+.3f` and aligned ones {glue:text}`recon-proof-sum-aligned:+.3f`; splitting the whole trunk has {glue:text}`recon-proof-sum-all:+.3f`. The best that a choice of layers can reach is {glue:text}`recon-proof-best:+.3f`, by
# splitting just those that are in conflict. This version agrees with the idea of Recon: split some layers, and not all.
#
# For three or more tasks the two notions part. Recon counts *pairs* with a negative cosine; {prf:ref}`thm-proof-recon-sum` adds *inner products*. Below, two of three pairs conflict, with a short gradient, and the third pair, of long
# gradients, agrees. The count would split this layer; the step says that sharing it is better:

# %%
(gramian,) = bench((3.0, 0.0), (3.0, 0.3), (-0.2, 0.0)).gramians().values()
counted = int((cosines(gramian).triu(diagonal=1) < 0).sum())
print(f"conflicting pairs {counted} of 3, slope {slope(gramian, torch.ones(3).double()):+.2f}")

# %% [markdown]
# ## What the theorem does not say
#
# ````{admonition} Erratum E4: one step is not training
# :class: warning
# The theorem compares two networks that start from *one* point, after *one* step, by the loss of *the same images* that gave the gradients. After that step they are at different points, and it does not apply to
# the second step. It says nothing about the end of training, and nothing about new images. More free parameters make it easy to win on the training loss.
# ````
#
# **Other images.** The same steps on the network, made from the same gradients, but now measured by the loss on as many test images. The prediction $-\sum D_k$ is no promise any more. Part of each
# $\lVert g_i\rVert^2$ in it is chance, the more of it the fewer images the gradient is averaged over; chance lowers the loss of these images, and does not carry over to others.

# %%
alpha = P.step_sizes[-2]
rows = []
for seed, point in networks.items():
    fresh = networks_on_test[seed].losses
    for version, weights in versions.items():
        found = point.measured_slopes(alpha, weights, chosen[seed], fresh)
        rows += [
            {"seed": seed, "version": version, "set": n, "slope": s,
             "same sign": s * point.predicted_slope(weights, chosen[seed][n]) > 0}
            for n, s in found.items()
        ]  # fmt: skip

# %%
record.table("slopes_on_test_images", rows)
on_test = pd.DataFrame(rows)
glue("recon-proof-same-sign", 100 * float(on_test["same sign"].mean()), display=False)
on_test.groupby(["version", "set"])["slope"].agg(["mean", "min", "max"]).style.format("{:+.4f}")

# %% [markdown]
# {glue:text}`recon-proof-same-sign:.0f` % of these slopes have the sign that they had on the images of the step.
#
# **Many steps.** Two linear regression tasks with few noisy examples each, once with the same true weights and once with opposite ones. A shared weight vector and two copies start at zero and make many steps of the mean version.


# %%
def linear_tasks(relation, seed, size=20, examples=30):
    """Training and test data of two tasks; `relation` is 1 for equal truths, -1 for opposite ones."""
    stream = generator(seed, "linear")
    truth = torch.randn((P.repetitions, 1, size), generator=stream).double() / size**0.5
    truth = torch.cat([truth, relation * truth], dim=1)
    inputs = torch.randn((2, P.repetitions, 2, examples, size), generator=stream).double()
    noise = torch.randn((2, P.repetitions, 2, examples), generator=stream).double()
    return inputs, torch.einsum("srten,rtn->srte", inputs, truth) + noise


def descend(inputs, targets, split, rate=0.05):
    """Summed loss in training and test after each step, mean over the repetitions."""
    weights, history = torch.zeros_like(inputs[0, :, :, 0]), []
    for _ in range(P.steps):
        errors = torch.einsum("srten,rtn->srte", inputs, weights) - targets
        history.append(errors.square().mean(dim=(1, 3)).sum(dim=1) / 2)
        gradient = torch.einsum("rte,rten->rtn", errors[0], inputs[0]) / inputs.shape[3]
        common = gradient.mean(dim=1, keepdim=True).expand_as(gradient)
        weights = weights - rate * (gradient if split else common)
    return torch.stack(history), gradient


# %%
curves, final = {}, {}
for relation, name in ((1, "same truth"), (-1, "opposite truths")):
    for split in (False, True):
        runs = [descend(*linear_tasks(relation, seed), split) for seed in P.seeds]
        curves[name, split] = torch.stack([history for history, _ in runs]).mean(dim=0)
        final[name, split] = torch.cat([gradient for _, gradient in runs])

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Two charts of the loss against the step for a shared and a split pair of linear tasks. With the same truth the split one has the lower training loss and, after some steps, the higher test loss. With opposite truths it has the lower loss in both.", "classes": "chart"}, "figure": {"name": "fig-recon-proof-linear", "caption": "Two linear regression tasks with 20 weights and 30 noisy examples each, gradient descent with the mean version from zero: summed loss of both tasks on training (dashed) and test (solid) examples, mean over seeds and repetitions."}}
fig, axes = plt.subplots(1, 2, figsize=(6.4, 3.8), sharey=True)
for ax, name in zip(axes, ("same truth", "opposite truths"), strict=True):
    for split, color in ((False, "C0"), (True, "C1")):
        word = "split" if split else "shared"
        ax.plot(curves[name, split][:, 1], color=color, label=f"{word}, test")
        ax.plot(curves[name, split][:, 0], color=color, linestyle="--", label=f"{word}, training")
    ax.set(xlabel="step", title=name, ylim=(0, 3.3))
axes[0].set_ylabel("summed loss")
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
save_figure(fig, P.run_dir, "linear")

# %%
ends = pd.DataFrame(
    [{"truths": name, "network": "split" if split else "shared",
      "training": float(curve[-1, 0]), "test": float(curve[-1, 1])}
     for (name, split), curve in curves.items()]
)  # fmt: skip
record.table("linear_tasks", ends.to_dict("records"))
ends.style.hide(axis="index").format(precision=3)

# %% [markdown]
# In training the split network is ahead at the end in both cases. With the same truth it pays on new examples, because each copy averages the noise of half as many. What decides is whether the tasks *need* different weights, which one step cannot see.
#
# **Conflict at the end.** Even the word changes its meaning: where the shared network has converged, $\sum_jw_jg_j=0$, and for two tasks that means opposite gradients, in every layer, *whether or not* the tasks are related. The
# cosine of the two gradients of the shared weights at the last step, for tasks with the same truth:

# %%
at_end = nn.functional.cosine_similarity(*final["same truth", False].unbind(dim=1), dim=1)
record.metric("cosine_at_the_end_of_equal_tasks", float(at_end.mean()))
glue("recon-proof-end-cosine", float(at_end.mean()), display=False)
print(f"mean {at_end.mean():.3f}, highest {at_end.max():.3f}")

# %% [markdown]
# Its mean is {glue:text}`recon-proof-end-cosine:.2f`. So it matters *when* conflicts are counted; Recon's search uses the first quarter of the training.
#
# **Gradient surgery.** Both networks must use *the same* weights $w_j$ for the layers that stay shared; only then these layers cancel in step 2. MGDA {cite}`desideri2012mgda,sener2018mgda`, PCGrad {cite}`yu2020pcgrad` and
# CAGrad {cite}`liu2021cagrad` compute their weights from the gradients of all shared layers. After the split these are fewer, and the weights are others. PCGrad's do not have the sum 1 either. Two tasks with
# two layers, one of which is split; the weights are divided by $T$, so that those of joint training are those of the mean:

# %%
from ktlib.mtl import aggregator

stays = torch.tensor([[1.0, 0.0], [-0.5, 1.0]], dtype=torch.float64)
goes = torch.tensor([[2.0, 0.0], [-1.0, 0.5]], dtype=torch.float64)
before, after = stays @ stays.T + goes @ goes.T, stays @ stays.T
for name in ("joint", "mgda", "pcgrad"):
    found = [aggregator(name).weights(gramian) / 2 for gramian in (before, after)]
    rounded = [[round(float(w), 2) for w in weights] for weights in found]
    print(f"{name:>6}: all layers shared {rounded[0]}, one split {rounded[1]}")

# %% [markdown]
# So with gradient surgery the theorem does not compare the two networks that are trained. Nor does it with momentum or weight decay, which make other steps than {eq}`eq-recon-proof-steps`.
#
# ## Exercises
#
# ```{exercise}
# :label: ex-recon-proof-two
# *On paper.* Two tasks, weights $w_1+w_2=1$, one layer. Show that $D=w_2\lVert g_1\rVert^2+w_1\lVert g_2\rVert^2-\langle g_1,g_2\rangle$. Let $r=\lVert g_2\rVert/\lVert g_1\rVert\le1$. For which cosines does the conclusion hold with $w_1=w_2$, and for which with
# *every* choice of the weights? Compare with (4.6).
# ```
#
# ```{solution-start} ex-recon-proof-two
# :class: dropdown
# ```
#
# Put $w_1=1-w_2$ in front of $\lVert g_1\rVert^2$ in {eq}`eq-recon-proof-difference`, and likewise $w_2$: what remains of the squares is $w_2\lVert g_1\rVert^2+w_1\lVert g_2\rVert^2$, and the products have the weight $w_1+w_2=1$. Divided by $\lVert g_1\rVert^2$,
# $D>0$ reads $w_2+w_1r^2>r\cos$. With equal weights it is $\cos<\frac{1+r^2}{2r}$, whose right side is at least 1: true unless the gradients are equal. For all weights the worst case counts. The left side is linear in $w_1$ and smallest at $w_1=1$, so $r^2>r\cos$, that is
# $\cos<r$. This is (4.6) for both orders. So for two tasks the condition is exactly what makes the theorem independent of the weights.

# %%
w1, r, cosine_ = sp.symbols("w1 r c", real=True)
two = (1 - w1) + w1 * r**2 - r * cosine_
print([sp.factor(two.subs(w1, value)) for value in (0, sp.Rational(1, 2), 1)])

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-recon-proof-weighted
# *On paper.* Let both networks make a step of gradient descent on *the same* loss $\sum_iw_iL_i$ with any weights $w_i\ge0$: the copies and heads of task $i$ move along $w_ig_i$. What is the difference of the loss $\sum_iw_iL_i$ after the step, and
# when is splitting better? Is E3 a matter of the scale of the losses?
# ```
#
# ```{solution-start} ex-recon-proof-weighted
# :class: dropdown
# ```
#
# The losses $\tilde L_i=w_iL_i$ have the gradients $\tilde g_i=w_ig_i$, and the step is that of {prf:ref}`thm-proof-recon-sum` for them. So the difference is $\alpha\sum_{k\in P}\sum_{i\ne j}w_iw_j\langle g_i^{(k)},g_j^{(k)}\rangle+o(\alpha)$. Multiplying all weights by one number changes the
# size and not the sign. With $w_i=1/T$, too, sharing wins on aligned layers: E3 is not about the scale, but about whether both networks descend on one loss.

# %%
both = torch.tensor([[1.0, 0.0], [0.7, 0.7]], dtype=torch.float64)
for weights in (half, ones):
    scaled = point_with_gradients({"layer": weights[:, None] * both})
    predicted = 2 * weights.prod() * (both[0] @ both[1])
    print(f"predicted {predicted:+.4f}, measured {measured(scaled, 1e-6, ones):+.4f}")

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-recon-proof-parameter
# *Change a parameter.* Predict what the four lines of {numref}`fig-recon-proof-slopes` do when `layers_per_set` grows from 1 to 40. Then compute the predicted slopes of the $K$ lowest cosines for each $K$, in both versions.
# ```
#
# ```{solution-start} ex-recon-proof-parameter
# :class: dropdown
# ```

# %%
point, order = networks[P.seeds[0]], chosen[P.seeds[0]]["all"]
rows = [
    {"K": K}
    | {name: point.predicted_slope(weights, order[:K]) for name, weights in versions.items()}
    for K in (1, 5, 10, 20, 30, 40)
]
pd.DataFrame(rows).style.hide(axis="index").format(precision=4)

# %% [markdown]
# At $K=40$ all sets are the set of all layers, and the lines meet. In the mean version the slope only falls: each layer adds its $-D_k\le0$. In the sum version it falls as long as the next layer is in conflict, and then rises.
#
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-recon-proof-code
# *Write code.* For one step on the sum of losses, which $K$ layers are the best to split: those with the lowest cosine, or others? Find the best set with `gramians`, and compare its predicted slope with that of the $K$ lowest cosines, for each seed.
# ```
#
# ```{solution-start} ex-recon-proof-code
# :class: dropdown
# ```

# %%
weights, rows = versions["sum"], []
for seed, point in networks.items():
    value = {layer: float(slope(gramian, weights)) for layer, gramian in point.gramians().items()}
    best = sorted(value, key=value.get)[: P.layers_per_set]
    by_cosine = chosen[seed]["conflict"]
    row = {"seed": seed, "in both": len(set(best) & set(by_cosine))}
    row |= {"lowest cosine": point.predicted_slope(weights, by_cosine)}
    rows.append(row | {"lowest product": point.predicted_slope(weights, best)})
pd.DataFrame(rows).style.hide(axis="index").format(precision=4)

# %% [markdown]
# The slopes of single layers add up, so the best set consists of the $K$ lowest inner products $\langle g_1,g_2\rangle$. A cosine leaves the lengths out: a layer with a clear conflict of short gradients is high in Recon's ranking and changes the loss by
# little. As one step is not training, this does not show that Recon should rank by products; it is a hypothesis to test.
#
# ```{solution-end}
# ```
#
# ## Summary
#
# - Theorem 4.1 holds, with slips of notation only (E1). On a real network the loss difference tends to the prediction as the step gets small, and at usual rates it may have the other sign.
# - Its condition (4.6) is true for conflicting pairs and for many others; with equal weights the sum of the losses needs no condition at all. It does not favour conflict layers (E2).
#   What it does give is that no single task loses by the step.
# - On the sum of losses, which is what is trained, the sign of the inner products decides. That version does single out conflict layers (E3).
# - Both are about one step of plain gradient descent, from one point, on the images of that step (E4). Whether splitting helps in the end is a matter of experiments with controls: those of
#   {ref}`chap-recon`.
#
# ## Further reading
#
# Yu et al. {cite}`yu2020pcgrad` introduced conflicting gradients and the projection PCGrad; their analysis, too, is about one step. Standley et al. {cite}`standley2020tasks` measure which tasks gain from
# sharing a whole network, and Fifty et al. {cite}`fifty2021tag` predict it from what a step for one task does to the loss of another, which is an inner product of gradients to first order.

# %%
path = record.save(P.run_dir)
print(
    f"Record with {len(record.tables)} tables and {len(record.metrics)} metrics; saved: {path is not None}"
)
