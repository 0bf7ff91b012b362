"""The page of the book that says on which models ktlib works: its tables are what is found here.

``python -m tests.ktlib.test_support`` writes them anew; about a minute.
"""

import re

import pytest

from experiments.run.atomic import write_text
from tests.ktlib.ila.architectures import ARCHITECTURES, VARIANTS, rows
from tests.ktlib.ila.test_architectures import ranked, ranked_whole
from tests.ktlib.mtl.trunks import EXACT, MATRIX, REFUSED
from tests.paths import ROOT

PAGE = ROOT / "book" / "api" / "support.md"
WORDS = {"exact": "exact", "warns": "exact, with a warning: ", "refused": "refused: "}


def cell(verdict, says, words=WORDS):
    """The outcome and what was said: the reason of a split, the first of several layers."""
    reason = re.search(r"cannot be traced \((.*)\); every task", says)
    says = reason[1].split(": Tensor-likes")[0] if reason else says
    says = re.sub(r"(\w+\.[\w.]+)(, \w+\.[\w.]+)+( and \d+ more)?", r"\1, ...", says.rstrip("."))
    return words[verdict] + says.replace("|", "\\|")


def table(*lines):
    head, *body = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([head, f"|{' --- |' * len(lines[0])}", *body])


def trunks():
    """A row for each trunk of the matrix, which is split and observed here."""
    lines = [(f"Trunk ({len(MATRIX)} kinds)", "`split`", "`ConflictMeter`")]
    for row in MATRIX:
        split, meter = row.split(), row.observe()
        expected = row.outcome, REFUSED if row.meter else EXACT
        assert (split[0], meter[0]) == expected, row.name
        lines.append((row.name, cell(*split, WORDS | {"warns": "whole: "}), cell(*meter)))
    return table(*lines)


def models():
    """A row for each kind of adapter and each model, all pairs of which are ranked here."""
    found = {}
    for architecture, variant in rows():
        verdict, says = found[architecture.model, variant.name] = ranked(architecture, variant)
        expected = verdict == variant.verdict and re.search(variant.says, says)
        assert expected, (architecture.model, variant.name, verdict, says)
    adapters = [("Adapter", "`rank_layers`", "Models")]
    for variant in VARIANTS:
        groups = {}
        for (model, name), (verdict, says) in found.items():
            if name == variant.name:  # what is found is named after the rule, and is a model's own
                groups.setdefault((verdict, says.split(" Found ")[0]), {})[model] = says
        for (verdict, _), of in groups.items():
            names = f"all {len(of)}" if len(groups) == 1 else ", ".join(of)
            adapters.append((variant.name, cell(verdict, next(iter(of.values()))), names))
    whole = [
        ("Model", "Adapters: exact, with a warning, refused", "All weights, `rank_layers_full`")
    ]
    for architecture in ARCHITECTURES:
        verdicts = [verdict for (model, _), (verdict, _) in found.items()
                    if model == architecture.model]  # fmt: skip
        verdict, says = ranked_whole(architecture, False)
        text = cell(verdict, says)
        if verdict == "refused":
            skipped = cell(*ranked_whole(architecture, True))
            text += ". With `skip_unsupported=True`: " + (
                "the same" if skipped == text else skipped
            )
        counts = ", ".join(str(verdicts.count(verdict)) for verdict in WORDS)
        whole.append((architecture.model, counts, text))
    return f"{table(*adapters)}\n\n{table(*whole)}"


PARTS = {"trunks": trunks, "models": models}


def part(name):
    return re.compile(rf"(?<=% begin {name}\n\n).*?(?=\n\n% end)", re.DOTALL)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.parametrize("name", PARTS)
def test_the_page_says_what_is_found(name):
    text = PAGE.read_text(encoding="utf-8")
    assert part(name).findall(text) == [PARTS[name]()], "run python -m tests.ktlib.test_support"


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    for name, make in PARTS.items():
        page = part(name).sub(lambda _, make=make: make(), page)
    write_text(PAGE, page)
