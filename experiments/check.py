"""Check the parameters of a run of a chapter, before anything heavy is imported.

For example ``python -m experiments.check recon -p severity=-0.2 -p "seeds=[0, 1]"``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import yaml

from experiments.run.chapter_source import ROOT, chapter_source, parameter_file
from experiments.run.parameters import ParameterError, check_parameter_file


def check(chapter: str, profile: str, values: Sequence[str]) -> None:
    """Check the values of a profile, with others in place of some.

    Args:
        chapter: its name, such as ``"proofs/fcl"``.
        profile: name of the set of values.
        values: ``"name=value"``, the value as YAML has it.

    Raises:
        ValueError: the chapter, the profile, or a value is not allowed; all problems are named.
    """
    source, file = chapter_source(chapter), parameter_file(chapter, profile)
    changes: dict[str, Any] = {}
    for text in values:
        name, sign, value = text.partition("=")
        if not sign or name in changes:
            raise ParameterError(f"-p must be given as name=value, once a name. Found {text!r}.")
        try:
            changes[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ParameterError(f"-p must hold a value of YAML. Found {text!r}.") from None
    check_parameter_file(source.relative_to(ROOT), file.relative_to(ROOT), changes=changes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 1 if a value is not allowed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("chapter")
    parser.add_argument("--profile", default="cpu", help="set of values; default: cpu")
    parser.add_argument("-p", action="append", default=[], metavar="name=value", dest="values")
    given = parser.parse_args(arguments)
    try:
        check(given.chapter, given.profile, given.values)
    except ValueError as error:
        print(f"\n{error}\n", file=sys.stderr)
        return 1
    print(f"Chapter {given.chapter}, profile {given.profile}: these values are allowed.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
