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
#     uses: [ila, models/language]
#     data: [smollm2, chatterbot, human_eval, moby_dick]
#     data_parameter: [model, datasets, general_text]
# ---

# %% [markdown]
# (chap-ila-studies)=
# # Can a ranking of layers be trusted? Studies of ILA
#
# **The question.** ILA {cite}`shi2025ila,shi2025thesis` gives every layer of a language model a score. Is the order of the scores a fact about the model and
# its data, or about the seed, the batches, the number of steps and the score that all began with?
#
# This chapter takes the method of [the chapter before](chap-ila) and changes one thing at a time.
#
# After this chapter you can
#
# - find out how many steps and conversations *your* ranking needs before it repeats itself,
# - separate the noise of the second stage from that of the first,
# - say what a learned score knows that a cheap one does not,
# - test a ranking by what it is for: a better or a cheaper model.
#
# **Before you start.** Read [the chapter on ILA](chap-ila) first. The [notation page](../notation.md) has the symbols.
#
# **Time to run.** About 8 minutes on two CPU cores at the default size; the
# [execution page](../execution.md) shows the time of the run that you are reading.

# %% tags=["parameters"]
profile = "cpu"  # name of this set of values, noted in the record
run_dir = ""  # folder for result.json and figures; "" writes nothing
device = "auto"  # auto, cpu, cuda or mps; not stated in the thesis
precision = "auto"  # auto, float32 or bfloat16; not stated in the thesis
seeds = [0, 1]  # one repetition each: adapters, batches; the thesis: 3, for the scores
model = "smollm2"  # smollm2, tiny, a folder or an id of the hub; the thesis: Llama 2-7B and others
quantized = False  # whether weights are held in 4 bits, on a GPU; the thesis: in table 5.10
datasets = ["chatterbot", "reasoning"]  # to learn from; the thesis: LIMA, No Robots, Alpaca-GPT4
general_text = "moby_dick"  # general text that should not be forgotten; the thesis: benchmarks
train_examples = 400  # training conversations of each set, 0: all; the thesis: 1,000 to 52,000
test_examples = 20  # held-out conversations of each set, at most; not stated in the thesis
text_examples = 8  # passages of general text; not stated in the thesis
max_tokens = 96  # longest example, in tokens; the thesis: 1,024 where it states one
batch_size = 4  # conversations per step; not stated in the thesis
lora_rank = 8  # rank of LoRA; the thesis: 32
lr = 0.003  # highest learning rate of LoRA; not stated in the thesis
full_lr = 0.00003  # highest learning rate of full fine-tuning; not stated in the thesis
stage_1_steps = 20  # steps of fine-tuning; not stated in the thesis
epsilon = 0.02  # change of the loss per step, in nats, that counts as stable; not stated
initial_score = 4.0  # score of every layer at the start; the thesis: 4, 2 and 1
score_lr = 1.0  # learning rate of the scores; not stated in the thesis
stage_2_steps = 20  # steps of learning the scores; the thesis: 128
stage_2_batch_size = 4  # conversations per step of stage 2; not stated in the thesis
keep = 0.75  # fraction of the layers that stay when the rest is frozen; the thesis: 0.75
top = 0.3  # fraction of the layers that are tuned alone; the thesis: 0.1, 0.2 and 0.3
studied_on = "reasoning"  # the set whose rankings are studied; the thesis: LIMA
batch_sizes = [4]  # conversations per step of stage 2 to try; the thesis: none
noise_steps = 20  # steps of stage 2 while batch sizes are tried; the thesis: 128, everywhere
milestones = [0.25, 1.0]  # shares of stage 1 to rank after; the thesis: 0.01, 0.25, 0.5, 0.75, 1
initial_scores = [4.0]  # scores to begin with; the thesis: 4, 2 and 1
penalties = [0.0]  # weights of the penalty on open gates; the thesis: none
full_ranked = False  # whether to rank full fine-tuning, too; the thesis: table 5.13
ablated = False  # whether to take every update away once; the thesis: not done
transferred_from = []  # sets whose rankings are used on studied_on; the thesis: 5.14
intersected = False  # whether to leave out what no set needs; the thesis: table 5.14
solved_with = ["all", "keep", "top"]  # layers tuned to solve tasks; the thesis: all and 75 %
tasks = 40  # held-out tasks to solve; the thesis: 500 of MATH500, 30 of AIME 2024
new_tokens = 12  # longest answer to a task, in tokens; not stated in the thesis

# %% tags=["setup"]
from experiments.ila.parameters import IlaStudyParameters
from experiments.run.parameters import check_parameters

P = check_parameters(globals(), IlaStudyParameters)

# %% [markdown]
# ## The problem
#
# The thesis reports that the 75 % best layers are nearly the same for three seeds, three data sets, two ways of fine-tuning and three starting scores. Each
# of these is a Jaccard index without the chance level of 0.60. To trust a ranking one has to know three things: how much of it is left when *nothing* is changed but
# the random numbers; what it looks like when something is changed; and whether the model that is made with it is any better.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display

from data_prep import checksums
from experiments.models.language import language_model_checksums
from experiments.run.plotting import save_figure, use_style
from experiments.run.results import RunRecord
from ktlib.device import choose_device
from ktlib.seeding import deterministic

use_style()
deterministic()
sums = {f"{P.model}/{file}": value for file, value in language_model_checksums(P.model).items()}
for name in (*P.datasets, P.general_text):
    sums |= {f"{name}/{file}": value for file, value in checksums(name).items()}

record = RunRecord.start("ila_studies", P, data=sums)

# %%
from experiments.ila.experiment import LayerExperiment
from experiments.run.parallel import parallel_map

experiment = LayerExperiment(P, choose_device(P.device))
experiment.encode_all()  # a set that is too small is named here


def tune(case):
    """Stage 1 on a set, with its milestones."""
    dataset, seed = case
    return experiment.tune(dataset, seed, milestones=P.milestones)


# %%
needed = [P.studied_on, *P.transferred_from]
needed = list(P.datasets) if P.intersected else needed
tuned = parallel_map(
    tune, [(name, seed) for name in needed for seed in P.seeds], "stage 1", device=experiment.device
)

# %% [markdown]
# `ranked` learns the scores of several cases at once; a case says which adapters, which seed of stage 2, and what is different.

# %%
from experiments.ila.report import score_rows

rankings = {}  # study, value, dataset, seed of stage 1, seed of stage 2 -> ranking


def learn(case):
    """Stage 2 of one case."""
    study, value, dataset, first, second = case
    options = {study: value} if study in ("batch_size", "initial_score", "penalty") else {}
    if study == "batch_size":
        options["steps"] = P.noise_steps
    share = value if study == "milestone" else 1.0
    return experiment.rank(tuned[dataset, first], seed=second, share=share, **options)


def named(study, value):
    """Study and value of a ranking; a value that changes nothing is that of the reference."""
    same_steps = P.noise_steps == P.stage_2_steps
    usual = {"batch_size": P.stage_2_batch_size} if same_steps else {}
    usual |= {"initial_score": P.initial_score, "penalty": 0.0}
    return ("milestone", 1.0) if usual.get(study) == value else (study, value)


def ranked(study, values, dataset, pairs):
    """Value -> pair of seeds -> ranking; each is learned once, several at a time."""
    cases = {(v, pair): (*named(study, v), dataset, *pair) for v in values for pair in pairs}
    new = [case for case in dict.fromkeys(cases.values()) if case not in rankings]
    rankings.update(parallel_map(learn, new, f"rankings, {study}", device=experiment.device))
    return {v: {pair: rankings[cases[v, pair]] for pair in pairs} for v in values}


# %% [markdown]
# (sec-ila-noise)=
# ## Pilot study: which noise is it?
#
# **Question.** Two rankings with different seeds differ. Is it because stage 1 trained other adapters, or because stage 2 saw other batches?
#
# **Prediction.** Stage 2 begins at $s_0=4$, where an adaptive optimiser turns small gradients into large steps. So batches alone should
# do most of the damage, and larger batches and more steps should repair it.
#
# The first kind of pair has the *same* adapters and another seed of stage 2; the second has other adapters, too.

# %%
from experiments.ila.report import agreement_rows

shares = (P.keep, P.top)
a, b = P.seeds[0], P.seeds[-1]
pairs = {"stage 2 alone": ((a, a), (a, b + 100)), "both stages": ((a, a), (b, b))}
needed = list(dict.fromkeys(pair for both in pairs.values() for pair in both))

# %%
noise = []
for size, found in ranked("batch_size", P.batch_sizes, P.studied_on, needed).items():
    for kind, (one, other) in pairs.items():
        for step in sorted(set(found[one].curve) - {0}):
            both, known = (found[one].at_step(step), found[other].at_step(step)), {"step": step}
            noise += agreement_rows(*both, shares, kind, str(size), batch_size=size, **known)

record.table("noise", noise)

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Two panels, one per share of the layers: Jaccard index of two rankings against the step of stage 2, lines for the kinds of seeds and batch sizes, and a dashed line for chance.", "classes": "chart"}, "figure": {"name": "fig-ila-noise", "caption": "Agreement of two rankings that differ by the seed of stage 2 alone, or of both stages, along stage 2. Dashed: chance. First and last seed, live run."}}
fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.0), sharey=True)
for ax, share in zip(axes, (P.top, P.keep), strict=True):
    part = pd.DataFrame(noise).query("top == @share")
    for (kind, size), line in part.groupby(["a", "batch_size"], sort=False):
        ax.plot(line["step"], line["value"], marker="o", markersize=3, label=f"{kind}, {size}")
    ax.axhline(part["chance"].iloc[0], color="black", linestyle="--")
    ax.set(title=f"top {100 * share:.0f} %", xlabel="step of stage 2")
axes[0].set(ylabel="Jaccard index", ylim=(0, 1))
axes[0].legend(fontsize=7)
save_figure(fig, P.run_dir, "noise")

# %%
last = pd.DataFrame(noise).groupby(["a", "batch_size", "top"], sort=False).last()
last[["value", "chance", "p_value", "rank_correlation"]].round(3)

# %% [markdown]
# ## The method: change one thing, keep the rest
#
# Each study below follows one pattern: a question, a prediction made before the run, one setting that takes another value, everything else as in the reference. The
# reference is the ranking at the end of stage 1. Rankings are compared within one seed, so that what differs is the setting alone.
#
# A study whose other values are not among the parameters prints *not part of this run*. The long run at the end of the page has all of them; to see one live, give
# its parameter more values, such as `-y '{initial_scores: [4.0, 1.0]}'`.
#
# (sec-ila-milestones)=
# ## When is it time to rank?
#
# **Question.** The thesis finds that a quarter to a half of the training is enough, and that after 1 % it is not (table 5.4).
#
# **Prediction.** Once the loss is stable the ranking should be, too. But a stable loss does not imply stable weights: {ref}`proof-ila` has an example.

# %%
agreement = []  # rows of the record's table `jaccard`
twice = [(seed, seed) for seed in P.seeds]  # one seed for both stages
at_milestones = ranked("milestone", P.milestones, P.studied_on, twice)
learned = {seed: found for (seed, _), found in at_milestones[1.0].items()}


def compare(study, rankings, names):
    """Note how rankings, seed -> ranking, agree with those of the reference."""
    for seed, ranking in rankings.items():
        known = {"study": study, "seed": seed}
        agreement.extend(agreement_rows(ranking, learned[seed], shares, *names, **known))


def with_values(study, values):
    """Value -> seed -> ranking, with other values of one setting."""
    found = ranked(study, values, P.studied_on, twice).items()
    return {value: {seed: one for (seed, _), one in pairs.items()} for value, pairs in found}


# %%
early = sorted(set(P.milestones) - {1.0})
for share, found in with_values("milestone", early).items():
    compare("milestone", found, (f"{100 * share:.0f} %", "100 %"))

# %%
from experiments.ila.report import agreement_matrix, printed_matrix
from experiments.run.results import thesis_table


def study_table(study, share=P.top):
    """Agreement in a study, mean over seeds."""
    rows = [row for row in agreement if row["study"] == study]
    return agreement_matrix(rows, share) if rows else "not part of this run"


display(study_table("milestone"))
printed_matrix(thesis_table("5_4").astype({"row": str, "column": str}))

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Jaccard index with the final ranking against the share of stage 1 that was trained, a line per seed for each of two shares of layers, with dashed lines for chance.", "classes": "chart"}, "figure": {"name": "fig-ila-milestones", "caption": "Agreement of rankings at milestones of stage 1 with the ranking at its end, within one seed; one thin line per seed. Dashed: chance. Compare with figure 5.2 of the thesis."}}
fig, ax = plt.subplots(figsize=(5.6, 3.0))
table = pd.DataFrame([row for row in agreement if row["study"] == "milestone"])
for number, share in enumerate(shares if len(table) else ()):
    part = table[table["top"] == share]
    for seed, line in part.groupby("seed"):
        done = [float(value.removesuffix(" %")) for value in line["a"]]
        label = f"best {100 * share:.0f} %" if seed == P.seeds[0] else None
        ax.plot(done, line["value"], "o-", markersize=3, color=f"C{number}", label=label)
    ax.axhline(part["chance"].iloc[0], color=f"C{number}", linestyle="--")
ax.set(xlabel="share of stage 1 (%)", ylabel="Jaccard index", ylim=(0, 1), xlim=(0, 100))
ax.legend(handles=ax.get_legend_handles_labels()[0])
save_figure(fig, P.run_dir, "milestones")

# %% [markdown]
# (sec-ila-initial)=
# ## Does the starting score matter?
#
# **Question.** All scores begin at $s_0$. With 4 the gates are nearly open, with 1 they are at 0.73.
#
# **Prediction.** At $s_0=1$ the slope of the sigmoid is ten times as large, and the gates have more room upwards. The order should change where the loss is
# not linear in the gates.

# %%
others = [score for score in P.initial_scores if score != P.initial_score]
for score, found in with_values("initial_score", others).items():
    compare("initial_score", found, (f"{score:g}", f"{P.initial_score:g}"))

display(study_table("initial_score"))
printed_matrix(thesis_table("5_17").astype({"row": str, "column": str}))

# %% [markdown]
# (sec-ila-penalty)=
# ## What if few layers are asked for?
#
# **Question.** The problem that the thesis begins with asks for a mask with few ones. Its relaxed form leaves that out. With a term $\lambda\sum_i\sigma(s_i)$ in the
# loss, gates close unless the loss keeps them open. Does the order change?
#
# **Prediction.** The penalty pulls all scores down alike at first, so it moves the mean of the scores and hardly their order.

# %%
closing = []
penalized = with_values("penalty", [penalty for penalty in P.penalties if penalty])
for penalty, found in {0.0: learned, **penalized}.items():
    for seed, ranking in found.items():
        gammas = 1 / (1 + np.exp(-np.array(list(ranking.scores.values()))))
        closing.append({"penalty": penalty, "seed": seed, "mean dial": gammas.mean()})
    if penalty:
        compare("penalty", found, (f"{penalty:g}", "no penalty"))

# %%
record.table("dials", closing)
mean_gate = pd.DataFrame(closing).groupby("penalty")["mean dial"].mean().rename("mean gate")
display(mean_gate.round(3).to_frame().T)
study_table("penalty")

# %% [markdown]
# (sec-ila-full)=
# ## LoRA and full fine-tuning
#
# **Question.** The thesis ranks with LoRA and uses the ranking for full fine-tuning, as both agree on 76 to 85 % (table 5.13).

# %%


def rank_full(seed):
    """Both stages with all weights."""
    return experiment.rank_full(P.studied_on, seed)


whole = parallel_map(
    rank_full, P.seeds if P.full_ranked else [], "full fine-tuning", device=experiment.device
)
common = {
    seed: [name for name in ranking.names if name in experiment.layers]
    for seed, ranking in whole.items()
}
compare("full", common, ("full", "LoRA"))

# %%
display(study_table("full"))
printed_matrix(thesis_table("5_13"))

# %% [markdown]
# (sec-ila-cheap)=
# ## Learned or cheap?
#
# **Question.** Does learning the scores add anything over the slope at $\gamma=1$, the size of the update, and taking each update away once?
#
# **Prediction.** At $s_0=4$ all gates are within 2 % of 1. If they stay near, the learned order is that of the slopes, up to noise.

# %%
from experiments.ila.report import cheap_agreement
from ktlib.ila import ablation_scores, first_order_scores, update_norms


def rank_cheaply(seed):
    """Rankings of one run's adapters without learning."""
    model = experiment.adapted(tuned[P.studied_on, seed])
    batches = experiment.batches(P.studied_on, seed, P.stage_2_steps, stage=2)
    found = {"first order": first_order_scores(model, batches, precision=P.precision)}
    found["update norm"] = update_norms(model)
    if P.ablated:
        few = batches[: max(1, P.stage_2_steps // 24)]  # one pass for every layer
        found["ablation"] = ablation_scores(model, few, precision=P.precision)
    return found


# %%
cheap = parallel_map(rank_cheaply, P.seeds, "cheap scores", device=experiment.device)
versus = cheap_agreement(learned, cheap, (P.keep, P.top))
record.table("cheap_scores", versus)
agreement_matrix(versus, P.top)

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "Scatter plots with a dot per layer: learned score against each cheap score, one panel for each cheap score.", "classes": "chart"}, "figure": {"name": "fig-ila-cheap", "caption": "Learned scores against cheap ones, one dot per layer; first seed, live run. The better one replaces the other, the more the dots lie on a rising curve."}}
names = list(cheap[a])
fig, axes = plt.subplots(1, len(names), figsize=(7.2, 2.8), sharey=True, squeeze=False)
for ax, name in zip(axes.flat, names, strict=True):
    values = [cheap[a][name].scores[layer] for layer in experiment.layers]
    ax.plot(values, [learned[a].scores[layer] for layer in experiment.layers], ".", markersize=4)
    ax.set_xlabel(name)
    ax.tick_params(axis="x", labelsize=7)
axes[0, 0].set_ylabel("learned score")
save_figure(fig, P.run_dir, "cheap")

# %%
across = agreement_rows(learned[a], learned[b], shares, "learned", "another seed")
for name in cheap[a]:
    across += agreement_rows(cheap[a][name], cheap[b][name], shares, name, "another seed")
record.table("repeatability", across)
agreement_matrix(across, P.top)

# %% [markdown]
# The second table asks each score to repeat itself with another seed. A score that repeats itself better and costs less is the better tool, unless the models
# that are made with it are worse.
#
# (sec-ila-direction)=
# ### More or less of everything?
#
# That two rankings differ need not be noise. The slope at $\gamma=1$ does not ask what would be lost without an update. It asks whether the loss wants *more or
# less* of it. Where training went a little too far, less is wanted of nearly all updates, and of the strongest ones most: the layers that matter most come
# last. Where it stopped early, they come first. Ablation compares with $\gamma_i=0$ and does not care.
#
# **Prediction.** Where the seeds differ in this direction, their learned rankings agree less, and the learned order agrees with ablation only where more is wanted.

# %%
from experiments.ila.report import score_correlation

direction = []
for seed, ranking in learned.items():
    scores = list(ranking.scores.values())
    row = {"seed": seed, "more wanted of": np.mean(np.array(scores) > P.initial_score)}
    row["sum of slopes"] = -sum(cheap[seed]["first order"].scores.values())
    for name in sorted(set(cheap[seed]) - {"first order"}):
        found = score_correlation(ranking.scores, cheap[seed][name].scores)
        row[f"correlation with {name}"] = found
    direction.append(row)
record.table("direction", direction)
pd.DataFrame(direction).set_index("seed").round(2)

# %% [markdown]
# *More wanted of* is the share of the layers whose score rose above $s_0$. *Sum of slopes* is the slope of the loss if all gates are opened together: negative where
# more is wanted.
#
# (sec-ila-transfer)=
# ## A ranking from elsewhere
#
# **Question.** Can the ranking found on one set be used on another one (table 5.14)? And are the layers that *no* set needs the ones to freeze?

# %%
from experiments.ila.selection import unimportant_everywhere

foreign = {name: ranked("milestone", [1.0], name, twice)[1.0] for name in P.transferred_from}
choices = {}
for seed in P.seeds:
    choices["top of own", seed] = experiment.selected("top", learned[seed], seed)
    choices["random top", seed] = experiment.selected("random_top", learned[seed], seed)
    for name, found in foreign.items():
        chosen = experiment.selected("top", found[seed, seed], seed)
        choices[f"top of {name}", seed] = chosen

# %%
every = [ranked("milestone", [1.0], name, twice)[1.0] for name in P.datasets if P.intersected]
for seed in P.seeds if every else []:
    needless = unimportant_everywhere([found[seed, seed] for found in every], 1 - P.keep)
    kept = tuple(name for name in experiment.layers if name not in needless)
    choices["needed by some set", seed] = kept

# %%
from experiments.ila.report import finetune_table, loss_rows


def fine_tune(case):
    """LoRA on some layers, and the held-out losses after it."""
    layers, seed = case
    run = experiment.tune(P.studied_on, seed, layers)
    return run, experiment.losses(experiment.adapted(run))


cases = [(layers, seed) for (_, seed), layers in choices.items()]
done = parallel_map(fine_tune, cases, "fine-tuning", device=experiment.device)
results = []
for (name, seed), layers in choices.items():
    results += loss_rows(done[layers, seed][1], method="lora", layers=name, seed=seed)

finetune_table(results)

# %% [markdown]
# (sec-ila-reasoning)=
# ## Does it help to solve tasks?
#
# **Question.** The thesis tunes a model on 817 worked problems and finds that freezing a quarter of the layers solves more of MATH500 (table 5.18).
#
# Here the tasks are generated, so that an exact verifier can judge every answer: sums, greatest common divisors, letters to count, words to spell backwards.

# %%
from data_prep.reasoning import reasoning_tasks
from experiments.ila.reasoning import accuracy

held_out = reasoning_tasks("test", size=P.tasks)
trained = {}  # layers, seed -> run on reasoning: what was trained above is used again
if P.studied_on == "reasoning":
    trained |= {("all", seed): tuned["reasoning", seed] for seed in P.seeds}
    trained |= {case: run for case, (run, _) in done.items()}


def solve(case):
    """Share of the tasks solved after fine-tuning some layers; before it for ``None``."""
    layers, seed = case
    if layers is None:
        model = experiment.new_model()
    else:
        run = trained.get(case) or experiment.tune("reasoning", seed, layers)
        model = experiment.adapted(run)
    return accuracy(model, experiment.tokenizer, held_out, max_new_tokens=P.new_tokens).accuracy


# %%
solvers = {("not tuned", "", P.seeds[0]): None}
for seed in P.seeds:
    for name in P.solved_with:
        chosen = experiment.selected(name, learned[seed], seed)
        solvers["lora", name, seed] = "all" if name == "all" else chosen

# %%
cases = [(layers, seed) for (_, _, seed), layers in solvers.items()]
solved = parallel_map(solve, cases, "tasks", device=experiment.device)
for (method, name, seed), layers in solvers.items():
    known = {"method": method, "layers": name, "seed": seed, "dataset": "tasks solved"}
    results.append(known | {"metric": "accuracy (%)", "value": 100 * solved[layers, seed]})

finetune_table([row for row in results if row["dataset"] == "tasks solved"])

# %%
scores = [
    row | {"study": study, "value": str(value), "stage_2_seed": second}
    for (study, value, dataset, first, second), ranking in rankings.items()
    for row in score_rows(ranking, dataset, first, value if study == "milestone" else 1.0)
]
record.table("layer_scores", scores)
record.table("jaccard", agreement)
record.table("finetune", results)
thesis_table("5_18")

# %% [markdown]
# So many rankings were learned. A value that is the reference's was learned once, as the reference; it gets its own name here, too.

# %% tags=["table"]
for size in P.batch_sizes:
    for pair in needed:
        same = rankings[(*named("batch_size", size), P.studied_on, *pair)]
        rankings.setdefault(("batch_size", size, P.studied_on, *pair), same)
pd.Series([study for study, *_ in rankings]).value_counts().rename("rankings").to_frame()

# %% [markdown]
# ## The long run, from the committed record
#
# The `full` profile has more data sets, seeds, steps and values of every setting. Its record is part of the project; these tables are computed
# from it, not typed.

# %%
from experiments.run.results import committed_record, record_label

full = committed_record("ila_studies", "full")
print(record_label(full, "ila_studies", "full"))
long = full.tables if full else {}
of_record = full.parameters if full else P.model_dump()  # the record has its own shares

# %%
last = pd.DataFrame(long["noise"] if full else noise).groupby(
    ["a", "batch_size", "top"], sort=False
)
last.last()[["step", "value", "chance", "p_value", "rank_correlation"]].round(3)

# %%
for study in ("milestone", "initial_score", "penalty", "full"):
    rows = [row for row in long.get("jaccard", []) if row["study"] == study]
    display(agreement_matrix(rows, of_record["keep"]) if rows else f"{study}: no record yet")

# %%
agreement_matrix(long["cheap_scores"], of_record["top"]) if full else "no record yet"

# %%
agreement_matrix(long["repeatability"], of_record["top"]) if full else "no record yet"

# %%
finetune_table(long["finetune"]) if full else "no record yet"

# %% [markdown]
# What the long run of this edition says, in words:
#
# - **The noise of stage 2 can be averaged away.** Two rankings of the *same* adapters that saw other batches of 4 conversations agree at the best 30 % with $p<0.01$ from 60 steps on, and with a
#   rank correlation of 0.47 after 96 steps. With 12 conversations they agree from the first steps on, with 0.68 at the end.
# - **The noise of stage 1 cannot.** Rankings of other adapters, trained on the same set with another seed, have a rank correlation between -0.1 and 0.12 at every step and with either batch size: no better
#   than blind choices. More steps and larger batches only measure more exactly what belongs to *this* training. The thesis prints an index of 0.91 to 0.92.
# - **The order settles with the weights.** Rankings after 1, 25 and 50 % of stage 1 have little in common with the one at the end, on average less than 0.15; the one after 75 %, where the learning rate has nearly run out, has more than
#   0.9. A quarter of the training is not enough here.
# - **The starting score matters little,** as in the thesis: between $s_0=2$ and 4 the rank correlation is 0.90 to 0.97, between 1 and 4 it is 0.65 to 0.91, as predicted. These rankings share adapters *and* batches.
# - **The penalty matters much, against the prediction.** With a weight of 0.01 the mean gate falls from 0.75 to 0.15, and of the order hardly anything is left.
# - **LoRA and full fine-tuning agree as blind choices do:** 0.60 to 0.66 at the best 75 %, where the thesis prints 0.76 to 0.86.
# - **What is learned is the slope at the end of stage 1.** Learned and first-order scores of the same adapters have a rank correlation of 0.70 to 0.81. Neither repeats itself with another seed. The size of the updates does (0.90), but
#   most of that is the kind of layer: among layers of one kind it is not above chance. How all this goes together with ablation follows no rule that we predicted.
# - **The models do not differ.** No difference is seen between the best 30 % by the set's own ranking, by that of the other set, and a random 30 %.
# - **Fewer layers solve at least as many tasks.** The untuned model solves none of them. With all layers tuned it is 25 to 30 %, with the lowest quarter frozen, as in the thesis, 27 to 42 %, with the best 30 % of the layers 28 to 37 %,
#   with a random 30 % 28 to 35 %. All three intervals contain zero; what there may be to gain comes from tuning fewer layers, not from which.
#
# So the disagreement of [the chapter before](chap-ila) is not a matter of too few steps of stage 2. Each training puts its update somewhere else, and the scores report where. Whether a longer stage 1 on a larger model makes trainings alike is what the
# `paper` profile can answer.

# %% [markdown]
# (sec-ila-studies-claims)=
# ## Claims of the thesis, and what became of them
#
# Each verdict below follows from a rule: a claim about several pairs counts the pairs for which it holds. A claim that something is larger, or smaller, is
# *reproduced* if the 95 % interval of the difference within pairs lies on the claimed side of zero, *not reproduced* if it lies on the other
# side, and *undecided* if it contains zero. With one seed there is no interval, and with too few held-out cases no
# test: nothing was tested.

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
    f"{P.model}, {P.studied_on}, {P.stage_1_steps} + {P.stage_2_steps} steps, {len(P.seeds)} seeds "
    "(thesis: Llama 2-7B, LIMA, 128 steps of stage 2)"
)
claims = []

# %%
from experiments.ila.report import printed_range

printed = {n: thesis_table(n.replace(".", "_")) for n in ("5.3", "5.13", "5.15", "5.17", "5.18")}
printed["5.4"] = thesis_table("5_4").query("row == 100 and column >= 25")


def claim_agreement(text, number, rows, least, anchor):
    """A claim that rankings have at least this Jaccard index for the layers kept."""
    values = [row["value"] for row in rows if row["top"] == P.keep]
    if values:
        chance = rows[0]["chance"]
        found = f"{min(values):.2f} to {max(values):.2f}, {chance:.2f} by chance"
        verdict = verdict_of_share(sum(value >= least for value in values), len(values))
        theirs = printed_range(printed[number]["value"])
        claims.append(Claim(text, f"Table {number}", theirs, found, setup, verdict, anchor))


# %%
final = [row for row in noise if row["step"] == P.noise_steps]
alone = [row for row in final if row["a"] == "stage 2 alone"]
both = [row for row in final if row["a"] == "both stages"]
text = (
    "The seed hardly matters for the layers found (Jaccard index of 0.85 or more), stage 2 alone."
)
claim_agreement(text, "5.3", alone, 0.85, "sec-ila-noise")
text = "The seed hardly matters for the layers found (0.85 or more), both stages."
claim_agreement(text, "5.3", both, 0.85, "sec-ila-noise")

# %%
early = [row for row in agreement if row["study"] == "milestone"]
half = [row for row in early if row["a"] in ("25 %", "50 %", "75 %")]
text = "After a quarter of the training the layers are those of the end (0.85 or more)."
claim_agreement(text, "5.4", half, 0.85, "sec-ila-milestones")
starts = [row for row in agreement if row["study"] == "initial_score"]
text = "Other starting scores find nearly the same layers (0.75 or more)."
claim_agreement(text, "5.17", starts, 0.75, "sec-ila-initial")
whole = [row for row in agreement if row["study"] == "full"]
text = "LoRA and full fine-tuning find nearly the same layers (0.75 or more)."
claim_agreement(text, "5.13", whole, 0.75, "sec-ila-full")

# %%
from experiments.ila.report import finetune_difference, in_nats

for name in P.transferred_from:
    pair = ("lora", f"top of {name}"), ("lora", "random top")
    change = finetune_difference(results, *pair, P.studied_on)
    verdict = verdict_of_difference(change.low, change.high, "below", cases=P.test_examples)
    text = f"Layers found on {name} are better than random ones for {P.studied_on}."
    place, theirs = "Table 5.14", "nearly as good as its own"
    found = in_nats(change)
    claims.append(Claim(text, place, theirs, found, setup, verdict, "sec-ila-transfer"))

# %%
shares = {name: getattr(P, name) for name in ("keep", "top") if name in P.solved_with}
if shares and "all" in P.solved_with:
    part, share = next(iter(shares.items()))  # the thesis's own share, where it was run
    pair = ("lora", part), ("lora", "all")
    change = finetune_difference(results, *pair, "tasks solved", "accuracy (%)")
    verdict = verdict_of_difference(change.low, change.high, "above", cases=P.tasks)
    text = "A model tuned on its important layers only solves more tasks."
    scores = printed["5.18"].set_index("ila")[["math500", "aime24"]]
    theirs = " and ".join(f"{gain:+.1f}" for gain in scores.loc[True] - scores.loc[False])
    theirs, told = f"{theirs} points", f"{setup}; the best {100 * share:.0f} % (thesis: 75 %)"
    anchor = "sec-ila-reasoning"
    claims.append(Claim(text, "Table 5.18", theirs, str(change), told, verdict, anchor))
reason = (
    "a second pre-trained model with the same layers cannot be fetched here; any is taken by name"
)
text = "Models of the same architecture have important layers in common."
told = not_testable(reason)
theirs = printed_range(printed["5.15"]["value"])
claims.append(Claim(text, "Tables 5.15, 5.16", theirs, anchor="sec-ila-studies-claims", **told))

record.table("claims", claim_rows(claims))
claims_table(claims).style.hide(axis="index")

# %% [markdown]
# ## Where it stops
#
# - **One model.** All studies are of one model of 135 million weights.
# - **Pairs share runs.** The p-values behind a table are not independent of each other: the same ranking occurs in several pairs.
# - **The held-out sets are small,** and a difference of some thousandths of a nat may be a matter of the sample. Differences are taken within seeds, on the same
#   conversations.
# - **A choice is judged after few steps.** Fewer layers learn more slowly; what is behind after some dozen steps may catch up.
#
# ## Exercises
#
# ```{exercise}
# :label: ex-ila-study-pvalue
# *On paper.* Of 10 layers two rankings choose the best 3, and 2 of them are common. How likely are at least 2 common layers by chance?
# ```
#
# ````{solution} ex-ila-study-pvalue
# :class: dropdown
# There are $\binom{10}{3}=120$ choices for the second ranking. With 2 of the 3 common: $\binom32\binom71=21$; with all 3: $1$. So $22/120\approx0.18$: no evidence.
# ````
#
# ```{exercise}
# :label: ex-ila-study-penalty
# *On paper.* All gradients of the loss are zero. What does the penalty $\lambda\sum_i\sigma(s_i)$ do to the scores under plain gradient descent, and what under an
# adaptive optimiser?
# ```
#
# ````{solution} ex-ila-study-penalty
# :class: dropdown
# Every score moves by $-\alpha\lambda\sigma'(s_i)$, all alike while they are equal, slowly at first since $\sigma'(4)\approx0.018$, and fastest around $0$. An adaptive optimiser divides by the
# size of the gradient: every score moves by about $-\alpha$ per step, whatever $\lambda$ is.
# ````
#
# ```{exercise}
# :label: ex-ila-study-batch
# *Change a parameter.* Run with `-y '{batch_sizes: [2, 16]}'`. Which of the two is worth its time?
# ```
#
# ````{solution} ex-ila-study-batch
# :class: dropdown
# Compare the agreement at equal numbers of *conversations*, not of steps: 16 in a batch cost eight times as much per step as 2.
# ````
#
# ```{exercise}
# :label: ex-ila-study-set
# *Change a parameter.* Run with `-p studied_on chatterbot -y '{transferred_from: [reasoning]}'`. Is the ranking of chatter more or less stable than that of exercises?
# ```
#
# ````{solution} ex-ila-study-set
# :class: dropdown
# The answer is the first table, *stage 2 alone* and *both stages*. Where a set is more varied, batches differ more, and so do the rankings.
# ````
#
# ```{exercise}
# :label: ex-ila-study-average
# *Write code.* Average the scores of both seeds of a ranking. Does the average agree better with a third ranking than a single one does?
# ```
#
# ```{solution-start} ex-ila-study-average
# :class: dropdown
# ```

# %%
mean = {
    name: np.mean([learned[seed].scores[name] for seed in P.seeds]) for name in experiment.layers
}
from ktlib.ila.agreement import jaccard

third = rankings["batch_size", P.batch_sizes[0], P.studied_on, a, b + 100]
single = jaccard(learned[a], third, P.top).value
print(f"single {single:.2f}, mean of {len(P.seeds)} seeds {jaccard(mean, third, P.top).value:.2f}")

# %% [markdown]
# Averages have less noise. With this few layers in the set the difference may still be chance.
#
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-ila-study-error
# *Write code.* How many layers of the best 30 % lie within two standard errors of the last one that is chosen?
# ```
#
# ```{solution-start} ex-ila-study-error
# :class: dropdown
# ```

# %%
ranking = learned[a]
chosen = ranking.top(P.top)
edge = ranking.scores[chosen[-1]]
near = [n for n in chosen if ranking.scores[n] - edge < 2 * ranking.standard_errors[n]]
print(f"{len(near)} of {len(chosen)} layers")

# %% [markdown]
# These layers could as well have been left out. A set is as sure as the gap at its edge.
#
# ```{solution-end}
# ```
#
# ## Summary
#
# - First repeat a ranking with nothing changed but the seed; what is left is what can be compared.
# - Beside each index stand its chance level and its p-value.
# - A learned score has to beat a cheap one at something: repeating itself, or a better model.
# - A ranking is judged by the model that is made with it, beside one made with random layers.
#
# ## Further reading
#
# The paper {cite}`shi2025ila` and the thesis {cite}`shi2025thesis` have the printed tables.

# %%
path = record.save(P.run_dir)
print(f"Record with {len(record.tables)} tables; saved: {path is not None}")
