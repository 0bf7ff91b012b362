"""Tables of a record on multi-task learning that were made up, so that all verdicts are known."""

from functools import cache
from itertools import pairwise, product
from math import erf, sqrt

import numpy as np

from experiments.mtl.derived import COLUMNS, EDGES, NORM, released_layers
from experiments.mtl.parameters import ARCHITECTURES, EvidenceParameters
from experiments.run.records import RunRecord
from ktlib.mtl.conflict import SEVERITIES
from tests.chapters import check_cell

CHANGES = {
    "device": "cpu", "seeds": [*range(6)], "study_seeds": [*range(5)], "search_quarters": 1,
    "methods": ["single", "joint", "mgda", "pcgrad", "graddrop", "cagrad", "upgrad", "nashmtl",
                "uw", "gradnorm", "famo", "rotograd", "mmoe", "cross_stitch", "bmtas"],
    "recon_methods": ["joint", "mgda", "pcgrad", "graddrop", "cagrad", "upgrad", "nashmtl", "uw",
                      "gradnorm", "famo", "rotograd", "mmoe"],
    "controls": ["random_layers", "random_parameters", "first", "last"],
    "control_methods": ["joint", "pcgrad", "cagrad"], "counts_studied": [5, 10, 25, 40],
    "severities_studied": [0.0, -0.02, -0.06, -0.1, -0.15],
    "quarters_studied": ["2", "3", "4", "all"], "transfer_from": ["multi_mnist", "multi_fashion"],
    "skips_studied": ["last", "behind_stem"], "task_counts": [2, 10, 40],
    "timed_methods": ["joint", "mgda", "pcgrad", "graddrop", "cagrad"],
}  # fmt: skip
# Gains over single tasks, all layers shared and with Recon: ten times what table 4.1 prints, and
# numbers in between for what it does not have
GAINS = {
    "joint": (-9.4, -3.3), "mgda": (-17.1, -2.2), "pcgrad": (-10.4, 0.4), "graddrop": (-11, -1.3),
    "cagrad": (-9.0, -0.4), "upgrad": (-10, -1), "nashmtl": (-9.7, -1.1), "uw": (-9.6, -1.5),
    "gradnorm": (-9.8, -1.7), "famo": (-10.2, -1.9), "rotograd": (-9.1, -2.5), "mmoe": (-1.2, -0.4),
    "cross_stitch": (-1.5,), "bmtas": (-0.4,),
}  # fmt: skip
CONTROLS = {"random_layers": -8, "random_parameters": -7.5, "first": -4.5, "last": -5.5}
# Points above Recon's own choice; a value that is not here is that choice itself
STUDIES = {
    "count": {"5": -5, "10": -2.5, "40": 0.05},
    "severity": {"0": -3, "-0.02": -1, "-0.06": -0.5, "-0.15": -2},
    "quarter": {"2": 0.4, "3": 0.9, "4": 0.9, "all": 0.9},
    "transfer": {"multi_mnist": -0.7, "multi_fashion": -1.2},
    "skip": {"every task": -2.2, "one task": -5.7},
}
# Standard deviation of the cosines: what reductions follow from
SPREADS = {"shared": 0.15, "recon": 0.08, "random_layers": 0.19, "random_parameters": 0.135,
           "first": 0.12, "last": 0.14, "behind_stem": 0.16}  # fmt: skip
SINGLE = {"item": 80.0, "digit": 90.0}
MEAN = 0.03  # of the cosines
RELEASED = released_layers()


class Made:
    """Tables in which all that the thesis prints is there, or its opposite, or nothing.

    Args:
        scale: of gains. 1: effects of the printed sign; -1: of the other; 0: arms that agree.
        noise: standard deviation of a gain over seeds, in points.
        fewer: the same as ``scale``, for conflicts.
        jitter: standard deviation over seeds of the width of the cosines, relative.
        published: times what one set of running statistics costs.
        steps: that were counted in each quarter of a search.
        severe: share of the steps in conflict on the layer with most conflicts.
        alike: how alike rankings are: 1: equal; 0: by chance.
        angles_alike: the same for rankings by angles.
        margin: of the probabilities of BMTAS.
        slope: power of the number of tasks that the time of a step grows with.
        metrics: of each task.
        diverged: methods without a score.
        added: megabytes of a network that layers split add; one network a task has 2.7 more.
        widening: times that convolutions grow from one stage of the network to the next.
        **changes: of the parameters.

    Attributes:
        parameters: of the record.
        record: with all tables.
    """

    def __init__(
        self, scale=1.0, noise=0.05, *, fewer=1.0, jitter=0.002, published=1.0, steps=600,
        severe=0.4, alike=1.0, angles_alike=0.3, margin=0.2, slope=1.0, metrics=("accuracy",),
        diverged=(), added=0.5, widening=1.0, **changes,
    ):  # fmt: skip
        p = self.parameters = checked(**changes)
        self.scale, self.noise, self.fewer, self.jitter = scale, noise, fewer, jitter
        self.published, self.steps, self.severe = published, steps, severe
        self.alike, self.angles_alike = alike, angles_alike
        self.metrics, self.diverged, self.added = metrics, diverged, added
        self.rng = np.random.default_rng(3)
        self.tables = {name: [] for name in COLUMNS}
        self.names = sorted(RELEASED, key=in_network)
        self.compared()
        self.studies()
        for seed, (place, name) in product(p.seeds, enumerate(self.names, start=1)):
            stage = int(name[5]) if name.startswith("layer") else 1
            held = 64 if kind(name) == NORM else 5000 * widening ** (stage - 1)
            self.add("layers", seed, place=place, layer=name, kind=kind(name), parameters=held)
            self.pairs(seed, name, cosine=-0.01 * (41 - RELEASED.index(name)))
        for seed in p.seeds:
            self.pairs(seed, None, cosine=-0.1)
        for seed, number in product(p.study_seeds, range(1, 5)):
            groups = "item+digit" if number < 3 else "item digit"
            known = {"block": f"layer{number}", "groups": groups, "margin": margin}
            self.add("branches", seed, **known, steps=4 * steps)
        counted = {"joint": "joint, counted"}
        for tasks, (place, name) in product(p.task_counts, enumerate(p.timed_methods)):
            known = {"tasks": tasks, "method": counted.get(name, name)}
            if name == "joint":
                self.add("seconds", p.seeds[0], tasks=tasks, method="joint, not counted", ms=20.0)
            self.add("seconds", p.seeds[0], **known, ms=(30.0 + 4 * place) * (tasks / 2) ** slope)
        changed = {"parameters": p.model_dump(mode="json"), "seeds": p.seeds, "tables": {}}
        self.record = started().model_copy(update=changed)
        for name, rows in self.tables.items():
            columns = ("seed", *COLUMNS[name].split())
            self.record.table(name, [{c: row.get(c) for c in columns} for row in rows])

    def add(self, table, seed, **row):
        self.tables[table].append({"seed": seed, **row})

    def pairs(self, seed, layer, cosine):
        """What was counted of the one pair of tasks, on a layer or on all."""
        for quarter in (1, 2, 3, 4):
            found = {"pairs": self.steps, "conflicts": round(-cosine * self.steps)}
            known = {"quarter": quarter, "first": "digit", "second": "item", "layer": layer}
            self.add("pairs", seed, **known, **found, cosines=cosine * self.steps, norm_ratio=1.5)

    def compared(self):
        """The long comparison, all methods, and the other choices of layers."""
        p = self.parameters
        for size, study, seeds in (("long", "long", p.seeds), ("matrix", "methods", p.study_seeds)):
            known = {"size": size, "study": study, "method": "single", "layers": "shared"}
            self.scored(seeds, **known)
            for seed in seeds:
                self.cost(seed, known, 2.7)
        for layers in ("shared", "recon", "random_layers", "random_parameters"):
            gain = GAINS["joint"][layers == "recon"] if layers not in CONTROLS else CONTROLS[layers]
            self.run(p.seeds, "long", "long", "joint", layers, gain)
        for method in p.methods[1:]:
            self.run(p.study_seeds, "matrix", "methods", method, "shared", GAINS[method][0])
            if method in p.recon_methods:
                self.run(p.study_seeds, "matrix", "methods", method, "recon", GAINS[method][1])
        for method, layers in product(p.control_methods, p.controls):
            self.run(p.study_seeds, "matrix", "control", method, layers, CONTROLS[layers])

    def studies(self):
        """Other layers of Recon, and lost skip connections."""
        p = self.parameters
        asked = {
            "count": map(str, p.counts_studied),
            "severity": map("{:g}".format, p.severities_studied),
            "quarter": p.quarters_studied,
            "transfer": ("own", *p.transfer_from) if p.transfer_from else (),
        }
        for study, values in asked.items():
            for value in values:
                for method in p.control_methods if study == "transfer" else ["joint"]:
                    if value in STUDIES[study]:
                        gain = GAINS[method][1] + STUDIES[study][value]
                        self.run(p.study_seeds, "matrix", study, method, "recon", gain, value)
                    else:
                        self.copy(study, method, value)
        for layers, value in product(p.skips_studied, STUDIES["skip"]):
            gain = GAINS["joint"][1] + STUDIES["skip"][value]
            self.run(p.study_seeds, "matrix", "skip", "joint", layers, gain, value)

    def copy(self, study, method, value):
        """Recon's own choice as part of a study."""
        for name, own in (("results", method), ("histograms", method), ("choices", None)):
            self.tables[name] += [
                {**row, "study": study, "value": value}
                for row in self.tables[name]
                if (row["study"], row["layers"], row.get("method")) == ("methods", "recon", own)
            ]

    def run(self, seeds, size, study, method, layers, gain, value=""):
        """A network, trained with each seed: scores, costs, choice of layers and conflicts."""
        known = {"size": size, "study": study, "value": value, "method": method, "layers": layers}
        self.scored(seeds, gain, **known)
        width = 0.15 + self.fewer * (SPREADS[layers] - 0.15)
        if study == "count" and int(value) < 25:
            width = 0.15 - self.fewer * 0.002 * int(value)
        wide = self.centred(len(seeds)) * self.jitter
        for number, seed in enumerate(seeds):
            if layers != "shared" and value != "one task":
                names = " ".join(self.split(seed, layers, study, value))
                row = {"seed": seed, "study": study, "value": value, "layers": layers}
                if {**row, "names": names} not in self.tables["choices"]:
                    self.tables["choices"].append({**row, "names": names})
            if method in self.diverged:
                continue
            if study in ("long", "methods", "control"):
                tree = 2.7 if method in ("bmtas", "mmoe") else 0.0
                self.cost(seed, known, tree if layers == "shared" else tree + self.added)
            if method in ARCHITECTURES or value == "one task":
                continue
            for quarter in (1, 2, 3, 4):
                counts = cosines(width * float(np.exp(wide[number])) * (1.1 - 0.1 * quarter))
                words = " ".join(map(str, counts))
                self.add("histograms", seed, **known, quarter=quarter, counts=words)
                if study in ("long", "methods"):
                    self.count(seed, known, quarter)

    def cost(self, seed, known, more):
        """Size and times of a network, from what it has more than a shared one."""
        row = {"megabytes": 2.7 + more, "gigaflops": 0.1 * (1 + (more > 0))}
        self.add("costs", seed, **known, **row, forward_ms=5.0 * (1 + (more > 0)))

    def scored(self, seeds, gain=0.0, **known):
        """Scores of all tasks, whose mean gain over seeds is the one given, times the scale."""
        single, layers = known["method"] == "single", known["layers"]
        noise = self.centred(len(seeds)) * self.noise * (not single)
        kinds = ("one",) if layers == "shared" else ("own", "shared")
        cost = self.published * (5.0 if layers == "random_layers" else 0.2)
        metrics = ("",) if known["method"] in self.diverged else self.metrics
        for (number, seed), statistics in product(enumerate(seeds), kinds):
            if statistics == "shared" and known.get("value") == "one task":
                continue
            level = self.scale * (gain - cost * (statistics == "shared")) + noise[number]
            for (task, alone), metric in product(SINGLE.items(), metrics):
                score = alone * (1 + level / 100)
                if metric == "absolute_error":
                    score = 0.01 * alone * (1 - level / 100)
                row = {"statistics": statistics, "task": task, "metric": metric}
                row["score"] = score if metric else None  # as of a run that diverged
                self.add("results", seed, **{"value": "", **known}, **row)

    def count(self, seed, known, quarter):
        """Conflicts on each layer, and angles: the released order, as far as rankings are alike."""
        split = known["layers"] != "shared"
        order, angle = (
            alike * np.array([RELEASED.index(name) for name in self.names])
            + (1 - alike) * self.rng.permutation(len(self.names))
            for alike in (self.alike, self.angles_alike)
        )
        own = set(RELEASED[: self.parameters.top_k]) if split else ()
        degrees = " ".join(f"{100 - value / 10:.3f}" for value in angle)
        for severity in (-0.01, self.parameters.severity) if split else SEVERITIES:
            scores = self.steps * self.severe * (1 - order / 60) * (1 + severity)
            words = ["-" if name in own else str(round(score))
                     for name, score in zip(self.names, scores, strict=True)]  # fmt: skip
            found = {"quarter": quarter, "severity": severity, "steps": self.steps}
            angles = "" if severity or split else degrees
            self.add("scores", seed, **known, **found, scores=" ".join(words), angles=angles)

    def split(self, seed, layers, study, value):
        """Names of the layers of a choice."""
        count = int(value) if study == "count" else self.parameters.top_k
        if layers == "recon":
            return RELEASED[:count]
        if layers in ("first", "last"):
            return self.names[:count] if layers == "first" else self.names[-count:]
        pool = self.names[2:] if layers == "behind_stem" else self.names
        drawn = np.random.default_rng([seed, len(layers)]).permutation(pool)
        return sorted(map(str, drawn[:count]), key=in_network)

    def centred(self, number):
        """Draws whose mean is 0, so that means over seeds are what they are."""
        drawn = self.rng.normal(size=number)
        return drawn - drawn.mean()


def checked(**changes):
    """The parameters of the chapter, with all that it can study."""
    return check_cell(EvidenceParameters, "recon_evidence", **CHANGES | changes)


@cache
def started():
    """A record without tables; it takes a second to start one."""
    return RunRecord.start("recon_evidence", checked(), data={})


def in_network(name):
    """Place of a layer of the ResNet18 in the order of the network."""
    stage = {"conv1": 0, "bn1": 1, "fc": 99}.get(name)
    words = name.replace("downsample.", "downsample").split(".")
    order = ("conv1", "bn1", "conv2", "bn2", "downsample0", "downsample1")
    return (stage,) if stage is not None else (2, words[0], words[1], order.index(words[2]))


def kind(name):
    """Kind of a layer."""
    if name == "fc":
        return "linear"
    return NORM if "bn" in name or name.endswith("downsample.1") else "convolution"


def cosines(width, number=20_000):
    """A histogram of cosines, normal around :data:`MEAN`."""
    below = [0.5 * (1 + erf((edge - MEAN) / (width * sqrt(2)))) for edge in EDGES]
    return [round(number * (high - low)) for low, high in pairwise(below)]
